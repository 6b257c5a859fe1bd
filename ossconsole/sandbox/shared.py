"""One sandbox for all who use a folder: the first starts it, the next find it, and it ends with the last of them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import READ_WRITE, open_private, read_private
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.process import (
    INFO_NAME,
    LOCK_NAME,
    RunningSandbox,
    SandboxError,
    SandboxInfo,
    end,
    spawn,
)
from ossconsole.sandbox.users import Users

_LOOK_S = 0.05


class SharedSandbox(RunningSandbox):
    """A running sandbox that other consoles and commands may use as well; see `open`."""

    def __init__(
        self, info: SandboxInfo, directory: Path, users: Users, process: subprocess.Popen[bytes] | None
    ) -> None:
        super().__init__(info, directory)
        self._users = users
        self._process = process

    @classmethod
    def open(cls, directory: Path, *, timeout_s: float = 20.0) -> SharedSandbox:
        """The sandbox on `directory`, started where none answers. Raises SandboxError, SettingsError."""
        deadline = time.monotonic() + timeout_s
        users = Users(directory)
        try:
            while time.monotonic() < deadline:
                if users.join():
                    found = _running(directory)
                    if found is not None:
                        return cls(found, directory, users, None)
                    if not _served(directory):
                        return cls._start(directory, users, deadline)
                time.sleep(_LOOK_S)
        except BaseException:
            users.close()
            raise
        users.close()
        raise SandboxError(
            f"The sandbox on {directory} is in use by another process and does not answer.",
            remedy=f"End that process: `fuser {directory / LOCK_NAME}` names it.",
        )

    @classmethod
    def _start(cls, directory: Path, users: Users, deadline: float) -> SharedSandbox:
        try:
            process, info = spawn(directory, ["--until-unused"], deadline - time.monotonic())
        except SandboxError:
            # Two may start at once; the folder's lock lets one of them through.
            if not _served(directory):
                raise
            while (found := _running(directory)) is None:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)
            return cls(found, directory, users, None)
        return cls(info, directory, users, process)

    def close(self) -> None:
        """Use it no more; ends it where this process has started it and nobody else uses it."""
        if self._users.leave() and self._process is not None:
            end(self._process)
        self._users.close()

    def __enter__(self) -> SharedSandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _running(directory: Path) -> SandboxInfo | None:
    """The address of the sandbox that serves the folder, None where none answers."""
    if not _served(directory):
        return None
    try:
        info = SandboxInfo.decode(read_private(directory / INFO_NAME) or b"")
        SandboxControl(info).status()
    except (msgspec.DecodeError, RecursionError, ConsoleError):
        return None
    return info


def _served(directory: Path) -> bool:
    """Whether a sandbox holds the folder."""
    descriptor = open_private(directory / LOCK_NAME, READ_WRITE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
