"""Session tokens: the one credential that a sandbox holds.

A token names its session and generation and carries our signature. It is worth something only while that generation is the
session's present one; there is nothing to store and nothing to revoke.
"""

import hashlib
import hmac

from ship.errors import Unauthenticated


class SandboxTokens:
    """Signs and checks with one secret of at least 32 bytes."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) >= 32, "a signing secret has at least 32 bytes"
        self._secret = secret

    def issue(self, session_id: str, generation: int) -> str:
        """The token of that generation; the same each time."""
        claim = f"{session_id}.{generation}"
        return f"shs_{claim}.{self._signature(claim)}"

    def verify(self, token: str) -> tuple[str, int]:
        """(session id, generation) that the token was issued for. Whether that is still the present one, the session knows.

        Raises:
            Unauthenticated: ``session_token_invalid``.
        """
        claim, _, signature = token.removeprefix("shs_").rpartition(".")
        session_id, _, generation = claim.rpartition(".")
        genuine = hmac.compare_digest(signature.encode(), self._signature(claim).encode())
        if not (token.startswith("shs_") and genuine and generation.isdecimal()):
            raise Unauthenticated("not a session token of this Ship", code="session_token_invalid")
        return session_id, int(generation)

    def _signature(self, claim: str) -> str:
        return hmac.new(self._secret, f"sandbox:{claim}".encode(), hashlib.sha256).hexdigest()
