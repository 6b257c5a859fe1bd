"""The Upload screen's panels as lines, from a plan, a progress or a summary; and the newest sample as an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from textual.strip import Strip
from textual.widget import Widget

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.dataset.contents import show_sample
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.progress import Phase, SamplePreview
from ossconsole.tui.kit.detail_view import half_blocks, letters
from ossconsole.tui.kit.text import MISSING, Line, duration, percent, rate, safe, shorten, shorten_middle, size

if TYPE_CHECKING:
    from ossconsole.dataset.manifest import Unused
    from ossconsole.dataset.upload.job import UploadSettings, UploadSummary
    from ossconsole.dataset.upload.plan import UploadPlan
    from ossconsole.dataset.upload.progress import UploadProgress
    from ossconsole.storage.jobs.job import Failure
    from ossconsole.tui.kit.glyphs import Glyphs

TILE_WIDTH = 13
_CLASSES_SHOWN = 6
_LABEL_WIDTH = 14
_NAME_WIDTH = 28  # of a file that something is wrong with, at least


@dataclass(frozen=True)
class Paper:
    """What is drawn on: so many cells, with these characters."""

    width: int
    height: int
    glyphs: Glyphs

    def heading(self, text: str) -> Line:
        rule = self.glyphs.rule
        return Line((f"{rule} ", "rule"), (f"{text} ", "title")).to(self.width, "rule", rule)

    def row(self, label: str, text: str, style: str = "text") -> Line:
        room = max(0, self.width - _LABEL_WIDTH - 2)
        line = Line((f" {label}", "dim")).to(_LABEL_WIDTH + 1)
        return line.add(shorten(text, room, self.glyphs.ellipsis), style)

    def note(self, mark: str, style: str, failure: Failure) -> Line:
        """A file and what is wrong with it; the file's end and the reason are what tells."""
        reason = safe(failure.reason)
        if failure.request_id:
            reason += f" (request id {failure.request_id})"
        room = self.width - 5
        name = shorten_middle(safe(failure.path), max(_NAME_WIDTH, room - len(reason)), self.glyphs.ellipsis)
        line = Line((f" {mark} ", style), (f"{name}: ", "text"))
        return line.add(shorten(reason, max(0, self.width - line.width), self.glyphs.ellipsis), "dim")


# Before


def form_lines(paper: Paper, prefix: str) -> list[Line]:
    """What the screen says before anything was asked of it."""
    lines = [
        Line((" ^s ", "primary"), ("looks through the source and shows what an upload would do.", "text")),
        Line((" o  ", "primary"), ("picks a folder, an archive or a table.", "text")),
        Line(),
        Line((" A source is one of", "dim")),
    ]
    kinds = (
        "a folder with train/<class>/ and val/<class>/",
        "the tutorial's flat val/, with ILSVRC2012_val_labels.json beside it",
        "a .tar, .tar.gz or .zip of such a folder, read without unpacking",
        "a .csv or .tsv of path, label and split",
    )
    lines += [Line((f"   {paper.glyphs.dot} ", "rule"), (kind, "dim")) for kind in kinds]
    formats = (
        ("image-u8", "a quarter of the bytes; cropped and flipped anew in each epoch"),
        ("tensor-f32", "the tutorial's: cropped, flipped and normalised once, here"),
    )
    lines += [Line(), *(paper.row(name, text, "dim") for name, text in formats)]
    return [*lines, Line(), paper.row("goes to", prefix)]


def looking_lines(paper: Paper, files: int) -> list[Line]:
    return [
        Line((f" {paper.glyphs.running} ", "primary"), (f"Looking through the source: {_files(files)}", "text")),
        Line((" esc stops", "dim")),
    ]


def plan_lines(paper: Paper, plan: UploadPlan, settings: UploadSettings, prefix: str) -> list[Line]:
    """What the upload would do; the notes get the room that is left."""
    shape = f"{settings.format} at {settings.size} px" + (", ratio kept" if settings.keep_ratio else "")
    if settings.per_shard:
        shape += f", in tars of {settings.per_shard:,}"
    about = "about " if settings.keep_ratio or settings.per_shard else ""
    splits = ", ".join(f"{count:,} {split}" for split, count in plan.samples.items()) or "none"
    samples = counted(plan.to_send, "sample")
    lines = [
        paper.row("samples", f"{splits}, in {counted(len(plan.classes), 'class', 'classes')}", "strong"),
        paper.row("classes", _classes(plan.classes)),
        paper.row("to send", f"{samples}, {about}{size(plan.bytes_to_send)} as {shape}", "strong"),
        paper.row("unchanged", f"{plan.unchanged:,} are in the bucket already"),
        paper.row("not used", _files(plan.ignored)),
        paper.row("cannot go", _lost(plan), "warn" if plan.lost else "text"),
        paper.row("preparation", _estimate(plan)),
        paper.row("storage", f"{size(plan.stored_bytes)}, {_cost(plan.usd_per_month)} a month (estimated)"),
        paper.row("goes to", prefix),
    ]
    lines += [Line((f" {row}", "bad")) for row in wrap(safe(plan.problem), max(8, paper.width - 2))]
    marked = [("!", "warn", note) for note in plan.notes]
    lines += _left_out(paper, marked, plan.lost, plan.unused, paper.height - len(lines) - 2)
    if plan.problem:
        return [*lines, Line(), Line((" esc goes back", "primary"))]
    start = "^s starts the upload" if plan.to_send else "Nothing is to be sent; ^s verifies and writes the manifest"
    return [*lines, Line(), Line((f" {start}", "primary"), (", esc goes back", "dim"))]


def _cost(usd: float) -> str:
    return f"about USD {usd:.2f}" if usd >= 0.01 else "less than USD 0.01"


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(safe(name) for name in names[:_CLASSES_SHOWN])
    return shown + (f" and {len(names) - _CLASSES_SHOWN:,} more" if len(names) > _CLASSES_SHOWN else "")


def _files(count: int) -> str:
    return counted(count, "file")


def _lost(plan: UploadPlan) -> str:
    return _files(plan.lost) + (f", {plan.conflicts:,} because of their names" if plan.conflicts else "")


def _estimate(plan: UploadPlan) -> str:
    if plan.prepare_s is None:
        return MISSING
    return f"about {duration(plan.prepare_s)} on this machine (estimated)"


def _left_out(
    paper: Paper, marked: Sequence[tuple[str, str, Failure]], count: int, unused: Sequence[Unused], room: int
) -> list[Line]:
    """Files that something is wrong with, `count` in all, and what is not used; the rest is counted."""
    groups = [
        Line((" ! ", "warn"), (shorten(safe(str(group)), paper.width - 4, paper.glyphs.ellipsis), "dim"))
        for group in unused
    ]
    if not (marked or groups) or room < 2:
        return []
    # The groups are few, and each stands for many.
    shown = marked[: max(1, room - 2 - len(groups))]
    lines = [Line(), *(paper.note(mark, style, note) for mark, style, note in shown)]
    if count > len(shown):
        lines.append(Line((f"   and {count - len(shown):,} more", "dim")))
    return [*lines, *groups][:room]


# Under way


def progress_lines(paper: Paper, progress: UploadProgress, source: str) -> list[Line]:
    """The upload as it goes: how far, how fast, what holds it back, who works on what."""
    lines = [
        bar(paper, progress),
        paper.row(
            "source", shorten_middle(safe(source), max(8, paper.width - _LABEL_WIDTH - 2), paper.glyphs.ellipsis)
        ),
        Line(),
        *_tiles(paper, progress),
        Line(),
        counts(progress),
        paper.row("sending", _sending(progress)),
    ]
    if progress.waiting:
        lines.append(paper.row("waiting", safe(progress.waiting), "warn"))
    if progress.error:
        lines.append(paper.row("ended by", safe(progress.error), "bad"))
    return lines + _workers(paper, progress, paper.height - len(lines))


def failure_lines(paper: Paper, progress: UploadProgress) -> list[Line]:
    """The newest failures, the last one first."""
    failures = list(reversed(progress.recent_failures))
    if not failures:
        return []
    lines = [paper.heading("Failures"), *(paper.note(paper.glyphs.failed, "bad", failure) for failure in failures)]
    return lines[: paper.height]


def bar(paper: Paper, progress: UploadProgress) -> Line:
    share = progress.done / progress.total if progress.total else 0.0
    glyphs = paper.glyphs
    mark, style = _STATE_MARKS.get(progress.phase, (glyphs.running, "primary"))
    mark = {"done": glyphs.done, "failed": glyphs.failed, "cancelled": glyphs.paused}.get(mark, mark)
    if progress.paused and not progress.phase.final:
        mark, style = glyphs.paused, "warn"
    state = "paused" if progress.paused and not progress.phase.final else str(progress.phase)
    line = Line((f" {mark} ", style), (f"{state}  ", "strong"))
    known = progress.total_known and progress.total
    total = f"{progress.total:,}" if known else f"{progress.total:,}+"
    end = Line((f"  {progress.done:,} of {total}", "text"), (f"  {percent(share) if known else 'counting'} ", "strong"))
    room = max(0, paper.width - line.width - end.width)
    full = round(share * room) if known else 0
    line.add(glyphs.bar_full * full, "primary").add(glyphs.bar_empty * (room - full), "rule")
    return line.extend(end)


_STATE_MARKS = {
    Phase.DONE: ("done", "good"),
    Phase.FAILED: ("failed", "bad"),
    Phase.CANCELLED: ("cancelled", "warn"),
}


def _tiles(paper: Paper, progress: UploadProgress) -> list[Line]:
    left = duration(progress.eta_s) if progress.eta_s is not None else MISSING
    bound = str(progress.bottleneck) if progress.bottleneck else MISSING
    found = (
        ("samples/s", rate(progress.samples_per_s), "last 10 s" if not progress.phase.final else "on average"),
        ("MB/s", rate(progress.bytes_per_s / 1e6), f"{size(progress.bytes)} sent"),
        ("time left", left, f"{duration(progress.seconds)} so far"),
        ("bound by", bound, counted(progress.retries, "retry", "retries")),
    )
    shown = found[: max(1, paper.width // TILE_WIDTH)]
    lines = [Line((" ", "text")) for _ in range(3)]
    for index, (label, value, note) in enumerate(shown):
        end = 1 + (paper.width - 1) * (index + 1) // len(shown)
        for line, (text, style) in zip(lines, ((label, "dim"), (value, "strong"), (note, "dim")), strict=True):
            line.add(shorten(text, end - line.width - 1, paper.glyphs.ellipsis), style).to(end)
    return lines


def counts(progress: UploadProgress) -> Line:
    line = Line((" ", "text"))
    for count, word, style in (
        (progress.uploaded, "uploaded", "strong"),
        (progress.unchanged, "unchanged", "strong"),
        (progress.skipped - progress.unchanged, "not used", "strong"),
        (progress.failed, "failed", "bad" if progress.failed else "strong"),
    ):
        line.add(f"{count:,} ", style).add(f"{word}   ", "dim")
    return line


def _sending(progress: UploadProgress) -> str:
    cap = f"at most {size(progress.bandwidth)}/s" if progress.bandwidth else "no cap"
    return f"{progress.sending} of {progress.parallelism} at once, {cap}"


def _workers(paper: Paper, progress: UploadProgress, room: int) -> list[Line]:
    """What each process prepares; those that do not fit are counted."""
    busy = [(number, key) for number, key in enumerate(progress.workers, 1) if key]
    if not busy or room < 1:
        return []
    shown = busy if len(busy) <= room else busy[: room - 1]
    lines = [
        paper.row(f"process {number}", shorten_middle(safe(key), paper.width - _LABEL_WIDTH - 2, paper.glyphs.ellipsis))
        for number, key in shown
    ]
    if len(busy) > len(shown):
        lines.append(paper.row("", f"and {len(busy) - len(shown)} more processes", "dim"))
    return lines


# Afterwards


def end_lines(
    paper: Paper, progress: UploadProgress, summary: UploadSummary, source: str, prefix: str = ""
) -> list[Line]:
    """How it ended: the counts, what is left to do, and every failure that there is room for.

    `prefix` where the dataset went to another place than the profile's.
    """
    lines = [
        bar(paper, progress),
        paper.row("source", safe(source)),
        counts(progress),
        paper.row(
            "sent",
            f"{size(summary.bytes)} in {duration(summary.seconds)}, {rate(summary.samples_per_s)} samples/s, "
            + counted(summary.retries, "retry", "retries"),
        ),
    ]
    if progress.error:
        lines.append(paper.row("ended by", safe(progress.error), "bad"))
    if summary.manifest:
        lines.append(paper.row("manifest", safe(summary.manifest)))
    if summary.removed:
        what = "deleted from the bucket" if summary.pruned else "still in the dataset"
        lines.append(paper.row("gone files", f"{counted(len(summary.removed), 'sample')}, {what}", "warn"))
    if summary.unknown:
        lines.append(
            paper.row("unknown", f"{counted(summary.unknown, 'object')} below the prefix that are not of this dataset")
        )
    marked = [(paper.glyphs.failed, "bad", note) for note in summary.failures]
    lines += _left_out(paper, marked, summary.failed, summary.unused, paper.height - len(lines) - 2)
    return [*lines, Line(), Line((_next(progress, summary, prefix), "primary"))]


def _next(progress: UploadProgress, summary: UploadSummary, prefix: str) -> str:
    if progress.phase is Phase.DONE and not summary.failed:
        if prefix:
            return f" n for another upload; to train: --dataset-prefix {safe(prefix)}"
        return " n for another upload, 4 to train on this one"
    return " r goes on with what is missing, n for another upload"


class SampleView(Widget):
    """Shows what it is given; a new picture at most as often as `show` is called."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._strips: list[Strip] = []
        self._shown: tuple[str, int, int] | None = None

    def show(self, picture: SamplePreview | None, fmt: SampleFormat, *, plain: bool) -> None:
        """`plain` draws letters where there are no colours."""
        width, height = self.size
        wanted = (picture.key if picture else "", width, height)
        if wanted == self._shown or not width or not height:
            return
        self._shown = wanted
        self._strips = _draw(picture, fmt, width, height, plain=plain) if picture else []
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._strips):
            return Strip.blank(width, self.rich_style)
        return self._strips[y].adjust_cell_length(width, self.rich_style)


def _draw(picture: SamplePreview, fmt: SampleFormat, width: int, height: int, *, plain: bool) -> list[Strip]:
    try:
        sample = show_sample(fmt, picture.payload, picture.height, picture.width, basis="just prepared")
    except ConsoleError:
        return []  # of another format than the upload now in front
    return (letters if plain else half_blocks)(sample.pixels, width, height)
