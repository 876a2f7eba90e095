"""What an operator lets sessions do by themselves."""

from ship.model import Limits, Value


class Policy(Value, frozen=True):
    """Passed to every decision. Where a time is 0, that never happens."""

    idle_pause_s: int = 600
    """A session for which nothing happened for so long is paused: nothing to do, or its agent waits for a person."""
    stuck_s: int = 900
    """After so long without a sign of a working task people are told; after as long again it is ended."""
    recoveries: int = 3
    """How many sandboxes may be lost in a row without a completed task before a person has to look."""
    child_depth: int = 3
    """How deep children may start children of their own."""
    children: int = 16
    """How many children one session may start in its life."""
    children_at_once: int = 4
    """How many of them may be at work at the same time."""
    pack_after_s: int = 7 * 24 * 3_600
    """So long after its end a session's log leaves the hot tables for a blob."""
    limits: Limits = Limits()
    """For each task of a session that names none."""


ORDINARY = Policy()
