"""Credentials: a key pair with its origin and expiry, the `Secret` type, and the environment of child processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import resource_tracker
from typing import Any, NoReturn
from urllib.parse import quote

from ossconsole.config.errors import ConsoleError
from ossconsole.config.spawning import safe_path

MASK = "••••••••"


class Secret:
    """A key secret or token; only `reveal()` returns its text.

    Formatting, `repr`, tracebacks with locals and JSON encoders get the mask. It can be pickled, because the reader
    processes get their credentials through a private pipe (never through argv or the environment).
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text in clear: only to sign with, or to hand to a process that signs."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __iter__(self) -> NoReturn:
        raise TypeError("a Secret is not iterable; use reveal()")


# Shorter secrets would mask ordinary words.
_MIN_SECRET_LENGTH = 4
# A run of weeks renews its keys many times: the oldest, which ended long ago, are forgotten.
_MAX_TEXTS = 1000
_texts: dict[str, None] = {}  # ordered: the latest last
_texts_lock = threading.Lock()


def register_secret(secret: Secret | None) -> None:
    """Makes the log, crash reports and the screen's view of logs mask this secret, also in its URL-encoded form."""
    if secret is None or len(text := secret.reveal()) < _MIN_SECRET_LENGTH:
        return
    with _texts_lock:
        for form in (text, quote(text, safe="")):
            _texts.pop(form, None)
            _texts[form] = None
        while len(_texts) > _MAX_TEXTS:
            del _texts[next(iter(_texts))]


def registered_texts() -> list[str]:
    """The texts to mask, the longest first: one secret may be a substring of another."""
    with _texts_lock:
        return sorted(_texts, key=len, reverse=True)


def reveal_secret(value: Any) -> str:
    """msgspec's `enc_hook` for private files and pipes: a Secret in clear. Raises NotImplementedError for any other."""
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def conceal_secret(kind: type, value: Any) -> Secret:
    """msgspec's `dec_hook`, the inverse of `reveal_secret`."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise NotImplementedError(f"{kind.__name__} has no JSON form")


def mask_key_id(access_key_id: str) -> str:
    """An AccessKey ID shortened for the screen: recognisable, but not usable."""
    if len(access_key_id) <= 8:
        return access_key_id[:2] + "…"
    return f"{access_key_id[:4]}…{access_key_id[-4:]}"


@dataclass(frozen=True)
class Credentials:
    """An AccessKey pair, with a security token for a temporary one (STS).

    `source` is the text for the screen. `expiration` is UTC, None for no expiry.
    """

    access_key_id: str
    access_key_secret: Secret
    security_token: Secret | None = None
    expiration: datetime | None = None
    source: str = ""

    def __repr__(self) -> str:
        return f"Credentials({mask_key_id(self.access_key_id)}, source={self.source!r})"


def register_credentials(credentials: Credentials) -> None:
    """Registers the secret and the token with `register_secret`."""
    register_secret(credentials.access_key_secret)
    register_secret(credentials.security_token)


class NoCredentialsError(ConsoleError):
    """No source has a key pair; `looked` lists the sources, one line each.

    `named` is the only source that the profile uses, "" for one that uses all: a key elsewhere would not be used then.
    """

    exit_code = 2

    def __init__(self, looked: list[str], named: str = "") -> None:
        remedy = "Enter an AccessKey on the Setup screen, or set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET."
        if named:
            remedy = f'The profile uses credentials = "{named}" alone: create them there, or set it to "auto".'
        super().__init__(f"No credentials were found. Checked: {'; '.join(looked)}.", remedy=remedy)
        self.looked = looked


CredentialSource = Callable[[], Credentials]
"""Returns the current key pair; called again for each batch of requests, so that temporary ones can be refreshed."""


_PRIVATE = ("OSS_", "ALIBABA_CLOUD_", "ALIBABACLOUD_", "ALICLOUD_")


def without_credentials() -> dict[str, str]:
    """This process's environment without the variables that may hold credentials."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}


SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""For the environment of our own processes, which `python -m` starts: a file such as grp.py in the current folder must
not be imported in place of Python's own. From Python 3.11 on."""


def start_resource_tracker() -> None:
    """Starts multiprocessing's helper without credentials: with the first process it would inherit the environment.

    Call it on the main thread, before another thread reads the environment.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PRIVATE)}
    try:
        with safe_path():
            resource_tracker.ensure_running()
    finally:
        os.environ.update(hidden)
