"""The sandbox's key pairs (the owner's, restricted and temporary ones) and their permissions."""

from __future__ import annotations

import enum
import logging
import secrets
import string
import time
from pathlib import Path

import msgspec

from ossconsole.config.credentials import Secret, conceal_secret, reveal_secret
from ossconsole.config.files import read_private, set_aside, write_private
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import IncomingRequest, Resource
from ossconsole.sandbox.store import SandboxStore

log = logging.getLogger(__name__)

_EXPIRED_KEPT_S = 86_400.0
_ALPHABET = string.ascii_letters + string.digits


class Permission(enum.Enum):
    """The permission that an operation needs."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    MANAGE = "manage"


class Role(str, enum.Enum):
    """A named set of permissions."""

    OWNER = "owner"
    NO_DELETE = "no-delete"
    READ_ONLY = "read-only"
    NO_LIST_BUCKETS = "no-list-buckets"


_DENIED: dict[Role, frozenset[Permission]] = {
    Role.OWNER: frozenset(),
    Role.NO_DELETE: frozenset({Permission.DELETE, Permission.MANAGE}),
    Role.READ_ONLY: frozenset({Permission.WRITE, Permission.DELETE, Permission.MANAGE}),
    Role.NO_LIST_BUCKETS: frozenset({Permission.MANAGE}),
}


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair. `token` and `expires_at` (Unix seconds) are set on temporary ones; `prefix` limits object keys."""

    id: str
    secret: Secret
    role: Role = Role.OWNER
    prefix: str = ""
    token: Secret | None = None
    expires_at: float | None = None

    def allows(self, action: Permission, key: str) -> bool:
        """Whether this key has the permission for the object (or, to list, the prefix) `key`."""
        return action not in _DENIED[self.role] and (action is Permission.MANAGE or key.startswith(self.prefix))


class KeyRing:
    """The keys of one sandbox folder, stored in a private file (mode 0600)."""

    def __init__(self, path: Path, keys: dict[str, AccessKey]) -> None:
        self._path = path
        self._keys = keys

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """The keys in `path`; a missing file gets an owner's key, a damaged file is set aside.

        Raises SettingsError where the file cannot be read or written.
        """
        keys = _read(path)
        if not keys:
            ring = cls(path, {})
            ring.issue(Role.OWNER)
            return ring
        # An expired key gets SecurityTokenExpired for a day; later it is unknown, as on the service.
        oldest = time.time() - _EXPIRED_KEPT_S
        return cls(path, {key.id: key for key in keys if key.expires_at is None or key.expires_at > oldest})

    @property
    def owner(self) -> AccessKey:
        """The key that may do everything, and control the sandbox."""
        return next(iter(self._keys.values()))

    def get(self, access_key_id: str) -> AccessKey | None:
        """The key with this ID, None for an unknown one."""
        return self._keys.get(access_key_id)

    def issue(self, role: Role, *, prefix: str = "", expires_at: float | None = None) -> AccessKey:
        """Creates and stores a key; with `expires_at` (Unix seconds) a temporary one, with a security token."""
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
        """Deletes the key. Raises KeyError for an unknown key, and for the owner's."""
        if access_key_id == self.owner.id:
            raise KeyError(access_key_id)
        del self._keys[access_key_id]
        self._save()

    def _save(self) -> None:
        write_private(self._path, msgspec.json.encode(list(self._keys.values()), enc_hook=reveal_secret))


def _read(path: Path) -> list[AccessKey]:
    data = read_private(path)
    if data is None:
        return []
    try:
        keys = msgspec.json.decode(data, type=list[AccessKey], dec_hook=conceal_secret)
    except (msgspec.DecodeError, RecursionError):
        keys = []
    if not keys or keys[0].expires_at is not None:  # the owner's key is the first one, and never expires
        log.warning("The sandbox's key file was damaged. It is now %s, and a new key was created.", set_aside(path))
        return []
    return keys


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def authorise(
    store: SandboxStore, action: Permission, key: AccessKey | None, target: Resource, incoming: IncomingRequest
) -> None:
    """Raises AccessDenied unless the caller has the permission. `key` is None for an anonymous caller."""
    if key is None:
        _authorise_anonymous(store, action, target)
        return
    if action is Permission.DELETE and not target.key:
        # A batch delete names its keys in the body, where each is checked.
        return
    name = incoming.query.get("prefix", "") if action is Permission.LIST and not target.key else target.key
    if not key.allows(action, name):
        raise OssError("AccessDenied", "You have no right to access this object because of your authorization policy.")


def _authorise_anonymous(store: SandboxStore, action: Permission, target: Resource) -> None:
    acl = store.bucket(target.bucket).acl if target.bucket else "private"
    if target.key and action is Permission.READ:
        found = store.index.get(target.bucket, target.key)
        if found is not None and found.attributes.acl != "default":
            acl = found.attributes.acl
    allowed = {
        Permission.READ: acl.startswith("public-read"),
        Permission.LIST: acl.startswith("public-read") and not target.key,
        Permission.WRITE: acl == "public-read-write" and bool(target.key),
        Permission.DELETE: acl == "public-read-write" and bool(target.key),
    }
    if not allowed.get(action):
        raise OssError("AccessDenied", "Anonymous access is forbidden for this operation.", ec="0003-00000002")
