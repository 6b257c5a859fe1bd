"""Credentials: a key pair, where it came from, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ossconsole.config.secret import Secret, mask_key_id


@dataclass(frozen=True)
class Credentials:
    """An AccessKey pair, with a security token when it is temporary (STS).

    `source` names where it was found, in words for the screen. `expiration` is UTC, None when it never ends.
    """

    access_key_id: str
    access_key_secret: Secret
    security_token: Secret | None = None
    expiration: datetime | None = None
    source: str = ""

    def __repr__(self) -> str:
        return f"Credentials({mask_key_id(self.access_key_id)}, source={self.source!r})"


CredentialSource = Callable[[], Credentials]
"""Gives the pair to sign with now; called again for each request batch, so that temporary ones can be refreshed."""
