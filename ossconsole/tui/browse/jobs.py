"""The list of jobs and that of unfinished uploads: cancel, retry or remove a job, abort an upload."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from textual import work

from ossconsole.config.files import working_folder
from ossconsole.config.text import counted, safe_text
from ossconsole.storage.jobs.job import Job
from ossconsole.storage.multipart import UnfinishedUpload, abort_upload, list_uploads
from ossconsole.tui.browse.browser import Browser
from ossconsole.tui.kit.dialogs import ListScreen, TextScreen, TypedConfirmScreen
from ossconsole.tui.kit.jobs import job_row
from ossconsole.tui.kit.text import Line, moment, size

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_FAILURES_SHOWN = 1000
_POLL_S = 0.05
_ENDED_KEPT = 1  # jobs without failures, so that their result can be read
_FAILED_KEPT = 20  # jobs whose failures can still be read, and retried


def add_job(known: list[Job], job: Job, unreported: Container[Job] = ()) -> None:
    """Adds a job to the list of all; the oldest that have ended leave it. Those in `unreported` stay."""
    ended = [other for other in known if not other.alive and other not in unreported]
    failed = [other for other in ended if has_failed(other)]
    done = [other for other in ended if not has_failed(other)]
    for other in (*done[: max(0, len(done) - _ENDED_KEPT)], *failed[: max(0, len(failed) - _FAILED_KEPT)]):
        known.remove(other)
    known.append(job)


async def job_ended(job: Job) -> None:
    """Waits for the end of a job; not in a thread, as quitting would wait for its requests, too."""
    while job.alive:  # noqa: ASYNC110 - it ends in a thread that knows no event loop
        await asyncio.sleep(_POLL_S)


def has_failed(job: Job) -> bool:
    """Whether it, or one of its objects, has failed."""
    return job.error is not None or bool(job.failures)


def result_text(job: Job) -> str:
    """What a job has done, as a sentence."""
    progress = job.progress()
    parts = ["done", counted(progress.items_done, "object")]
    if progress.items_skipped:
        parts.append(f"{progress.items_skipped:,} {job.skipped_label}")
    elif progress.bytes_done:
        parts.append(size(progress.bytes_done))
    return f"{job.title}: {', '.join([*parts, *([job.note] if job.note else [])])}."


def failure_text(job: Job) -> str:
    """The failure of a job, or the number of its failures and the first of them."""
    first = job.failures[0].reason
    if len(job.failures) == 1:
        return f"{job.title}: {first}"
    return f"{job.title}: {len(job.failures):,} failed. The first: {first}"


@work(exclusive=True, group="dialog", exit_on_error=False)
async def uploads(screen: Browser) -> None:
    """List the unfinished multipart uploads below this prefix, and abort them."""
    store, prefix = screen.store, screen.model.prefix
    if store is None:
        return
    found = await screen.request(lambda: list(list_uploads(store, prefix)))
    if not found:
        if found is not None:
            screen.notify("No unfinished uploads here.", timeout=3)
        return
    rows = [
        Line(
            (f" {moment(u.begun)}  {counted(u.parts, 'part'):>10} {size(u.bytes):>9}  ", "dim"),
            (safe_text(u.key), "text"),
        )
        for u in found
    ]
    readonly = screen.services.readonly
    hint, keys = ("read-only", "") if readonly else ("x abort · X abort all", "xX")
    answer = await screen.ask(ListScreen("Unfinished uploads", rows, hint=hint, keys=keys))
    if not answer or answer[0] == "enter":
        return
    doomed = found if answer[0] == "X" else [found[answer[1]]]
    amount = f"{counted(len(doomed), 'upload')}, {size(sum(upload.bytes for upload in doomed))}"
    text = f"{amount}. Clients still uploading them will get errors."
    dialog = TypedConfirmScreen("Abort uploads", text, word=f"abort {len(doomed)}", button="Abort")
    if await screen.ask(dialog):
        aborted = await screen.request(lambda: _abort(store, doomed))
        if aborted is not None:
            screen.notify(f"{counted(aborted, 'upload')} aborted.", timeout=4)


def _abort(store: ObjectStore, uploads: Sequence[UnfinishedUpload]) -> int:
    for upload in uploads:
        abort_upload(store, upload)
    return len(uploads)


@work(exclusive=True, group="jobs", exit_on_error=False)  # not that of the other dialogs: one may wait for a job
async def jobs(screen: Browser) -> None:
    """List all jobs: cancel one, do again what it has not done, remove it, or show its failures."""
    screen.app.clear_notifications()  # they name this key, and would cover the list
    at = 0
    while listed := list(reversed(screen.console.jobs)):
        answer = await screen.ask(_job_list(listed, min(at, len(listed) - 1)))
        if not answer:
            return
        key, at = answer
        job = listed[at]
        if key == "a":
            if _retry(screen, job):
                return
        elif key == "enter":
            await screen.ask(_job_failures(job))
        elif job.alive:
            job.cancel()
        elif job in screen.console.jobs:
            screen.console.jobs.remove(job)
            screen.redraw()
    screen.notify("No jobs.", timeout=3)


def _job_list(listed: Sequence[Job], at: int) -> ListScreen:
    def rows() -> list[Line]:
        return [job_row(job) for job in listed]

    hint = "x cancel or remove · a retry · enter show failures"
    return ListScreen("Jobs", rows(), hint=hint, keys="xa", read=rows, at=at)


def _retry(screen: Browser, job: Job) -> bool:
    """Starts a job for the rest of one that has ended, in its place; False, after a toast, where that cannot be."""
    again = None if job.alive else job.retry()
    if again is None:
        why = "is still running" if job.alive else "has nothing to retry: select its objects again"
        screen.notify(f"{job.title} {why}.", markup=False, timeout=5)
        return False
    if job in screen.console.jobs:
        screen.console.jobs.remove(job)

    def finished(_: Job) -> None:
        screen.model.refresh()
        screen.local.refresh_rows()

    screen.run_job(again, finished)
    return True


def _job_failures(job: Job) -> TextScreen:
    reasons = [] if job.error is None else [str(job.error)]
    reasons += [failure.reason for failure in job.failures[:_FAILURES_SHOWN]]
    text = "\n".join(map(safe_text, reasons)) or f"Nothing has failed. The job is {job.state}."
    return TextScreen("Failures", text, job.title, working_folder() / "oss-failures.txt")
