"""Turns signals and a lost terminal into one orderly exit."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from ossconsole.terminal.tty import OwnedTerminal, terminal_gone

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NUDGES_S = (0.05, 0.2, 1.0)
"""When the main thread is woken after a signal. Python calls a handler only in the main thread: where that was just
about to sleep (seen in 2 of 5,000 trials), or the kernel delivered the signal to another thread, it would continue to
sleep."""

_WATCH_S = 2.0
"""How often a terminal that sends no hang-up is tested."""


class ExitSignals:
    """While entered, SIGINT, SIGTERM, SIGHUP and a lost terminal (as SIGHUP) call the attached function.

    Exit codes are 128 + the signal's number. With nothing attached the main thread gets `SystemExit(code)`. An App that
    has not ended after `grace_s` stops drawing, so that a terminal that does not read cannot block it; another SIGINT
    or SIGTERM after that restores the terminal and ends the process. `cause` is the text for the user, empty before a
    signal. Enter it on the main thread; from then on no signal is lost. On exit SIGHUP gets its earlier handler, or is
    ignored with `ignore_hangups_afterwards`.
    """

    def __init__(
        self,
        terminal: OwnedTerminal | None = None,
        *,
        grace_s: float = 2.0,
        ignore_hangups_afterwards: bool = False,
    ) -> None:
        self.cause = ""
        self._terminal = terminal
        self._grace = grace_s
        self._ignore_hangups = ignore_hangups_afterwards
        self._call: Callable[[int], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first: tuple[int, float] | None = None
        self._old: dict[signal.Signals, Any] = {}
        self._wake_read, self._wake_write = -1, -1
        self._old_wakeup = -1
        self._watcher: threading.Thread | None = None
        self._main = threading.get_ident()

    def attach(self, call: Callable[[int], object], loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Calls `call(code)` for a signal from now on: on `loop` where given, else inside the signal handler."""
        self._first = None
        self._loop = loop
        self._call = call

    def detach(self) -> None:
        """Removes the attached function."""
        self._first = None
        self._call = self._loop = None

    def __enter__(self) -> ExitSignals:
        self._main = threading.get_ident()
        # A pipe wakes the watcher: unlike a lock, a handler that interrupts another one may use it. Python writes a
        # signal's number to it immediately, in any thread.
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watcher = threading.Thread(target=self._run_watch, name="ossconsole-signals", daemon=True)
        self._watcher.start()
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._old = {signal.SIGURG: signal.signal(signal.SIGURG, _do_nothing)}
        self._old |= {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._watcher is not None  # noqa: S101
        signal.set_wakeup_fd(self._old_wakeup)
        # Before the handlers are restored: a late hang-up from the watcher would end the process.
        wake, self._wake_write = self._wake_write, -1
        os.close(wake)
        self._watcher.join(1.0)
        if self._ignore_hangups:
            self._old[signal.SIGHUP] = signal.SIG_IGN
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is not None:
            first, since = self._first
            # A dropped connection may send SIGHUP several times; that is not an impatient user.
            if number == first and number != signal.SIGHUP and now - since > self._grace:
                self._end_now(number)
            return
        lost = number == signal.SIGHUP and self._terminal is not None and self._terminal.lost
        self.cause = "the terminal is gone" if lost else f"{signal.Signals(number).name} received"
        call, loop = self._call, self._loop
        self._first = number, now
        if call is None or (loop is not None and loop.is_closed()):
            raise SystemExit(128 + number)
        self._wake()
        if loop is None:
            call(128 + number)
        else:
            loop.call_soon_threadsafe(call, 128 + number)

    def _end_now(self, number: int) -> None:
        if self._terminal is not None:
            self._terminal.restore()
        os._exit(128 + number)

    def _wake(self) -> None:
        if self._wake_write >= 0:
            os.write(self._wake_write, b"\0")

    def _run_watch(self) -> None:
        terminal, reported = self._terminal, False
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        if terminal is not None:
            poller.register(0, 0)
        nudges: list[float] = []
        try:
            while True:
                ready = dict(poller.poll(self._wait_ms(nudges)))
                numbers = os.read(self._wake_read, 512) if ready.get(self._wake_read, 0) else None
                if numbers == b"":
                    return
                now = time.monotonic()
                if numbers and any(number in numbers for number in _SIGNALS):
                    nudges = [now + after for after in _NUDGES_S]
                if nudges and now >= nudges[0]:
                    nudges.pop(0)
                    signal.pthread_kill(self._main, signal.SIGURG)
                if terminal is not None and not reported and terminal_gone(0):
                    reported = True
                    poller.unregister(0)
                    if self._first is None:
                        signal.pthread_kill(self._main, signal.SIGHUP)
                first = self._first
                if terminal is not None and first is not None and now - first[1] >= self._grace:
                    terminal.abandon()
        finally:
            os.close(self._wake_read)

    def _wait_ms(self, nudges: list[float]) -> float:
        longest = _WATCH_S if self._first is None else min(_WATCH_S, self._grace / 2)
        return max(0.0, min([longest, *(at - time.monotonic() for at in nudges[:1])])) * 1000


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """The handler of a signal that only wakes the main thread."""
