"""The daemon inside a sandbox: E2B's envd protocol, served by the standard library alone.

The host copies this package into its data folder, mounts it into each sandbox and runs it there as process 1
with the sandbox's own Python (3.10 or later). So nothing in here imports anything else of this distribution.
"""
