"""Why something cannot go on: a stable code, the reason in words, and what to do."""

from typing import Any


class RunnerFailure(Exception):
    """An error that people read in the log; ``code`` is stable."""

    def __init__(self, code: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.hint = hint

    def document(self) -> dict[str, Any]:
        """As it stands in a fact: ``{code, reason, hint}``."""
        return {"code": self.code, "reason": self.reason, "hint": self.hint}
