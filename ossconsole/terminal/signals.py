"""Signals and a lost terminal, turned into one orderly exit."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from ossconsole.terminal.tty import OwnedTerminal, terminal_gone

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ExitSignals:
    """While entered, SIGINT, SIGTERM, SIGHUP and a terminal that is gone (as SIGHUP) call what was attached.

    Exit codes are 128 + the signal's number. With nothing attached the main thread gets `SystemExit(code)`. An App
    that has not ended `grace_s` after it was asked draws no more, so that a terminal that stopped reading cannot hold
    it; SIGINT or SIGTERM once more after that ends the process at once, terminal restored. `cause` says in words what
    happened, empty while nothing did. Enter it on the main thread.
    """

    def __init__(self, terminal: OwnedTerminal | None = None, *, grace_s: float = 2.0, watch_s: float = 2.0) -> None:
        self.cause = ""
        self._terminal = terminal
        self._grace = grace_s
        self._watch = watch_s
        self._call: Callable[[int], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first: tuple[int, float] | None = None
        self._old: dict[signal.Signals, Any] = {}
        self._wake_read, self._wake_write = -1, -1
        self._watcher: threading.Thread | None = None
        self._main = threading.get_ident()

    def attach(self, call: Callable[[int], object], loop: asyncio.AbstractEventLoop | None = None) -> None:
        """From now on ask `call(code)`: on `loop` when given, else inside the signal handler."""
        self._first = None
        self._loop = loop
        self._call = call

    def detach(self) -> None:
        """What was attached has ended."""
        self._first = None
        self._call = self._loop = None

    def __enter__(self) -> ExitSignals:
        self._main = threading.get_ident()
        self._old = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        if self._terminal is not None:
            # A pipe wakes the watcher: unlike locks, it may be written from a handler that interrupts another.
            self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._watcher = threading.Thread(
                target=self._run_watch, args=(self._terminal,), name="ossconsole-terminal", daemon=True
            )
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            # Before the signals are let go: a hang-up that it tells of late would end the process.
            wake, self._wake_write = self._wake_write, -1
            os.close(wake)
            self._watcher.join(1.0)
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is not None:
            first, since = self._first
            # A dropped connection brings SIGHUP from several sides; that is no impatient user.
            if number == first and number != signal.SIGHUP and now - since > self._grace:
                self._end_now(number)
            return
        lost = number == signal.SIGHUP and self._terminal is not None and self._terminal.lost
        self.cause = "the terminal is gone" if lost else f"{signal.Signals(number).name} received"
        call, loop = self._call, self._loop
        if call is None or (loop is not None and loop.is_closed()):
            raise SystemExit(128 + number)
        self._first = number, now
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
            os.write(self._wake_write, b"!")

    def _run_watch(self, terminal: OwnedTerminal) -> None:
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        poller.register(0, 0)
        told = False
        try:
            while True:
                happened = dict(poller.poll(self._wait_ms()))
                if happened.get(self._wake_read, 0) and not os.read(self._wake_read, 512):
                    return
                if not told and terminal_gone(0):
                    told = True
                    poller.unregister(0)
                    if self._first is None:
                        signal.pthread_kill(self._main, signal.SIGHUP)
                first = self._first
                if first is not None and time.monotonic() - first[1] >= self._grace:
                    terminal.abandon()
        finally:
            os.close(self._wake_read)

    def _wait_ms(self) -> float:
        return (self._watch if self._first is None else min(self._watch, self._grace / 2)) * 1000
