"""Points in time that a clock which is set anew does not move."""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """What tells this run of the machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Moment:
    """`wall` is in seconds since 1970, for people and for another boot of the machine; `monotonic` is of the boot
    `boot` and is what counts in it, however the wall clock jumps."""

    wall: float
    monotonic: float
    boot: str

    @classmethod
    def after(cls, seconds: float) -> "Moment":
        """So many seconds from now."""
        return cls(time.time() + seconds, time.monotonic() + seconds, boot_id())

    @property
    def left_s(self) -> float:
        """Seconds until then; negative when it is over. After a reboot there is only the wall clock to go by."""
        if self.boot == boot_id():
            return self.monotonic - time.monotonic()
        return self.wall - time.time()
