"""The pool of readers, with their ends of the pipes in the test's hands."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from ossconsole.training.reader import ReadRequest
from ossconsole.training.readers import ReaderLostError, ReaderPool, _Reader
from ossconsole.training.switch import SPAWN


class Killed:
    """A process that ended by SIGKILL."""

    exitcode = -signal.SIGKILL

    def join(self, _timeout_s: float | None = None) -> None: ...

    def kill(self) -> None: ...


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The ends of the readers, in the order in which they were started."""
    found: list[Connection] = []

    def start(_pool: ReaderPool, _number: int) -> _Reader:
        ours, theirs = SPAWN.Pipe()
        found.append(theirs)
        process: Any = Killed()
        return _Reader(process, ours)

    monkeypatch.setattr(ReaderPool, "_start", start)
    return found


def pool_of(workers: int) -> ReaderPool:
    nothing: Any = None
    return ReaderPool(nothing, nothing, nothing, (1, 1, 1), workers=workers, deadline_s=60)


def request(number: int) -> ReadRequest:
    return ReadRequest(number, 0, (), np.zeros(0, np.int64), np.zeros(0, np.uint64))


@pytest.mark.parametrize("dead", [0, 1])
def test_what_one_delivered_is_kept_when_another_is_found_dead(ends: list[Connection], dead: int) -> None:
    pool = pool_of(2)
    for number in range(2):
        pool.ask(request(number))
    result: Any = "what it read"
    ends[1 - dead].send(result)
    ends[dead].close()
    assert pool.poll(1) == [result]
    with pytest.raises(ReaderLostError, match=f"process {dead} ended unexpectedly .SIGKILL"):
        pool.poll(0)
    assert ends[2].recv().number == dead  # asked again
    assert pool.poll(0) == []


def test_two_that_die_at_once_are_both_replaced_and_told(ends: list[Connection]) -> None:
    pool = pool_of(2)
    for number in range(2):
        pool.ask(request(number))
    for end in ends:
        end.close()
    for _ in range(2):
        with pytest.raises(ReaderLostError, match="SIGKILL"):
            pool.poll(0)
    assert sorted(end.recv().number for end in ends[2:]) == [0, 1]
