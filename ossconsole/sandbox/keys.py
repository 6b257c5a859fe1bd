"""The sandbox's key pairs (the owner's, restricted ones, temporary ones) and what each may do."""

from __future__ import annotations

import enum
import logging
import secrets
import string
import time
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.credentials import Secret
from ossconsole.config.files import read_private, set_aside, write_private
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import Incoming, Target
from ossconsole.sandbox.store import Store

log = logging.getLogger(__name__)

_REMEMBERED_S = 86_400.0
_ALPHABET = string.ascii_letters + string.digits


class Action(enum.Enum):
    """What a request does to the bucket, as far as permissions go."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    MANAGE = "manage"


class Role(str, enum.Enum):
    """What a key may do."""

    OWNER = "owner"
    NO_DELETE = "no-delete"
    READ_ONLY = "read-only"
    NO_LIST_BUCKETS = "no-list-buckets"


_DENIED: dict[Role, frozenset[Action]] = {
    Role.OWNER: frozenset(),
    Role.NO_DELETE: frozenset({Action.DELETE, Action.MANAGE}),
    Role.READ_ONLY: frozenset({Action.WRITE, Action.DELETE, Action.MANAGE}),
    Role.NO_LIST_BUCKETS: frozenset({Action.MANAGE}),
}


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair. `token` and `expires_at` (Unix seconds) are set on temporary ones; `prefix` limits object keys."""

    id: str
    secret: Secret
    role: Role = Role.OWNER
    prefix: str = ""
    token: Secret | None = None
    expires_at: float | None = None

    def allows(self, action: Action, key: str) -> bool:
        """Whether this key may do `action` on the object (or, to list, the prefix) `key`."""
        return action not in _DENIED[self.role] and (action is Action.MANAGE or key.startswith(self.prefix))


class KeyRing:
    """The keys of one sandbox folder, kept in a file that only its owner reads (0600)."""

    def __init__(self, path: Path, keys: dict[str, AccessKey]) -> None:
        self._path = path
        self._keys = keys

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """The keys in `path`, with one owner's key where there is none; a damaged file is set aside.

        Raises SettingsError where the file cannot be read or written.
        """
        keys = _read(path)
        if not keys:
            ring = cls(path, {})
            ring.issue(Role.OWNER)
            return ring
        # For a while a key that has ended is told so; after that it is as unknown as on the service.
        oldest = time.time() - _REMEMBERED_S
        return cls(path, {key.id: key for key in keys if key.expires_at is None or key.expires_at > oldest})

    @property
    def owner(self) -> AccessKey:
        return next(iter(self._keys.values()))

    def get(self, access_key_id: str) -> AccessKey | None:
        return self._keys.get(access_key_id)

    def issue(self, role: Role, *, prefix: str = "", expires_at: float | None = None) -> AccessKey:
        """Make and keep a key; with `expires_at` (Unix seconds) a temporary one that carries a token."""
        temporary = expires_at is not None
        key = AccessKey(
            id=("STS.SBX" if temporary else "SBX") + _random(20),
            secret=Secret(_random(30)),
            role=role,
            prefix=prefix,
            token=Secret(_random(120)) if temporary else None,
            expires_at=expires_at,
        )
        self._keys[key.id] = key
        self._save()
        return key

    def revoke(self, access_key_id: str) -> None:
        """Forget the key; the owner's stays. Raises KeyError when there is no such key."""
        if access_key_id == self.owner.id:
            raise KeyError(access_key_id)
        del self._keys[access_key_id]
        self._save()

    def _save(self) -> None:
        write_private(self._path, msgspec.json.encode(list(self._keys.values()), enc_hook=_reveal))


def _read(path: Path) -> list[AccessKey]:
    data = read_private(path)
    if data is None:
        return []
    try:
        keys = msgspec.json.decode(data, type=list[AccessKey], dec_hook=_conceal)
    except (msgspec.DecodeError, RecursionError):
        keys = []
    if not keys or keys[0].expires_at is not None:  # the owner's comes first, and stays
        log.warning("The sandbox's key file was damaged. It is kept as %s, and a new key is made.", set_aside(path))
        return []
    return keys


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _reveal(value: Any) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def _conceal(kind: type, value: Any) -> Secret:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise NotImplementedError(f"{kind.__name__} has no JSON form")


def authorise(store: Store, action: Action, key: AccessKey | None, target: Target, incoming: Incoming) -> None:
    """Raises AccessDenied. `key` is None for an anonymous caller."""
    if key is None:
        _authorise_anonymous(store, action, target)
        return
    if action is Action.DELETE and not target.key:
        # A batch delete names its keys in the body, where each is checked.
        return
    name = incoming.query.get("prefix", "") if action is Action.LIST and not target.key else target.key
    if not key.allows(action, name):
        raise OssError("AccessDenied", "You have no right to access this object because of your authorization policy.")


def _authorise_anonymous(store: Store, action: Action, target: Target) -> None:
    acl = store.bucket(target.bucket).acl if target.bucket else "private"
    if target.key and action is Action.READ:
        found = store.index.get(target.bucket, target.key)
        if found is not None and found.attributes.acl != "default":
            acl = found.attributes.acl
    allowed = {
        Action.READ: acl.startswith("public-read"),
        Action.LIST: acl.startswith("public-read") and not target.key,
        Action.WRITE: acl == "public-read-write" and bool(target.key),
        Action.DELETE: acl == "public-read-write" and bool(target.key),
    }
    if not allowed.get(action):
        raise OssError("AccessDenied", "Anonymous access is forbidden for this operation.", ec="0003-00000002")
