"""What was not let out of a sandbox: counted, logged, and kept with it.

A file of its own, so that a sandbox that is refused again and again cannot push out of its log what else happened to it.
"""

import asyncio
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
_MINUTE_S = 60.0
_EVENT = "egress refused"
_log = logging.getLogger("ship_sandboxd.network.egress")


class Refusals:
    """`counts` are those of the whole host, by kind. Of a flood the first of each minute are written down one by one, and at
    its end how many more there were."""

    def __init__(self, sandbox_id: str, folder: Path, counts: Counter[str]) -> None:
        self._sandbox_id = sandbox_id
        self._folder = folder
        self._counts = counts
        self._minute, self._in_this_minute = 0.0, 0
        self._minutes_end: asyncio.TimerHandle | None = None

    def record(self, method: str, target: str, refusal: Refused, times: int = 1) -> None:
        """Write one down, or as many of the same: how (a method of HTTP, DNS, the protocol of a packet, or CUT for what
        was open before) and where to."""
        self._counts[refusal.kind] += times
        now = time.monotonic()
        if now - self._minute > _MINUTE_S:
            self.sum_up()
            self._minute = now
        self._in_this_minute += 1
        facts = {"method": method, "target": target[:_MAX_TARGET], "reason": str(refusal)}
        if self._in_this_minute <= _LOGGED_A_MINUTE:
            self._log(facts)
        elif self._minutes_end is None:
            self._minutes_end = asyncio.get_running_loop().call_later(_MINUTE_S, self.sum_up)
        if self._in_this_minute <= _KEPT_A_MINUTE:
            self._keep(facts)

    def sum_up(self) -> None:
        """Write down how many there were besides those that were written down."""
        for limit, write in ((_LOGGED_A_MINUTE, self._log), (_KEPT_A_MINUTE, self._keep)):
            if (more := self._in_this_minute - limit) > 0:
                write({"reason": f"and {more} more"})
        self._in_this_minute = 0
        if self._minutes_end is not None:
            self._minutes_end.cancel()
            self._minutes_end = None

    def _log(self, facts: dict[str, str]) -> None:
        _log.warning(_EVENT, extra={"sandbox": self._sandbox_id, **facts})

    def _keep(self, facts: dict[str, str]) -> None:
        """Two files at most: when the newer is full it becomes the older."""
        line = {
            "time": time.time(),
            "level": "warning",
            "event": _EVENT,
            "sandbox": self._sandbox_id,
            **facts,
        }
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
