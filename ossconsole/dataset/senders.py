"""Senders: threads that empty a bounded queue; how many of them are at work may change at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ossconsole.dataset.flow import BoundedQueue, Closed, Gate

T = TypeVar("T")


class Senders(Generic[T]):
    """Does one thing with each item that is put; a full queue holds back whoever puts.

    An error of a thread goes to `on_error`, which is expected to call `break_off`.
    """

    def __init__(
        self, do: Callable[[T], None], gate: Gate, number: int, *, limit: int, on_error: Callable[[BaseException], None]
    ) -> None:
        self._do = do
        self._gate = gate
        self._number = number
        self._on_error = on_error
        self._waiting = BoundedQueue[T](limit)
        self._closing = False
        self.threads: list[threading.Thread] = []
        self._grow()

    def put(self, item: T) -> None:
        """Raises Stopped once `break_off` was called."""
        self._waiting.put(item)

    def set_number(self, number: int) -> None:
        """How many items are worked on at once, from now on."""
        with self._gate.condition:
            self._number = number
            self._gate.condition.notify_all()
        self._grow()

    def close(self) -> None:
        """No more items will come; the threads end when none is left."""
        with self._gate.condition:
            self._closing = True
            self._gate.condition.notify_all()
        self._waiting.close()

    def break_off(self) -> None:
        """Ends every thread after the item in hand."""
        with self._gate.condition:
            self._closing = True
            self._gate.condition.notify_all()
        self._waiting.break_off()

    def _grow(self) -> None:
        """Starts the threads that are allowed and not there yet."""
        with self._gate.condition:
            missing = range(len(self.threads), 0 if self._closing else self._number)
            started = [
                threading.Thread(target=self._main, args=(number,), name=f"upload-send-{number}", daemon=True)
                for number in missing
            ]
            self.threads += started
        for thread in started:
            thread.start()

    def _main(self, number: int) -> None:
        try:
            while True:
                self._gate.wait_until(lambda: not self._gate.paused and (number < self._number or self._closing))
                item = self._waiting.get() if number < self._number else None
                if item is None:
                    return
                self._gate.check()
                self._do(item)
        except Closed:
            return
        except BaseException as error:  # noqa: BLE001  told to whoever waits for the threads
            self._on_error(error)
