"""Writing private files: whole or not at all, and readable by nobody else at any moment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ossconsole.config.errors import SettingsError


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` with `data` in one step; the file has `mode` from its first moment. Raises SettingsError.

    A symbolic link is followed, so that a file kept elsewhere stays there. Missing folders are made with 0700.
    """
    target = path.resolve()
    temporary: str | None = None
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # 0600 by its contract
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
        temporary = None
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}.", remedy="Free disk space, or make its folder writable."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()


def read_text(path: Path) -> str | None:
    """The file's text, None where there is none. Raises SettingsError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(
            f"{path} cannot be read: {reason}.", remedy=f"Make it readable: chmod u+r {path}"
        ) from error
