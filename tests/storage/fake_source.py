"""A source of listing pages that a test holds and releases."""

from __future__ import annotations

import queue

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.objects import ListPage, ObjectSummary

WAIT_S = 10.0


class GatedSource:
    """Gives a page only when the test has put one (or an error) into `answers`; notes every request."""

    def __init__(self) -> None:
        self.answers: queue.Queue[ListPage | ConsoleError] = queue.Queue()
        self.asked: queue.Queue[tuple[str, str]] = queue.Queue()

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        self.asked.put((prefix, token))
        answer = self.answers.get(timeout=WAIT_S)
        if isinstance(answer, ConsoleError):
            raise answer
        return answer


def page(names: list[str], *, prefixes: list[str] | None = None, token: str = "") -> ListPage:
    """Objects of these keys, of size 1, 2, 3, …"""
    return ListPage(
        [ObjectSummary(name, size, 1000 + size) for size, name in enumerate(names, 1)], prefixes or [], token
    )
