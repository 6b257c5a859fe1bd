"""Refusals of OSS during an upload: which concern one object, and which would meet every other one too."""

from __future__ import annotations

from ossconsole.storage.errors import StorageError

# Refusals that concern every object alike.
_FATAL_CODES = frozenset(
    {
        "InvalidAccessKeyId",
        "InvalidSecurityToken",
        "NoSuchBucket",
        "RequestTimeTooSkewed",
        "SecurityTokenExpired",
        "SignatureDoesNotMatch",
    }
)


class Refusals:
    """Tells a refusal of one object from trouble that would meet every other one too."""

    def __init__(self, give_up_after: int) -> None:
        """Gives up after so many objects in a row that got no answer at all."""
        self._give_up_after = give_up_after
        self._silent = 0

    def accepted(self) -> None:
        self._silent = 0

    def weigh(self, error: StorageError) -> None:
        """Raises the error when going on makes no sense."""
        if error.code in _FATAL_CODES or error.throttled:  # the request has waited as long as there is patience
            raise error
        if error.status == 0 and error.retriable:
            self._silent += 1
            if self._silent >= self._give_up_after:
                raise error
