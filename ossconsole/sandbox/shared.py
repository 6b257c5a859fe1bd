"""One sandbox per folder, shared by all processes that use it: the first starts it, the last ends it.

Each user of the folder holds one shared lock, which the kernel releases however the process ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
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


log = logging.getLogger(__name__)

_LOOK_S = 0.05
_WATCH_S = 0.5
_REAP_S = 1.0  # from the release of its lock to the end of its process
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 15.0  # between two tries to start it again
_RESTART_TIMEOUT_S = 20.0


class SharedSandbox(RunningSandbox):
    """A running sandbox that other consoles and commands may use as well; see `open`.

    Its process may end, such as by a signal, while it is in use. That is told within seconds, and it is started again
    on the same port; its data is on disk. `tell` is called with a message and a remedy, from another thread.
    """

    def __init__(
        self, info: SandboxInfo, directory: Path, users: Users, process: subprocess.Popen[bytes] | None
    ) -> None:
        super().__init__(info, directory)
        self.tell: Callable[[str, str], None] = _log
        self._users = users
        self._process = process
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="sandbox-watch", daemon=True).start()

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
                        info, process = _start_first(directory, deadline)
                        return cls(info, directory, users, process)
                time.sleep(_LOOK_S)
        except BaseException:
            users.close()
            raise
        users.close()
        raise SandboxError(
            f"The sandbox on {directory} is in use by another process and does not answer.",
            remedy=f"End that process: `fuser {directory / LOCK_NAME}` names it.",
        )

    def close(self) -> None:
        """Use it no more; ends it where this process has started it and nobody else uses it."""
        self._closed.set()
        if self._users.leave() and self._process is not None:
            end(self._process)
        self._users.close()

    def __enter__(self) -> SharedSandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The thread that watches it

    def _watch(self) -> None:
        try:
            while not self._closed.wait(_WATCH_S):
                if not _served(self.directory) and not self._closed.is_set():
                    self._tell_end()
                    self._bring_back()
        except OSError as error:
            self.tell(
                f"The embedded sandbox is not watched any more: {self.directory}: {error.strerror}.",
                "Start the command or the console again where its requests fail.",
            )

    def _tell_end(self) -> None:
        cause, hint = self._cause()
        if self.info.shared:
            remedy = "It is started again on the same port; its data is on disk."
        else:
            remedy = f"Start it again: `ossconsole sandbox --dir {self.directory} --port {self.info.port}`."
        self.tell(f"The embedded sandbox (pid {self.info.pid}) ended: {cause}.", f"{hint}{remedy}")

    def _cause(self) -> tuple[str, str]:
        """Why the process ended, as far as can be known, and what to look at."""
        if self._process is None:
            return "its process does not exist any more", f"Its log is {self.log_path}. "
        try:
            code = self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            return "it does not hold its folder any more", f"Its log is {self.log_path}. "
        if code == -signal.SIGKILL:
            return "killed by SIGKILL", "If nobody did that, memory is short: `dmesg` tells. "
        if code < 0:
            return f"killed by {signal.Signals(-code).name}", f"Its log is {self.log_path}. "
        return f"exit code {code}", f"Its log is {self.log_path}. "

    def _bring_back(self) -> None:
        """Waits until it answers again on its port, and starts it where that is for its users to do."""
        pause_s, told = _FIRST_PAUSE_S, ""
        while not self._closed.is_set():
            try:
                if self._is_back():
                    self.tell(f"The embedded sandbox runs again (pid {self.info.pid}).", "")
                    return
            except SandboxError as error:
                if error.message != told:
                    told = error.message
                    self.tell(error.message, error.remedy)
            self._closed.wait(pause_s)
            pause_s = min(_LAST_PAUSE_S, pause_s * 2)

    def _is_back(self) -> bool:
        """Raises SandboxError where it cannot be started, or answers somewhere else."""
        process = None
        found = _running(self.directory)
        if found is None and self.info.shared and not _served(self.directory):
            found, process = _start(self.directory, self.info.port, time.monotonic() + _RESTART_TIMEOUT_S)
        if found is None:
            return False
        if found.endpoints != self.info.endpoints:
            raise SandboxError(
                f"The embedded sandbox was started on port {found.port}, and this process uses {self.info.port}.",
                remedy="Start this command or console again.",
            )
        self.info, self._process = found, process
        if process is not None and self._closed.is_set():
            end(process)
        return True


def _log(message: str, remedy: str) -> None:
    log.warning("%s %s", message, remedy)


def _start_first(directory: Path, deadline: float) -> tuple[SandboxInfo, subprocess.Popen[bytes] | None]:
    """Starts it on the port of one that was killed, where it can, as others may still use that. See `_start`."""
    try:
        port = SandboxInfo.decode((directory / INFO_NAME).read_bytes()).port
        return _start(directory, port, deadline)
    except (OSError, msgspec.DecodeError, SandboxError):
        return _start(directory, 0, deadline)


def _start(directory: Path, port: int, deadline: float) -> tuple[SandboxInfo, subprocess.Popen[bytes] | None]:
    """Its address and its process, which is None where another process was faster. Raises SandboxError."""
    try:
        process, info = spawn(directory, ["--port", str(port), "--until-unused"], deadline - time.monotonic())
    except SandboxError:
        # Two may start at once; the folder's lock lets one of them through.
        if not _served(directory):
            raise
        while (found := _running(directory)) is None:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)
        return found, None
    return info, process


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
