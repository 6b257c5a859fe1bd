"""A run or an upload on the command line: output whose reader disappears, signals, and other processes' view of it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from ossconsole.cli.output import say
from ossconsole.config.profiles import OnHangup, Profile

if TYPE_CHECKING:
    from ossconsole.dataset.upload.job import UploadJob
    from ossconsole.telemetry.events import Event
    from ossconsole.training.remote.control import ControllableRun


class Stoppable(Protocol):
    """Work that signals stop. `interactive`: whether a user watches it and can act on problems."""

    interactive: bool

    def stop(self) -> None:
        """Requests the end; returns immediately."""


@dataclass(frozen=True)
class CommandWork:
    """The work of a command that consoles can see and control (`ossconsole.training.remote.control.ControlTarget`)."""

    profile: Profile | None
    own_run: ControllableRun | None = None
    own_upload: UploadJob | None = None


class Printing:
    """Prints events with `show` until nobody can read them.

    A lost terminal does not end the run: SIGHUP decides. A closed pipe does, through `stop`: its reader has finished.
    A full disk does not: the first missing line causes a warning through `warn`.
    """

    def __init__(self, show: Callable[[Event], None]) -> None:
        self._show = show
        self._over = self._warned = False
        self.stop: Callable[[], None] = lambda: None
        self.warn: Callable[[str, str], None] = lambda message, remedy: say(f"{message} {remedy}", err=True)

    def __call__(self, event: Event) -> None:
        if self._over:
            return
        try:
            self._show(event)
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.EIO, errno.EBADF}:
                self._warn_once(error)
                return
            self._over = True
            # The buffered rest must not fail once more when the program ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno == errno.EPIPE:
                self.stop()

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True  # first: the warning is an event too
            self.warn(f"The output is incomplete: {error.strerror}.", "Free space on its disk; the run continues.")


@contextmanager
def stopping_on_signals(
    run: Stoppable, on_hangup: OnHangup, *, message: str = "Stopping after this step, with a checkpoint."
) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM stops the run and prints `message`; the second raises KeyboardInterrupt.

    Yields the list of the signals received. SIGHUP stops the run, or lets it continue without the terminal, depending
    on `on_hangup`; under nohup it does nothing.
    """
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        run.stop()
        # `2>&1 | tee LOG`: Ctrl-C has ended tee too, and an error raised here would end the run without a checkpoint.
        with suppress(OSError):
            say(message, err=True)

    def hang_up(number: int, _frame: FrameType | None) -> None:
        _let_go_of_terminal()
        run.interactive = False
        # A dropped connection may send it several times: it never counts as the second request.
        if on_hangup is OnHangup.STOP and not received:
            received.append(number)
            run.stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _let_go_of_terminal() -> None:
    """Redirects output from the lost terminal to the log; files and pipes stay as they are."""
    from ossconsole.config.files import native_log_path, open_private

    log = open_private(native_log_path())
    for fd in (1, 2):
        if os.isatty(fd) or _is_dead(fd):
            os.dup2(log, fd)
    os.close(log)


def _is_dead(fd: int) -> bool:
    """Whether writing fails: a terminal that has hung up is no longer recognised as one."""
    try:
        os.write(fd, b"")
    except OSError:
        return True
    return False
