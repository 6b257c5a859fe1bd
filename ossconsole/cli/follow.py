"""A job on the command line: a progress bar or JSON events, and signals that cancel it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ossconsole.cli.output import INTERRUPTED, say, say_json
from ossconsole.cli.unattended import stopping_on_signals
from ossconsole.config.profiles import load_settings
from ossconsole.config.text import safe_text

if TYPE_CHECKING:
    from rich.progress import Progress

    from ossconsole.dataset.upload.job import UploadJob
    from ossconsole.storage.jobs.job import Failure, Job, JobProgress

POLL_S = 0.2
"""Short waits: Python handles a signal only between them."""
REPORT_EVERY_S = 1.0
LOG_EVERY_S = 30.0


@dataclass
class _Cancelling:
    """A job as `Stoppable`."""

    job: UploadJob | Job
    interactive: bool = False

    def stop(self) -> None:
        self.job.cancel()


def cancelling_on_signals(job: UploadJob | Job) -> AbstractContextManager[list[int]]:
    """Signals cancel the job; it survives its terminal, unless `on_hangup` in the settings is "stop"."""
    message = "Stopping; run the same command again to resume."
    return stopping_on_signals(_Cancelling(job), load_settings().on_hangup, message=message)


def exit_code(signalled: list[int], *, cancelled: bool, failed: bool) -> int:
    """The exit code of a job: by the first of the signals received where it was cancelled, 1 where a part failed."""
    if cancelled:
        return 128 + signalled[0] if signalled else INTERRUPTED
    return int(failed)


def emit(event: str, **fields: object) -> None:
    """Prints one JSON event."""
    say_json({"event": event, "time": time.time(), **fields})


def report_failures(failures: Sequence[Failure], *, as_json: bool, at_most: int | None = None) -> None:
    """Prints each failure of a job: as a JSON event, or as a sentence, of which the first `at_most` (None: all)."""
    for failure in failures if as_json else failures[:at_most]:
        if as_json:
            emit("failed", path=failure.path, reason=failure.reason, code=failure.code, request_id=failure.request_id)
        else:
            say(f"Failed: {failure.path}: {failure.reason}")
    if not as_json and at_most is not None and len(failures) > at_most:
        say(f"Failed: and {len(failures) - at_most:,} more")


def finish(job: Job, label: str, *, as_json: bool) -> list[int]:
    """Runs the job to its end and returns the signals received. Raises the ConsoleError that ended it early."""
    with cancelling_on_signals(job) as signalled:
        job.start()
        if as_json:
            while not job.wait(REPORT_EVERY_S):
                emit("progress", **msgspec.to_builtins(job.progress()), waiting=job.waiting)
        else:
            _follow(job, label)
    if job.error is not None:
        raise job.error
    return signalled


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A progress bar on stderr; None where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        yield bar


def log_progress(job: UploadJob | Job, line: Callable[[], str]) -> None:
    """Prints `line()` on stderr every half minute until the job ends: in a log, where no bar can be."""
    due = time.monotonic() + LOG_EVERY_S
    while not job.wait(POLL_S):
        if time.monotonic() >= due:
            due += LOG_EVERY_S
            say(line(), err=True)


def _log_line(job: Job, label: str) -> str:
    done = job.progress()
    finished = done.items_done + done.items_skipped + done.items_failed
    of = f" of {done.items_total:,}" if done.total_known else ""
    return f"{label}: {finished:,}{of}, {safe_text(job.waiting) or _rate_text(done)}"


def _follow(job: Job, label: str) -> None:
    with progress_bar() as bar:
        if bar is None:
            log_progress(job, lambda: _log_line(job, label))
            return
        task = bar.add_task(label, total=None, rate="")
        while not job.wait(POLL_S):
            done = job.progress()
            bar.update(
                task,
                completed=done.items_done + done.items_skipped + done.items_failed,
                total=done.items_total if done.total_known else None,
                rate=safe_text(job.waiting) or _rate_text(done),
            )


def _rate_text(done: JobProgress) -> str:
    text = f"{done.bytes_per_s / 1e6:.1f} MB/s"
    if done.eta_s is None:
        return text
    return f"{text}  {time_left(done.eta_s)}"


def time_left(eta_s: float) -> str:
    """As "3:07 left"."""
    minutes, seconds = divmod(round(eta_s), 60)
    return f"{minutes}:{seconds:02} left"
