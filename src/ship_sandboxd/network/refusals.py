"""What was not let out of a sandbox: counted, logged, and kept with it.

A file of its own, so that a sandbox that is refused again and again cannot push out of its log what else happened to it.
"""

import json
import logging
import time
from collections import Counter
from pathlib import Path

from .rules import Refused

FILE_NAME, OLDER_FILE_NAME = "egress.jsonl", "egress.1.jsonl"
MAX_FILE_BYTES = 512 * 1024
_MAX_TARGET = 512
_LOGGED_A_MINUTE, _KEPT_A_MINUTE = 120, 1200
_log = logging.getLogger("ship_sandboxd.network.egress")


class Refusals:
    """`counts` are those of the whole host, by kind."""

    def __init__(self, sandbox_id: str, folder: Path, counts: Counter[str]) -> None:
        self._sandbox_id = sandbox_id
        self._folder = folder
        self._counts = counts
        self._minute, self._in_this_minute = 0.0, 0

    def record(self, method: str, target: str, refusal: Refused) -> None:
        """Write one down: how (a method of HTTP, TCP, DNS, or CUT for what was open before) and where to."""
        self._counts[refusal.kind] += 1
        now = time.monotonic()
        if now - self._minute > 60:
            self._minute, self._in_this_minute = now, 0
        self._in_this_minute += 1
        facts = {
            "sandbox": self._sandbox_id,
            "method": method,
            "target": target[:_MAX_TARGET],
            "reason": str(refusal),
        }
        if self._in_this_minute <= _LOGGED_A_MINUTE:
            _log.warning("egress refused", extra=facts)
        if self._in_this_minute <= _KEPT_A_MINUTE:
            self._keep({"time": time.time(), "level": "warning", "event": "egress refused", **facts})

    def _keep(self, line: dict[str, object]) -> None:
        """Two files at most: when the newer is full it becomes the older."""
        path = self._folder / FILE_NAME
        try:
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                is_full = file.tell() > MAX_FILE_BYTES
            if is_full:
                path.replace(self._folder / OLDER_FILE_NAME)
        except OSError as error:
            _log.warning(
                "a refusal cannot be kept", extra={"sandbox": self._sandbox_id, "reason": str(error)}
            )
