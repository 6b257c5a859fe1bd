"""The result of a check, and running several checks simultaneously, each with its own time limit."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import StrEnum, safe_text

T = TypeVar("T")
LONG_S = 10.0
"""Seconds between two reports about a check that still runs."""


class CheckStatus(StrEnum):
    """The result of a check; only FAIL makes `doctor` exit with 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True):
    """The result of one check. `remedy` is what to do next, where possible a command to paste."""

    name: str
    status: CheckStatus
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Check:
    """A passed check."""
    return Check(name, CheckStatus.OK, safe_text(detail))


def warn(name: str, detail: str, remedy: str = "") -> Check:
    """A check that found a problem which does not stop the work."""
    return Check(name, CheckStatus.WARN, safe_text(detail), safe_text(remedy))


def fail(name: str, detail: str, remedy: str = "") -> Check:
    """A failed check."""
    return Check(name, CheckStatus.FAIL, safe_text(detail), safe_text(remedy))


class CheckJob(msgspec.Struct, frozen=True):
    """Work that returns one or several checks, with these `names`, within `limit_s` seconds."""

    names: tuple[str, ...]
    run: Callable[[], Sequence[Check]]
    limit_s: float


class LimitError(ConsoleError):
    """Work exceeded its time limit."""


def limited(seconds: float, work: Callable[[], T], what: str) -> T:
    """The result of `work`, run in a thread of its own. Raises LimitError after `seconds`.

    A thread that waits for a silent name server cannot be interrupted; it is a daemon and is left behind.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            answers.put((None, error))

    threading.Thread(target=run, name=f"limited {what}", daemon=True).start()
    try:
        result, error = answers.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise LimitError(f"{what} took longer than {seconds:.1f} s.") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def run_checks(
    jobs: Sequence[CheckJob], on_wait: Callable[[CheckJob, float], None] = lambda _job, _seconds: None
) -> Iterator[Sequence[Check]]:
    """The results of the jobs, in their order; all run simultaneously, each within its time limit.

    `on_wait` is called every LONG_S seconds with a job that still runs, and its seconds so far.
    """
    started = time.monotonic()
    waiting = [(job, _start(job)) for job in jobs]
    for job, answers in waiting:
        yield _answer(job, answers, started, on_wait)


def _answer(
    job: CheckJob,
    answers: queue.SimpleQueue[Sequence[Check]],
    started: float,
    on_wait: Callable[[CheckJob, float], None],
) -> Sequence[Check]:
    deadline = started + job.limit_s
    while (left := deadline - time.monotonic()) > LONG_S:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=LONG_S)
        on_wait(job, time.monotonic() - started)
    try:
        return answers.get(timeout=max(0.0, left))
    except queue.Empty:
        return [fail(name, f"No result within {job.limit_s:g} s.", "Retry.") for name in job.names]


def _start(job: CheckJob) -> queue.SimpleQueue[Sequence[Check]]:
    answers: queue.SimpleQueue[Sequence[Check]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(job.run())
        except ConsoleError as error:
            answers.put([fail(name, error.message, error.remedy) for name in job.names])
        except Exception as error:  # noqa: BLE001 - one broken check must not hide the others' results
            detail = f"The check itself failed: {type(error).__name__}: {error}."
            answers.put([fail(name, detail, "Please report this.") for name in job.names])

    threading.Thread(target=run, name=f"check {job.names[0]}", daemon=True).start()
    return answers
