"""Private files: created 0600, and never anything wider."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ossconsole.config.errors import ConsoleError


def open_private(path: Path, *, limit_bytes: int | None = None) -> int:
    """Open a log for appending; one larger than `limit_bytes` becomes `<name>.1` first.

    Raises ConsoleError where it cannot be opened or is a link to somewhere else.
    """
    try:
        if limit_bytes is not None and path.exists() and path.stat().st_size > limit_bytes:
            path.replace(path.with_name(path.name + ".1"))
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConsoleError(
            f"The log {path} cannot be written: {error.strerror}.",
            remedy="Free the disk, or set OSSCONSOLE_STATE_DIR to a folder you may write.",
        ) from error
    if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
        os.fchmod(fd, 0o600)
    return fd
