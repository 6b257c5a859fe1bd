"""CallExecutor: the blocking calls of the event loop, none of which keeps the program from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any

_PATIENCE_S = 2.0


class CallExecutor(ThreadPoolExecutor):
    """Runs each call in a daemon thread of its own; the default executor of the console's event loop.

    The threads of asyncio's default are few, and the program ends only after them. While an endpoint does not answer,
    a handful of requests would keep all other calls waiting, and quitting would take as long as their retries.
    """

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        """`shutdown` waits up to `patience_s` seconds for the calls in progress, such as the writing of a file."""
        super().__init__(1)
        self._patience_s = patience_s
        self._calls: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Starts the call."""
        future: Future[Any] = Future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        threading.Thread(target=_run, args=(future, fn, args, kwargs), name="call", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for the calls in progress, but not for long; they end with the program."""
        del cancel_futures
        if wait:
            wait_for(list(self._calls), self._patience_s)


def _run(future: Future[Any], call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
        future.set_exception(error)
