"""A run on the command line: its prints may lose their reader, and signals end it in an orderly way."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from ossconsole.cli.output import say
from ossconsole.config.profiles import OnHangup

if TYPE_CHECKING:
    from ossconsole.telemetry.events import Event


class Stoppable(Protocol):
    """What signals stop. `interactive` tells that somebody watches."""

    interactive: bool

    def stop(self) -> None: ...


class Printing:
    """Prints events with `show` until nobody is left to read them.

    A terminal that is gone is no reason to end a run, and SIGHUP decides about it. A pipe that is closed is one: who
    read it has seen enough.
    """

    def __init__(self, show: Callable[[Event], None]) -> None:
        self._show = show
        self._over = False
        self.stop: Callable[[], None] = lambda: None

    def __call__(self, event: Event) -> None:
        if self._over:
            return
        try:
            self._show(event)
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.EIO, errno.EBADF}:
                raise
            self._over = True
            # What is still buffered must not fail once more when the program ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno == errno.EPIPE:
                self.stop()


@contextmanager
def stopping_on_signals(
    run: Stoppable, on_hangup: OnHangup, *, words: str = "Stopping after this step, with a checkpoint."
) -> Iterator[list[int]]:
    """Turns the first SIGINT or SIGTERM into a stop, said in `words`; the second ends at once. Gives what came.

    SIGHUP stops the run, or lets it go on without the terminal, as `on_hangup` says; under nohup it does nothing.
    """
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        run.stop()
        say(words, err=True)

    def hang_up(number: int, _frame: FrameType | None) -> None:
        _let_go_of_terminal()
        run.interactive = False
        # A dropped connection brings it from several sides: it never counts as the second request.
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
    """Sends to the log what would go to the terminal, which is gone; files and pipes stay what they are."""
    from ossconsole.config.files import open_private
    from ossconsole.terminal.logs import native_log_path

    log = open_private(native_log_path())
    for fd in (1, 2):
        if os.isatty(fd) or _is_dead(fd):
            os.dup2(log, fd)
    os.close(log)


def _is_dead(fd: int) -> bool:
    """Whether it was a terminal that has hung up: it is none any more, and writing to it fails."""
    try:
        os.write(fd, b"")
    except OSError:
        return True
    return False
