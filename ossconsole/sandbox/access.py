"""Whether a caller may do what it asks for."""

from __future__ import annotations

from ossconsole.sandbox.errors import OssError
from ossconsole.sandbox.incoming import Incoming, Target
from ossconsole.sandbox.keys import AccessKey, Action
from ossconsole.sandbox.store import Store


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
