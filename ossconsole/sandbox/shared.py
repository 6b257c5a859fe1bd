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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import READ_WRITE, open_private, read_private, try_lock
from ossconsole.config.text import signal_name
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.process import (
    INFO_NAME,
    LOCK_NAME,
    SLOWED_NAME,
    RunningSandbox,
    SandboxError,
    SandboxInfo,
    end,
    spawn,
)


class Users:
    """The shared lock that each user of a folder holds. Raises SettingsError where it cannot be opened."""

    def __init__(self, directory: Path) -> None:
        self._fd = open_private(directory / "users", READ_WRITE)

    def join(self) -> bool:
        """Registers this process as a user; False while the last user is ending the sandbox."""
        return try_lock(self._fd, fcntl.LOCK_SH)

    def leave(self) -> bool:
        """Unregisters this process; True where no other user is left, and then none can join before `close`."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return try_lock(self._fd)

    def close(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._fd >= 0:
            # Closing does not release it while a process that was forked from this one lives.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1


log = logging.getLogger(__name__)

_POLL_S = 0.05
_WATCH_S = 0.5
_REAP_S = 1.0  # from the release of its lock to the end of its process
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 15.0  # between two attempts to restart it
_RESTART_TIMEOUT_S = 20.0


class SharedSandbox(RunningSandbox, AbstractContextManager["SharedSandbox"]):
    """A running sandbox that other consoles and commands may use as well; see `open`.

    A thread watches its process. When that ends (by a signal, say), `notify` is called from that thread with a message
    and a remedy, and the sandbox is restarted on the same port; its data is on disk.
    """

    def __init__(
        self, info: SandboxInfo, directory: Path, users: Users, process: subprocess.Popen[bytes] | None
    ) -> None:
        super().__init__(info, directory)
        self.notify: Callable[[str, str], None] = _log
        self._users = users
        self._process = process
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="sandbox-watch", daemon=True).start()

    @classmethod
    def open(cls, directory: Path, *, timeout_s: float = 20.0) -> SharedSandbox:
        """The sandbox on `directory`, started where none is running. Raises SandboxError, SettingsError."""
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
                time.sleep(_POLL_S)
        except BaseException:
            users.close()
            raise
        users.close()
        raise SandboxError(
            f"The sandbox on {directory} is in use by another process and does not answer.",
            remedy=f"End that process: `fuser {directory / LOCK_NAME}` names it.",
        )

    def slowed_words(self) -> str:
        """That a demo has slowed down the standard endpoint, for its other users; "" where none has."""
        try:
            speed = SandboxControl(self.info).status().slowed_to
        except ConsoleError:  # it is being restarted: then at the usual speed
            return ""
        if speed is None:
            return ""
        return (
            f"A demo has slowed down the sandbox's standard endpoint to {speed:.0f} objects/s (simulated), "
            "until the demo's run ends."
        )

    def close(self) -> None:
        """Leaves the sandbox; ends its process where this process started it and no other uses it."""
        self._closed.set()
        if self._users.leave() and self._process is not None:
            end(self._process)
        self._users.close()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # The watching thread

    def _watch(self) -> None:
        try:
            while not self._closed.wait(_WATCH_S):
                if not _served(self.directory) and not self._closed.is_set():
                    self._notify_end()
                    self._wait_until_back()
        except (OSError, ConsoleError) as error:
            self.notify(
                f"The embedded sandbox is no longer watched: {error}",
                "Restart the command or the console if its requests fail.",
            )

    def _notify_end(self) -> None:
        cause, hint = self._cause()
        if self.info.shared:
            remedy = "It is restarted on the same port; its data is on disk."
        else:
            remedy = f"Restart it: `ossconsole sandbox --dir {self.directory} --port {self.info.port}`."
        self.notify(f"The embedded sandbox (pid {self.info.pid}) ended: {cause}.", f"{hint}{remedy}")

    def _cause(self) -> tuple[str, str]:
        """Why the process ended, as far as is known, and where to look."""
        log = f"Its log is {self.log_path}. "
        if self._process is None:
            return "its process no longer exists", log
        try:
            code = self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            return "it released its folder", log
        if code == -signal.SIGKILL:
            return "killed by SIGKILL", "Perhaps the machine ran out of memory: see `dmesg`. "
        if code < 0:
            return f"killed by {signal_name(-code)}", log
        return f"exit code {code}", log

    def _wait_until_back(self) -> None:
        """Waits until it answers on its port again; one that its users share is restarted."""
        pause_s, reported = _FIRST_PAUSE_S, ""
        while not self._closed.is_set():
            try:
                if self._is_back():
                    self.notify(f"The embedded sandbox is running again (pid {self.info.pid}).", "")
                    return
            except ConsoleError as error:
                if error.message != reported:
                    reported = error.message
                    self.notify(error.message, error.remedy)
            self._closed.wait(pause_s)
            pause_s = min(_LAST_PAUSE_S, pause_s * 2)

    def _is_back(self) -> bool:
        """Raises ConsoleError where it cannot be started, or answers on another port."""
        process = None
        found = _running(self.directory)
        if found is None and self.info.shared and not _served(self.directory):
            found, process = _start(self.directory, self.info.port, time.monotonic() + _RESTART_TIMEOUT_S)
        if found is None:
            return False
        if found.endpoints != self.info.endpoints:
            raise SandboxError(
                f"The embedded sandbox was started on port {found.port}, and this process uses {self.info.port}.",
                remedy="Restart this command or console.",
            )
        self.info, self._process = found, process
        if process is not None and self._closed.is_set():
            end(process)
        return True


@contextmanager
def slowed_down(sandbox: RunningSandbox, objects_per_s: float) -> Iterator[None]:
    """A slower standard endpoint, for all users of the sandbox, until the end of the block or of this process.

    Raises ConsoleError where another process has slowed it down, or the sandbox does not answer.
    """
    descriptor = open_private(sandbox.directory / SLOWED_NAME, READ_WRITE)
    try:
        if not try_lock(descriptor):
            raise SandboxError("Another process has slowed down the sandbox.")
        SandboxControl(sandbox.info).set_standard_speed(objects_per_s, while_locked=True)
        try:
            yield
        finally:
            SandboxControl(sandbox.info).restore_standard_speed()
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked from this one may have it open, too
        os.close(descriptor)


def _log(message: str, remedy: str) -> None:
    log.warning("%s %s", message, remedy)


def _start_first(directory: Path, deadline: float) -> tuple[SandboxInfo, subprocess.Popen[bytes] | None]:
    """Starts it, where possible on the port of one that was killed, which others may still use. See `_start`."""
    try:
        port = SandboxInfo.decode((directory / INFO_NAME).read_bytes()).port
        return _start(directory, port, deadline)
    except (OSError, msgspec.DecodeError, SandboxError):
        return _start(directory, 0, deadline)


def _start(directory: Path, port: int, deadline: float) -> tuple[SandboxInfo, subprocess.Popen[bytes] | None]:
    """Its address, and its process: None where another process started it first. Raises SandboxError."""
    try:
        process, info = spawn(directory, ["--port", str(port), "--until-unused"], deadline - time.monotonic())
    except SandboxError:
        # Two processes may start one simultaneously; the folder's lock admits one.
        if not _served(directory):
            raise
        while (found := _running(directory)) is None:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
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
        return not try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
