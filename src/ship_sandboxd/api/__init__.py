"""The REST half of E2B's protocol (https://e2b.dev/docs/api-reference), one module for each kind of thing.

router.py      finds the route of a request, asks for the key, turns errors into answers
call.py        one request, parsed and checked
sandboxes.py   make, list, change and end sandboxes
snapshots.py   snapshots and forks
templates.py   templates and their builds
telemetry.py   what a sandbox uses, and its log
operations.py  what is told of the host itself
"""
