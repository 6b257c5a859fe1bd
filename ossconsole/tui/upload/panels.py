"""The Upload screen's panels as lines, from a plan, a progress or a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from ossconsole.config.text import counted
from ossconsole.dataset.upload.progress import Phase
from ossconsole.storage.jobs.job import Failure
from ossconsole.telemetry.series import Series
from ossconsole.tui.kit import plot
from ossconsole.tui.kit.text import (
    MISSING,
    Line,
    compact,
    duration,
    heading,
    percent,
    rate,
    safe,
    shorten,
    shorten_middle,
    size,
    tile_lines,
)

if TYPE_CHECKING:
    from ossconsole.dataset.manifest import Unused
    from ossconsole.dataset.upload.job import UploadSettings, UploadSummary
    from ossconsole.dataset.upload.plan import UploadPlan
    from ossconsole.dataset.upload.progress import UploadProgress
    from ossconsole.tui.kit.glyphs import Glyphs

TILE_WIDTH = 13
_CLASSES_SHOWN = 6
_LABEL_WIDTH = 14
_NAME_WIDTH = 28  # of a rejected or failed file, at least


@dataclass(frozen=True)
class PanelArea:
    """The size of a panel in cells, and the characters to draw with."""

    width: int
    height: int
    glyphs: Glyphs

    def heading(self, text: str) -> Line:
        """A rule with a title."""
        return heading(text, self.width, self.glyphs.rule)

    def row(self, label: str, text: str, style: str = "text") -> Line:
        """A label and its value, cut to the width."""
        room = max(0, self.width - _LABEL_WIDTH - 2)
        line = Line((f" {label}", "dim")).to(_LABEL_WIDTH + 1)
        return line.add(shorten(text, room, self.glyphs.ellipsis), style)

    def rows(self, label: str, text: str, style: str) -> list[Line]:
        """A label and its value in full, broken between words."""
        parts = wrap(safe(text), max(8, self.width - _LABEL_WIDTH - 2))
        return [self.row("" if at else label, part, style) for at, part in enumerate(parts)]

    def notes(self, mark: str, style: str, failure: Failure) -> list[Line]:
        """Like `note`, with the whole request ID, which a support ticket needs, in a second row where it was cut."""
        whole, request = self.note(mark, style, failure), safe(failure.request_id)
        if request in whole.text:
            return [whole]
        below = Line((f"   request id {request}", "dim"))
        return [self.note(mark, style, Failure(failure.path, failure.reason)), below]

    def note(self, mark: str, style: str, failure: Failure) -> Line:
        """A file and the reason why it failed; of a long path the end is kept."""
        reason = safe(failure.reason)
        if failure.request_id:
            reason += f" (request id {failure.request_id})"
        room = self.width - 5
        name = shorten_middle(safe(failure.path), max(_NAME_WIDTH, room - len(reason)), self.glyphs.ellipsis)
        line = Line((f" {mark} ", style), (f"{name}: ", "text"))
        return line.add(shorten(reason, max(0, self.width - line.width), self.glyphs.ellipsis), "dim")


# Form and plan


def form_lines(area: PanelArea, prefix: str, advanced: str, *, ready: bool) -> list[Line]:
    """The help of the form, its keys dim unless `ready`, and the advanced settings that are not the defaults."""
    key, text = ("primary", "text") if ready else ("dim", "dim")
    lines = [
        Line((" s  ", key), ("scan the source and show the plan of the upload", text)),
        Line((" o  ", key), ("select a folder, an archive or a table", text)),
        Line((" a  ", key), ("advanced: label files, a held-out share, name encoding", text)),
        area.row("target", prefix),
        *([area.row("advanced", safe(advanced), "strong")] if advanced else []),
        Line(),
        Line((" A source is one of", "dim")),
    ]
    kinds = (
        "a folder with train/<class>/ and val/<class>/",
        "the tutorial's flat val/, with ILSVRC2012_val_labels.json beside it",
        "a .tar, .tar.gz or .zip of such a folder, read without unpacking",
        "a .csv or .tsv of path, label and split",
    )
    shown = [shorten(kind, area.width - 6, area.glyphs.ellipsis) for kind in kinds]
    lines += [Line((f"   {area.glyphs.dot} ", "rule"), (kind, "dim")) for kind in shown]
    formats = (
        ("image-jpeg", "a twentieth of the tutorial's bytes; random crops in each epoch"),
        ("originals", "the image files as they are; trained on as image-jpeg"),
        ("image-u8", "a quarter of the bytes, decoded; random crops in each epoch"),
        ("tensor-f32", "as in the tutorial: cropped, flipped and normalised once, here"),
    )
    return [*lines, Line(), *(area.row(name, text, "dim") for name, text in formats)]


def scan_lines(area: PanelArea, files: int) -> list[Line]:
    """The progress of the scan of the source."""
    return [
        Line((f" {area.glyphs.running} ", "primary"), (f"Scanning the source: {counted(files, 'file')}", "text")),
        Line((" esc stop", "dim")),
    ]


def plan_lines(area: PanelArea, plan: UploadPlan, settings: UploadSettings, prefix: str) -> list[Line]:
    """The plan of the upload; the notes get the remaining rows."""
    shape = settings.stored_as
    if settings.per_shard:
        shape += f", in tars of {settings.per_shard:,}"
    splits = ", ".join(f"{count:,} {split}" for split, count in plan.samples.items()) or "none"
    samples = counted(plan.to_send, "sample") + (", about" if plan.bytes_estimated else ",")
    lines = [
        area.row("layout", plan.layout),
        area.row("samples", f"{splits}, in {counted(len(plan.classes), 'class', 'classes')}", "strong"),
        area.row("classes", _classes(plan.classes)),
        area.row("to upload", f"{samples} {size(plan.bytes_to_send)} as {shape}", "strong"),
        area.row("unchanged", f"{plan.unchanged:,} already in the bucket"),
        *([area.row("not in source", _beside(plan), "warn")] if plan.removed else []),
        area.row("ignored", counted(plan.ignored, "file")),
        area.row("rejected", _rejected(plan), "warn" if plan.lost else "text"),
        area.row("preparation", _estimate(plan)),
        area.row("storage", f"{size(plan.stored_bytes)}, {_cost(plan.cny_per_month)} a month (estimated)"),
        area.row("target", prefix),
    ]
    lines += [Line((f" {row}", "bad")) for row in wrap(safe(plan.problem), max(8, area.width - 2))]
    marked = [("!", "warn", note) for note in plan.notes]
    lines += _problem_lines(area, marked, plan.lost, (*plan.cautions, *plan.unused), area.height - len(lines) - 2)
    listed = " · f all files with problems" if plan.lost or plan.cautions or plan.unused else ""
    if plan.problem:
        return [*lines, Line(), Line((f" esc back{listed}", "primary"))]
    start = "s start the upload" if plan.to_send else "Nothing to upload. s verifies the bucket and writes the manifest"
    return [*lines, Line(), Line((f" {start}", "primary"), (f" · esc back{listed}", "dim"))]


def _beside(plan: UploadPlan) -> str:
    """The samples of the dataset that are not in the source: a wrong prefix shows here."""
    return f"{counted(plan.removed, 'sample')} of the dataset, which stay in it"


def _cost(cny: float) -> str:
    return f"about CNY {cny:.2f}" if cny >= 0.01 else "less than CNY 0.01"


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(safe(name) for name in names[:_CLASSES_SHOWN])
    return shown + (f" and {len(names) - _CLASSES_SHOWN:,} more" if len(names) > _CLASSES_SHOWN else "")


def _rejected(plan: UploadPlan) -> str:
    return counted(plan.lost, "file") + (f", {plan.conflicts:,} because of their names" if plan.conflicts else "")


def _estimate(plan: UploadPlan) -> str:
    if plan.prepare_s is None:
        return MISSING
    return f"about {duration(max(1.0, plan.prepare_s))} on this machine (estimated)"


def problem_lines(area: PanelArea, failures: Sequence[Failure], count: int, groups: Sequence[Unused]) -> list[Line]:
    """Every file with a problem in full, of `count` those that are kept, and the groups of unused files."""
    lines: list[Line] = []
    for failure in failures:
        request = f" (request id {failure.request_id})" if failure.request_id else ""
        lines += _whole(area, area.glyphs.failed, "bad", f"{failure.path}: {failure.reason}{request}")
    if count > len(failures):
        lines.append(Line((f"   and {count - len(failures):,} more", "dim")))
    for group in groups:
        lines += [
            *([Line()] if lines else []),
            *_whole(area, "!", "warn", f"{group.count:,} {group.kinds}: {group.reason}"),
        ]
        lines += [row for name in group.names for row in _whole(area, " ", "dim", name)]
        if group.count > len(group.names):
            lines.append(Line((f"   and {group.count - len(group.names):,} more", "dim")))
    return lines or [Line((" No file has a problem.", "dim"))]


def _whole(area: PanelArea, mark: str, style: str, text: str) -> list[Line]:
    parts = wrap(safe(text), max(8, area.width - 5))
    return [Line((f" {'' if at else mark:<1} ", style), (part, "text")) for at, part in enumerate(parts)]


def _problem_lines(
    area: PanelArea, marked: Sequence[tuple[str, str, Failure]], count: int, unused: Sequence[Unused], room: int
) -> list[Line]:
    """The files with a problem, `count` in all, then the groups of ignored files; the rest is counted."""
    groups = [
        Line((" ! ", "warn"), (shorten(safe(str(group)), area.width - 4, area.glyphs.ellipsis), "dim"))
        for group in unused
    ]
    if not (marked or groups) or room < 2:
        return []
    # Each of the few groups stands for many files.
    shown = marked[: max(1, room - 2 - len(groups))]
    lines = [Line(), *(area.note(mark, style, note) for mark, style, note in shown)]
    if count > len(shown):
        lines.append(Line((f"   and {count - len(shown):,} more", "dim")))
    return [*lines, *groups][:room]


# Running


_CHART_ROWS = 5
_CHART_NEEDS = 8  # rows below the figures, so that the processes still have some
_CHART_AXIS = 6  # cells


class Throughput:
    """The rate of the newest upload over time."""

    def __init__(self) -> None:
        self._series = Series()
        self._began = 0.0
        self._newest = 0.0

    def add(self, now: float, progress: UploadProgress) -> None:
        """Note the rate at `now`, in Unix seconds; at most one value a second is kept."""
        began = now - progress.seconds
        if abs(began - self._began) > _SAME_UPLOAD_S and not progress.paused:
            self._series, self._began = Series(), began
        if now - self._newest >= 1:
            self._newest = now
            self._series.append(now, progress.bytes_per_s / 1e6)

    def lines(self, area: PanelArea) -> list[Line]:
        """The curve with its axis; empty before the second value."""
        inner = area.width - _CHART_AXIS - 1
        count = inner * plot.DOTS[area.glyphs.chart][0]
        start = self._began
        points = self._series.window(start, max(self._newest, start + 30), count) if inner > 0 else []
        if len(points) < 2:
            return []
        scale = plot.scale_from_zero(points)
        columns = plot.columns_of(points, start, max(self._newest, start + 30), count)
        lines = [area.heading("MB/s")]
        for at, row in enumerate(plot.draw(columns, scale, _CHART_ROWS, area.glyphs.chart)):
            label = compact(scale.high) if at == 0 else "0" if at == _CHART_ROWS - 1 else ""
            mark = area.glyphs.tick if label else area.glyphs.vertical
            lines.append(Line((label.rjust(_CHART_AXIS), "dim"), (mark, "rule"), (row, "primary")))
        end = duration(max(self._newest - start, 30))
        return [*lines, Line((" " * _CHART_AXIS + "0:00", "dim")).right(Line((end, "dim")), area.width)]


_SAME_UPLOAD_S = 5.0


def _ends(area: PanelArea, source: str, target: str) -> list[Line]:
    """From where to where; of a long path its ends are kept."""
    room = max(8, area.width - _LABEL_WIDTH - 2)
    named = (("source", source), ("target", target))
    return [area.row(name, shorten_middle(safe(text), room, area.glyphs.ellipsis)) for name, text in named if text]


def progress_lines(area: PanelArea, progress: UploadProgress, ends: tuple[str, str], rates: Throughput) -> list[Line]:
    """The running upload: progress, rates, bottleneck, and the sample that each process prepares.

    `ends` are its source and its target.
    """
    lines = [
        bar(area, progress),
        *_ends(area, *ends),
        Line(),
        *_tiles(area, progress),
        Line(),
        counts(progress),
        area.row("sending", _sending(progress)),
    ]
    if progress.waiting:
        lines += area.rows("waiting", progress.waiting, "warn")
    if progress.error:
        lines += area.rows("stopped by", progress.error, "bad")
    if area.height - len(lines) >= _CHART_NEEDS + 2:
        lines += [Line(), *rates.lines(area)]
    return lines + _workers(area, progress, area.height - len(lines))


def lower_lines(area: PanelArea, progress: UploadProgress) -> list[Line]:
    """The newest failures, the last one first, in at most half of the rows; below, the classes."""
    failures = list(reversed(progress.recent_failures))
    lines = [line for failure in failures for line in area.notes(area.glyphs.failed, "bad", failure)]
    lines = [heading("Failures", area.width, area.glyphs.rule, "f all"), *lines] if failures else []
    room = area.height - len(lines)
    if progress.classes and room < _CLASS_ROWS:
        room = min(_CLASS_ROWS, area.height // 2)
        lines = lines[: area.height - room]
    return [*lines, *_class_lines(area, progress, room)][: area.height]


_CLASS_ROWS = 4  # with the heading


def _class_lines(area: PanelArea, progress: UploadProgress, height: int) -> list[Line]:
    """A bar for each class that fits, for its samples in the bucket, in columns; those uploaded last."""
    columns = max(1, area.width // _CLASS_CELLS)
    cells, rows = area.width // columns, height - 1
    if not progress.classes or rows < 1:
        return []
    shown = progress.classes[: rows * columns]
    more = progress.class_count - len(shown)
    most = max(count for _, count in shown)
    note = f"{more:,} more" if more else ""
    lines = [heading("Samples by class", area.width, area.glyphs.rule, note)]
    for first in range(0, len(shown), columns):
        line = Line()
        for at, (name, count) in enumerate(shown[first : first + columns]):
            room = cells - _CLASS_NAME - _CLASS_COUNT - 2
            bar = area.glyphs.bar_full * max(1, round(room * count / most))
            line.to(at * cells).add(f" {shorten_middle(safe(name), _CLASS_NAME - 2, area.glyphs.ellipsis)}", "text")
            line.to(at * cells + _CLASS_NAME).add(f"{count:>{_CLASS_COUNT},} ", "strong").add(bar, "primary")
        lines.append(line)
    return lines


_CLASS_CELLS, _CLASS_NAME, _CLASS_COUNT = 40, 18, 8  # of a column, its name and its count


def bar(area: PanelArea, progress: UploadProgress) -> Line:
    """State, progress bar and counts in one line."""
    share = progress.done / progress.total if progress.total else 0.0
    glyphs = area.glyphs
    mark, style = _STATE_MARKS.get(progress.phase, (glyphs.running, "primary"))
    mark = {"done": glyphs.done, "failed": glyphs.failed, "cancelled": glyphs.paused}.get(mark, mark)
    if progress.phase is Phase.DONE and progress.failed:
        mark, style = "!", "warn"  # as the chip, which counts the failures
    if progress.paused and not progress.phase.final:
        mark, style = glyphs.paused, "warn"
    state = "paused" if progress.paused and not progress.phase.final else str(progress.phase)
    line = Line((f" {mark} ", style), (f"{state}  ", "strong"))
    known = progress.total_known and progress.total
    total = f"{progress.total:,}" if known else f"{progress.total:,}+"
    end = Line((f"  {progress.done:,} of {total}", "text"), (f"  {percent(share) if known else 'counting'} ", "strong"))
    room = max(0, area.width - line.width - end.width)
    full = round(share * room) if known else 0
    line.add(glyphs.bar_full * full, "primary").add(glyphs.bar_empty * (room - full), "rule")
    return line.extend(end)


_STATE_MARKS = {Phase.DONE: ("done", "good"), Phase.FAILED: ("failed", "bad"), Phase.CANCELLED: ("cancelled", "warn")}


def _tiles(area: PanelArea, progress: UploadProgress) -> list[Line]:
    left = duration(progress.eta_s) if progress.eta_s is not None else MISSING
    bound = str(progress.bottleneck) if progress.bottleneck else MISSING
    span = "last 10 s" if not progress.phase.final else "on average"
    if progress.checks:
        span = f"{progress.files_per_s:.0f} checked"
    found = (
        ("samples/s", rate(progress.samples_per_s), span),
        ("MB/s", rate(progress.bytes_per_s / 1e6), f"{size(progress.bytes)} sent"),
        ("time left", left, f"{duration(progress.seconds)} so far"),
        ("limited by", bound, counted(progress.retries, "retry", "retries")),
    )
    shown = [(label, Line((value, "strong")), Line((note, "dim"))) for label, value, note in found]
    return tile_lines(shown[: max(1, area.width // TILE_WIDTH)], area.width)


def counts(progress: UploadProgress) -> Line:
    """The number of samples by result."""
    line = Line((" ", "text"))
    for count, word, style in (
        (progress.uploaded, "uploaded", "strong"),
        (progress.unchanged, "unchanged", "strong"),
        (progress.skipped - progress.unchanged, "ignored", "strong"),
        (progress.failed, "failed", "bad" if progress.failed else "strong"),
    ):
        line.add(f"{count:,} ", style).add(f"{word}   ", "dim")
    return line


def _sending(progress: UploadProgress) -> str:
    cap = f"at most {size(progress.bandwidth)}/s" if progress.bandwidth else "no limit"
    return f"{progress.sending} of {progress.parallelism} in parallel, {cap}"


def _workers(area: PanelArea, progress: UploadProgress, room: int) -> list[Line]:
    """The sample that each process prepares; processes that do not fit are counted."""
    busy = [(number, key) for number, key in enumerate(progress.workers, 1) if key]
    if not busy or room < 1:
        return []
    shown = busy if len(busy) <= room else busy[: room - 1]
    lines = [
        area.row(f"process {number}", shorten_middle(safe(key), area.width - _LABEL_WIDTH - 2, area.glyphs.ellipsis))
        for number, key in shown
    ]
    if len(busy) > len(shown):
        lines.append(area.row("", f"and {len(busy) - len(shown)} more processes", "dim"))
    return lines


# Result


def end_lines(
    area: PanelArea, progress: UploadProgress, summary: UploadSummary, ends: tuple[str, str], prefix: str
) -> list[Line]:
    """The result: counts, next steps, and the failures that fit.

    `ends` are source and target: the latter shows while no manifest does. `prefix` is given where the dataset is not at
    the profile's own prefix.
    """
    lines = [
        bar(area, progress),
        *_ends(area, ends[0], "" if summary.manifest else ends[1]),
        counts(progress),
        area.row(
            "sent",
            f"{size(summary.bytes)} in {duration(summary.seconds)}, {rate(summary.samples_per_s)} samples/s, "
            + counted(summary.retries, "retry", "retries"),
        ),
    ]
    if progress.error:
        lines += area.rows("stopped by", progress.error, "bad")
    if summary.manifest:
        lines.append(area.row("manifest", safe(summary.manifest)))
    if summary.removed:
        fate = "deleted from the bucket" if summary.pruned else "still in the dataset"
        count = counted(summary.removed_count, "sample")
        lines.append(area.row("not in source", f"{count}, {fate}", "warn"))
    if summary.unknown:
        found = counted(summary.unknown, "object")
        lines.append(area.row("unknown", f"{found} below the prefix that do not belong to this dataset"))
    marked = [(area.glyphs.failed, "bad", note) for note in summary.failures]
    groups = (*summary.cautions, *summary.unused)
    lines += _problem_lines(area, marked, summary.failed, groups, area.height - len(lines) - 2)
    return [*lines, Line(), Line((_next(progress, summary, prefix), "primary"))]


def _next(progress: UploadProgress, summary: UploadSummary, prefix: str) -> str:
    listed = " · f all files with problems" if summary.failed or summary.cautions or summary.unused else ""
    if progress.phase is Phase.DONE and not summary.failed:
        if prefix:
            return f" n another upload · to train: --dataset-prefix {safe(prefix)}{listed}"
        return f" n another upload · 4 train on this one{listed}"
    return f" r retry what is missing · n another upload{listed}"


def after_other(source: str) -> Line:
    """The next step after an upload that another process did."""
    return Line((f" n, then {safe(source)} as the source, uploads what is missing", "primary"))
