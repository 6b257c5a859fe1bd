"""A source of listing pages that a test holds and releases."""

from __future__ import annotations

import queue
import threading

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.objects import ListPage, ObjectSummary

WAIT_S = 10.0


class GatedSource:
    """Gives a page only when the test has put one (or an error) into `answers`; notes every request."""

    def __init__(self) -> None:
        self.answers: queue.Queue[ListPage | ConsoleError] = queue.Queue()
        self.answers_of: dict[str, queue.Queue[ListPage | ConsoleError]] = {}
        """Those of a prefix of its own, in place of `answers`."""
        self._askers: set[threading.Thread] = set()
        self.asked: queue.Queue[tuple[str, str]] = queue.Queue()

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        self._askers.add(threading.current_thread())
        self.asked.put((prefix, token))
        try:
            answer = self.answers_of.get(prefix, self.answers).get(timeout=WAIT_S)
        except queue.Empty:
            raise ConsoleError("The test gave no answer.") from None
        if isinstance(answer, ConsoleError):
            raise answer
        return answer

    def listings_end(self) -> None:
        """Waits until every thread that asked has done what it had to do."""
        for thread in tuple(self._askers):
            thread.join(WAIT_S)
            assert not thread.is_alive()


def page(names: list[str], *, prefixes: list[str] | None = None, token: str = "") -> ListPage:
    """Objects of these keys, of size 1, 2, 3, …"""
    return ListPage(
        [ObjectSummary(name, size, 1000 + size) for size, name in enumerate(names, 1)], prefixes or [], token
    )
