"""Object names turned into paths that stay inside a folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text

_MAX_COMPONENT_BYTES = 255  # of ext4, XFS and overlayfs
_KEPT_BYTES = 200  # of a longer component; the rest becomes a hash
_LOOKS_ENCODED = re.compile(r"%(?=[0-9A-Fa-f]{2}|$)")


def local_component(name: str) -> str:
    """One part of a key as a file name: never empty, `.`, `..` or too long, and without control characters.

    Different parts give different names: what cannot stay is percent-encoded, and so is a `%` that would read as that.
    """
    if not name:
        return "%"
    if set(name) == {"."} and len(name) <= 2:
        return "%2E" * len(name)
    encoded = _LOOKS_ENCODED.sub("%25", name)
    if not encoded.isprintable():
        encoded = "".join(c if c.isprintable() else _percent(c) for c in encoded)
    raw = encoded.encode()
    if len(raw) <= _MAX_COMPONENT_BYTES:
        return encoded
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return raw[:_KEPT_BYTES].decode(errors="ignore") + "~" + digest


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def local_path(folder: Path, relative_key: str) -> Path:
    """Where `relative_key` belongs below `folder`; purely lexical, see `check_inside` for links on the disk."""
    return folder.joinpath(*(local_component(part) for part in relative_key.split("/")))


def check_inside(folder: Path, path: Path) -> None:
    """Raises ConsoleError when a symbolic link on the disk would lead `path` out of `folder`."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ConsoleError(
            f"{safe_text(str(path))} leads out of {folder} through a symbolic link.",
            remedy="Choose another folder, or remove the link.",
        )
