"""Renewal: temporary credentials are kept, and fetched again before they expire."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Hashable
from datetime import datetime, timedelta, timezone
from typing import Any

from ossconsole.config.credentials import Credentials, register_credentials
from ossconsole.config.errors import ConsoleError

REFRESH_BEFORE = timedelta(minutes=10)
"""Credentials are fetched this long before they expire; an instance's role is renewed half an hour before."""
_SHARE_LEFT = 3  # short-lived ones are fetched when a third of their life is left
_UNKNOWN_LIFE = timedelta(minutes=10)  # of those without expiry: a role's session lasts 15 minutes at least
_PAUSE = timedelta(seconds=1)  # between two fetches of credentials that have expired or cannot be renewed
_MAX_PAUSE = timedelta(seconds=30)


def utc_now() -> datetime:
    """The time now, with its zone."""
    return datetime.now(timezone.utc)


def ends_within(credentials: Credentials, margin: timedelta, now: datetime | None = None) -> bool:
    """Whether the credentials expire within `margin` from now; False for those without expiry."""
    return credentials.expiration is not None and credentials.expiration - (now or utc_now()) <= margin


class RenewedSource(abc.ABC):
    """A source whose credentials are fetched again before they expire; safe to call from many threads.

    They are kept while they cannot be renewed, until they expire. While one thread fetches, the others use those that
    are still valid. Each is registered with the log's filter. It can be pickled, without the credentials: each process
    fetches its own.
    """

    def __init__(self, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._kept: tuple[Credentials, Hashable] | None = None
        self._renew_at = now()

    @abc.abstractmethod
    def fetch(self) -> Credentials:
        """Fetches the credentials. Raises ConsoleError."""

    def version(self) -> Hashable:
        """A value that the credentials depend on: they are fetched again when it changes. Raises ConsoleError."""
        return None

    def __call__(self) -> Credentials:
        kept = self._kept
        try:
            version = self.version()
        except ConsoleError:
            if kept is None or kept[0].expiration is None or self._expired(kept[0]):
                raise
            return kept[0]  # the file is being written, for instance
        current = kept is not None and kept[1] == version
        if kept is not None and current and self._now() < self._renew_at:
            return kept[0]
        valid = kept is not None and current and not self._expired(kept[0])
        if not self._lock.acquire(blocking=not valid):
            assert kept is not None  # noqa: S101 - it is valid
            return kept[0]
        try:
            return self._renew(version, kept)
        finally:
            self._lock.release()

    def _renew(self, version: Hashable, seen: tuple[Credentials, Hashable] | None) -> Credentials:
        """Fetches, unless another thread has done so since this one has `seen` what was kept."""
        kept = self._kept
        if kept is not None and kept is not seen and kept[1] == version and not self._expired(kept[0]):
            return kept[0]
        try:
            found = self.fetch()
        except ConsoleError:
            if kept is None or kept[1] != version or self._expired(kept[0]):
                raise
            left = (kept[0].expiration or self._now() + _UNKNOWN_LIFE) - self._now()
            self._renew_at = self._now() + min(max(left / 10, _PAUSE), _MAX_PAUSE)
            return kept[0]
        register_credentials(found)
        now = self._now()
        life = _UNKNOWN_LIFE if found.expiration is None else found.expiration - now
        margin = timedelta(0) if found.expiration is None else min(REFRESH_BEFORE, life / _SHARE_LEFT)
        self._renew_at = now + max(life - margin, _PAUSE)
        self._kept = found, version
        return found

    def _expired(self, credentials: Credentials) -> bool:
        return ends_within(credentials, timedelta(0), self._now())

    def __getstate__(self) -> dict[str, Any]:
        hidden = {"_now", "_lock", "_kept", "_renew_at"}
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RenewedSource.__init__(self)
        self.__dict__.update(state)
