"""Jobs on objects: a job in one line, and the dialogs of a warm-up of the accelerator's cache."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted, safe_text
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.jobs.warm import WarmUp
from ossconsole.tui.console import Console
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, PromptScreen
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.screen import ConsoleModal, ConsoleScreen
from ossconsole.tui.kit.text import Line, duration, percent, safe, shorten_middle, size, wrap

_REFRESH_S = 0.5
_FAILURES_SHOWN = 3
_UNITS_FROM = 100  # cells; a narrower row keeps its room for the title


def job_line(job: Job, width: int, glyphs: Glyphs) -> Line:
    """A job in one line: progress, rate and remaining time; at the end, its result."""
    progress = job.progress()
    mark, style = {
        JobState.RUNNING: (glyphs.running, "primary"),
        JobState.DONE: (glyphs.done, "good"),
        JobState.FAILED: (glyphs.failed, "bad"),
        JobState.CANCELLED: (glyphs.paused, "warn"),
    }[job.state]
    more = "" if progress.total_known else "+"
    unit = " objects" if width >= _UNITS_FROM else ""
    parts = [f"{progress.items_done + progress.items_skipped:,}/{progress.items_total:,}{more}{unit}"]
    if progress.bytes_total:
        parts.append(f"{size(progress.bytes_done)} of {size(progress.bytes_total)}{more}")
    if job.moves_bytes and progress.bytes_total and progress.total_known:
        parts.insert(0, percent(progress.bytes_done / progress.bytes_total))
    if job.moves_bytes and progress.bytes_per_s:
        parts.append(f"{size(progress.bytes_per_s)}/s")
    if job.moves_bytes and job.state is JobState.RUNNING and progress.eta_s is not None:
        parts.append(f"{duration(progress.eta_s)} left")
    if progress.items_skipped:
        parts.append(f"{progress.items_skipped:,} {job.skipped_label}")
    if job.failures:
        parts.append(f"{len(job.failures):,} failed")
    if job.state is not JobState.RUNNING:
        parts.append(str(job.state))
    elif job.waiting or job.note:
        parts.append(safe_text(job.waiting or job.note))
    figures = Line(("  ".join(parts) + " ", "text"))
    room = width - figures.width - 4
    return Line((f" {mark} ", style), (shorten_middle(job.title, room, glyphs.ellipsis), "text")).right(figures, width)


def job_row(job: Job) -> Line:
    """A job in a list: its state, how much of it is done, how much failed, and its title."""
    progress = job.progress()
    if job.moves_bytes and progress.bytes_total and progress.total_known:
        done = percent(progress.bytes_done / progress.bytes_total)
    else:
        more = "" if progress.total_known else "+"
        done = f"{progress.items_done + progress.items_skipped:,}/{progress.items_total:,}{more}"
    line = Line((f" {job.state:<10}", "dim"), (f"{done:>6}  ", "text"))
    if job.failures:
        line.add(f"{len(job.failures):,} failed  ", "bad")
    return line.add(job.title, "text")


def newest_warm_up(console: Console) -> WarmUp | None:
    """The warm-up started last, also after its end; None before the first."""
    return next((job for job in reversed(console.jobs) if isinstance(job, WarmUp)), None)


async def warm_up(screen: ConsoleScreen) -> None:
    """Shows the running warm-up, or plans one and starts it after a question; call it in an exclusive worker."""
    job = _running(screen.console)
    if job is None:
        planned = await _planned(screen)
        job = _running(screen.console) or planned  # another screen may have started one meanwhile
        if planned is None or job is None:
            return
        if job is planned:
            screen.console.jobs.append(job)
            job.start()
            screen.run_worker(_report(screen, job), group="warm-up-report", exit_on_error=False)
    await screen.ask(WarmUpScreen(job))


def _running(console: Console) -> WarmUp | None:
    job = newest_warm_up(console)
    return job if job is not None and job.alive else None


async def _report(screen: ConsoleScreen, job: WarmUp) -> None:
    """Shows the result as a toast, once there is one."""
    while job.alive:  # noqa: ASYNC110 - it ends in a thread that knows no event loop
        await asyncio.sleep(_REFRESH_S)
    screen.notify(safe(_result(job)), severity="information" if job.state is JobState.DONE else "warning", markup=False)


async def _planned(screen: ConsoleScreen) -> WarmUp | None:
    """A warm-up that the user confirmed, not started; None after a refusal or an error, which is shown."""
    screen.notify("Reading the list of the dataset's objects.", timeout=3)
    try:
        job = await asyncio.to_thread(screen.services.plan_warm_up)
        if job.plan.todo:
            choices = (Choice("", "Cancel"), Choice("start", "Start", "primary"))
        else:
            choices = (Choice("", "Close"), Choice("again", "Read again"))
        lines = job.plan.lines()
        run = screen.services.run
        if run is not None and run.alive:
            lines.append("A run is active: it gets less of the bandwidth meanwhile, which its comparison measures.")
        question = "\n".join(map(safe, lines))
        choice = await screen.ask(ConfirmScreen("Warm up the accelerator?", question, choices))
        if choice == "again":
            return await asyncio.to_thread(lambda: screen.services.plan_warm_up(again=True))
    except ConsoleError as error:
        screen.show_error(error)
        return None
    return job if choice else None


def _result(job: WarmUp) -> str:
    done = job.progress().items_done
    text = f"Warm-up {job.state}: {counted(done, 'object')} read"
    if job.error is not None:
        return f"{text}. {job.error}"
    if job.failures:
        return f"{text}, {len(job.failures):,} failed: {job.failures[0].reason}"
    return f"{text}."


class WarmUpScreen(ConsoleModal):
    """The progress of a warm-up; closing it does not end the job."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w,q", "back", show=False),
        Binding("x", "cancel", show=False),
        Binding("b", "limit", show=False),
    ]

    def __init__(self, job: WarmUp) -> None:
        super().__init__()
        self._job = job

    def compose(self) -> ComposeResult:
        with self.frame("Warm-up", id="warm-up-frame"):
            yield Panel(self._lines, id="warm-up")

    def on_mount(self) -> None:
        """Paint twice a second."""
        self._redraw()
        self.set_interval(_REFRESH_S, self._redraw)

    def _redraw(self) -> None:
        keys = "x cancel · b limit · esc close (it continues)" if self._job.alive else "esc close"
        self.query_one("#warm-up-frame").border_subtitle = keys
        panel = self.query_one(Panel)
        panel.styles.height = len(self._lines(panel.size.width or 70, 0))
        panel.redraw()

    def _lines(self, width: int, _height: int) -> Sequence[Line]:
        job, progress = self._job, self._job.progress()
        lines = [Line((part, "dim")) for part in wrap(safe(job.plan.source.text), width)]
        total = counted(progress.items_total, "object")
        lines.append(Line((f"{progress.items_done:,} of {total}", "strong")))
        share = percent(progress.bytes_done / progress.bytes_total) if progress.bytes_total else ""
        lines.append(Line((f"{size(progress.bytes_done)} of {size(progress.bytes_total)}  {share}", "text")))
        rate = f"{size(progress.bytes_per_s)}/s"
        if job.cap.limit:
            rate += f", limit {size(job.cap.limit)}/s"
        if job.alive and progress.eta_s is not None:
            rate += f", {duration(progress.eta_s)} left"
        lines.append(Line((rate, "text")))
        state = safe_text(job.waiting) if job.alive and job.waiting else str(job.state)
        lines.append(Line((state, "warn" if job.waiting or job.state is not JobState.DONE else "good")))
        problems = [str(job.error)] if job.error else []
        problems += [f"{failure.path}: {failure.reason}" for failure in job.failures[:_FAILURES_SHOWN]]
        if len(job.failures) > _FAILURES_SHOWN:
            problems.append(f"and {len(job.failures) - _FAILURES_SHOWN:,} more failed")
        return [*lines, *(Line((part, "bad")) for text in problems for part in wrap(safe(text), width))]

    def action_cancel(self) -> None:
        """End the job; what was read stays in the cache, and the next warm-up skips it."""
        self._job.cancel()
        self._redraw()

    @work(exit_on_error=False)
    async def action_limit(self) -> None:
        """Set or remove the limit of the bandwidth."""
        question = "At most this many MB/s, decimals allowed; 0 removes the limit."
        now = f"{(self._job.cap.limit or 0) / 1e6:g}"
        prompt = PromptScreen("Bandwidth", question, now, check=check_bandwidth, replace=True)
        text = await self.app.push_screen_wait(prompt)
        if text is not None:
            self._job.cap.set_limit(float(text) * 1e6 or None)


def check_bandwidth(text: str) -> None:
    """Raises ConsoleError for anything but a number of MB/s from 0."""
    try:
        value = float(text)
    except ValueError as error:
        raise ConsoleError(f"{text.strip()!r} is not a number.") from error
    if not 0 <= value < 1e6:
        raise ConsoleError("The bandwidth must be 0 or more MB/s.")
