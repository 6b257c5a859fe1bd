"""Who uses a sandbox's folder: one shared lock each, which the kernel gives back however a process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ossconsole.config.files import READ_WRITE, open_private


class Users:
    """This process as a user of the folder, or as one who looks whether there is any. Raises SettingsError."""

    def __init__(self, directory: Path) -> None:
        self._fd = open_private(directory / "users", READ_WRITE)

    def join(self) -> bool:
        """Use it from now on; False while the last one is just ending it."""
        return self._lock(fcntl.LOCK_SH)

    def leave(self) -> bool:
        """Use it no more; True when nobody else does, and then nobody joins before `close`."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return self._lock(fcntl.LOCK_EX)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
