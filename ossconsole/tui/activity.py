"""The work in progress as chips of the mode bar: the run, the upload, and the jobs on objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ossconsole.config.text import counted
from ossconsole.telemetry.events import RunState
from ossconsole.tui.console import WorkChip
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import Line, percent, rate

if TYPE_CHECKING:
    from ossconsole.storage.jobs.job import Job
    from ossconsole.telemetry.view import RunView
    from ossconsole.tui.console import UploadHandle


def _chip(mode: str, long: Line, short: Line, *, failed: bool = False, names_endpoint: bool = False) -> WorkChip:
    return WorkChip(mode, long.pieces, short.pieces, failed=failed, names_endpoint=names_endpoint)


def run_chip(view: RunView, glyphs: Glyphs, *, alive: bool) -> WorkChip:
    """The newest run: state, steps, rate and endpoint; after its end, how it ended."""
    state, kind = view.state, view.delivering or view.endpoint
    if state is RunState.FAILED:
        failed = Line((f"{glyphs.failed} run failed", "chip-bad"))
        return _chip("train", failed, failed, failed=True)
    if state is not None and state.final:
        over = Line((f"{glyphs.done} run {state}", "chip"))
        return _chip("train", over, Line((f"{glyphs.done} {state}", "chip")))
    if not alive:  # its process is gone, without a last event
        gone = Line((f"{glyphs.failed} run interrupted", "chip-bad"))
        return _chip("train", gone, gone, failed=True)
    paused = state is RunState.PAUSED
    mark, style = (glyphs.paused, "chip-warn") if paused else (glyphs.running, "chip-good")
    total = f"/{view.total_steps:,}" if view.total_steps else ""
    short = Line((f"{mark} ", style), (f"{view.step:,}{total}" if view.step else "starting", "chip"))
    if view.errors:
        short.add(f" {glyphs.failed}{len(view.errors)}", "chip-bad")
    long = Line().extend(short)
    if paused or state in (RunState.VALIDATING, RunState.STOPPING):
        long.add(f" {glyphs.dot} {state}", style if paused else "chip")
    elif view.last_step is not None:
        long.add(f" {glyphs.dot} {rate(view.last_step.samples_per_s)}/s", "chip")
    if kind is not None:
        long.add(f" {glyphs.dot} ", "chip-dim").add(glyphs.named(kind), f"chip-{kind}")
        short.add(" ", "chip").add(glyphs.endpoint(kind), f"chip-{kind}")
    return _chip("train", long, short, failed=bool(view.errors), names_endpoint=kind is not None)


def upload_chip(upload: UploadHandle, glyphs: Glyphs) -> WorkChip | None:
    """The newest upload while it runs, or where it has failed; a finished one needs no more attention."""
    progress = upload.progress()
    lost = counted(progress.failed, "failure") if progress.failed else ""
    if not upload.alive:
        if not progress.failed and not progress.error:
            return None
        line = Line((f"{glyphs.failed} upload {'failed' if progress.error else lost}", "chip-bad"))
        return _chip("upload", line, line, failed=True)
    known = progress.total_known and progress.total
    share = percent(progress.done / progress.total) if known else f"{progress.done:,}"
    mark, style = (glyphs.paused, "chip-warn") if progress.paused else (glyphs.up, "chip-good")
    short = Line((f"{mark} ", style), (share, "chip"))
    if lost:
        short.add(f" {glyphs.failed}{progress.failed}", "chip-bad")
    note = "paused" if progress.paused else f"{rate(progress.samples_per_s)}/s"
    return _chip("upload", Line().extend(short).add(f" {glyphs.dot} {note}", "chip"), short, failed=bool(lost))


def jobs_chip(jobs: Sequence[Job], glyphs: Glyphs) -> WorkChip | None:
    """The downloads and other jobs in progress, or those that have failed."""
    alive = [job for job in jobs if job.alive]
    failed = [job for job in jobs if not job.alive and (job.error is not None or job.failures)]
    if not alive and not failed:
        return None
    if not alive:
        line = Line((f"{glyphs.failed} {counted(len(failed), 'job')} failed", "chip-bad"))
        return _chip("browse", line, line, failed=True)
    progress = [job.progress() for job in alive]
    total = sum(each.bytes_total for each in progress)
    known = total and all(each.total_known for each in progress)
    short = Line((f"{glyphs.down} ", "chip-good"), (counted(len(alive), "job"), "chip"))
    long = Line().extend(short)
    if known:
        long.add(f" {glyphs.dot} {percent(sum(each.bytes_done for each in progress) / total)}", "chip")
    if failed:
        short.add(f" {glyphs.failed}{len(failed)}", "chip-bad")
        long.add(f" {glyphs.failed}{len(failed)}", "chip-bad")
    return _chip("browse", long, short, failed=bool(failed))
