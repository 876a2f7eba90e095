"""The Unix users that sandboxes run as, one for each."""

import secrets

from ..errors import LaunchFailed

_RANGE = range(200_000, 265_536)


class Uids:
    """Those of this host. A uid is used by one sandbox at a time."""

    def __init__(self) -> None:
        self._in_use: set[int] = set()
        # Another host on this machine has the same range: starting anywhere in it keeps the two apart.
        self._next = secrets.randbelow(len(_RANGE))

    def take(self) -> int:
        """The next one that no sandbox has; round and round, so that one is not soon used again. Raises LaunchFailed."""
        for _ in _RANGE:
            uid = _RANGE[self._next % len(_RANGE)]
            self._next += 1
            if uid not in self._in_use:
                self._in_use.add(uid)
                return uid
        raise LaunchFailed("every uid for sandboxes is in use", "no_uid_left")

    def found(self, uid: int | None) -> None:
        """A sandbox that was there before this process has it."""
        if uid is not None:
            self._in_use.add(uid)

    def give_back(self, uid: int | None) -> None:
        """No process has it any more."""
        if uid is not None:
            self._in_use.discard(uid)
