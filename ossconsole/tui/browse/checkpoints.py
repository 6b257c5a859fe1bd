"""Commands for checkpoints: resume training from one, copy it to the best one, compare two."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fastcrc
import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import make_folder, state_dir
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.contents import Content, read_folder
from ossconsole.storage.checkpoints.compare import TensorDistance, pair_tensors, tensor_distances
from ossconsole.storage.checkpoints.inspect import (
    SAFETENSORS,
    SHARDED,
    CheckpointInfo,
    inspect_checkpoint,
)
from ossconsole.storage.jobs.actions import Copy, ObjectOrPrefix
from ossconsole.storage.jobs.download import Download
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.multipart import PART_SIZE
from ossconsole.storage.objects import ObjectInfo, ObjectSummary
from ossconsole.telemetry.events import Checkpoint
from ossconsole.telemetry.runs import read_events, record_path
from ossconsole.training.checkpoints.export import check_out, export_weights
from ossconsole.training.settings import settings_of_checkpoint
from ossconsole.tui.browse.browser import Browser
from ossconsole.tui.browse.detail import FIELD_LABELS, field_text, metric_label, metric_text
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.scroll import Block, DetailView
from ossconsole.tui.kit.text import Line, number, percent, shorten_middle, size, wrap

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

BEST_NAME = "best.pt"


_RUN, _EPOCH, _STEP, _TOP1 = 20, 9, 12, 8  # cells


def columns(name: str, cells: int, *, key: str, known: KnownCheckpoints) -> str:
    """A checkpoint as run, epoch, step and top-1 in columns; "" for other rows, or without room.

    The name of a run's own checkpoint says them. Of others, which keep their names, they are known once they were read.
    """
    found, read = parse_name(name), known.facts(key)
    if found is None and read is None:
        return ""
    facts = read or _Facts()
    if found is not None:
        facts = _Facts(found.run, found.epoch, found.step, known.top1(found) if facts.top1 is None else facts.top1)
    first = facts.run if found is not None else name
    parts = [
        f"{first:<{_RUN}}",
        f"{'' if facts.epoch is None else f'epoch {facts.epoch}':>{_EPOCH}}",
        f"{'' if facts.step is None else f'step {facts.step:,}':>{_STEP}}",
        "" if facts.top1 is None else f"{percent(facts.top1, 1):>{_TOP1}}",
        f"  {facts.run}" if facts.run and found is None else "",
    ]
    if sum(map(len, parts[:3])) > cells:
        return ""
    text = "".join(parts[:3])
    for part in parts[3:]:
        text = text + part if len(text) + len(part) <= cells else text
    return text.rstrip()


_NAME = re.compile(
    r"(?P<model>[^-/]+)-(?P<run>[0-9]{8}-[0-9]{6}-[0-9a-f]{4})-e(?P<epoch>\d+)-s(?P<step>\d+)(?:\.pt|\.safetensors|/)"
)


class CheckpointName(msgspec.Struct, frozen=True):
    """The parts of the name of a run's checkpoint."""

    model: str
    run: str
    epoch: int
    step: int


def parse_name(name: str) -> CheckpointName | None:
    """The parts of the name of an object or a folder; None for others."""
    found = _NAME.fullmatch(name)
    return CheckpointName(found["model"], found["run"], int(found["epoch"]), int(found["step"])) if found else None


class _Facts(msgspec.Struct, frozen=True):
    """What a checkpoint says of itself, as far as it does."""

    run: str = ""
    epoch: int | None = None
    step: int | None = None
    top1: float | None = None


def _facts_of(info: CheckpointInfo) -> _Facts | None:
    """None where it says neither epoch nor step."""
    epoch, step = info.fields.get("epoch"), info.fields.get("step", info.fields.get("global_step"))
    epoch, step = (each if isinstance(each, int) else None for each in (epoch, step))
    if epoch is None and step is None:
        return None
    top1 = info.metrics.get("top1")
    shown = top1 if top1 is not None and 0 <= top1 <= 1 else None
    return _Facts(safe_text(str(info.fields.get("run") or "")), epoch, step, shown)


class KnownCheckpoints:
    """What is known of checkpoints beyond the listing: of those that were read, and from records of runs.

    A thread reads the record of each run on this machine once, and calls `on_change`.
    """

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._read: dict[str, _Facts] = {}
        self._top1: dict[tuple[str, int], float] = {}
        self._requested: set[str] = set()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="records")

    def add(self, key: str, info: CheckpointInfo) -> bool:
        """Keeps what the checkpoint at a key, or in a folder, says; False where that is nothing."""
        facts = _facts_of(info)
        if facts is not None:
            self._read[key] = facts
        return facts is not None

    def forget(self) -> None:
        """Drops what was read: the objects may have been replaced."""
        self._read.clear()

    def facts(self, key: str) -> _Facts | None:
        """The values in the checkpoint at `key`; None before they were read."""
        return self._read.get(key)

    def top1(self, name: CheckpointName) -> float | None:
        """The top-1 accuracy in the record of its run, None while unknown; returns immediately."""
        if name.run not in self._requested:
            self._requested.add(name.run)
            self._reader.submit(self._read_record, name.run)
        return self._top1.get((name.run, name.step))

    def _read_record(self, run: str) -> None:
        try:
            for event in read_events(record_path(run)):
                if isinstance(event, Checkpoint) and event.top1 is not None:
                    self._top1[run, event.step] = event.top1
        except ConsoleError:  # a run of another machine
            return
        self._on_change()


def train_from(screen: Browser) -> None:
    """Start a run that resumes from this checkpoint."""
    content = screen.detail.content if screen.detail else None
    if isinstance(content, CheckpointInfo):
        store, profile = screen.store, screen.services.profile
        # A run resumes from the bucket of the profile: a bare key would name another object there.
        elsewhere = store is not None and profile is not None and store.profile.bucket != profile.bucket
        resume = store.uri(content.name) if store is not None and elsewhere else content.name
        screen.console.new_run(resume=resume, known=_settings_of(content))


def _settings_of(content: CheckpointInfo) -> dict[str, Any]:
    """What the run that wrote the checkpoint must have in common with the one that resumes it."""
    known = settings_of_checkpoint(content.fields, processes=1)
    epoch = content.fields.get("epoch")
    return known | ({"epochs": epoch + 1} if isinstance(epoch, int) else {})


@work(exclusive=True, group="dialog", exit_on_error=False)
async def best(screen: Browser) -> None:
    """Copy the checkpoint, on the server, to the best one of its model beside it, as training does."""
    store, detail = screen.store, screen.detail
    if store is None or detail is None or detail.info is None:
        return
    folder, _, name = detail.key.rpartition("/")
    known = parse_name(name)
    target = f"{folder}/{known.model}-{BEST_NAME}" if known else f"{folder}/{BEST_NAME}"
    target = target.lstrip("/")
    source = ObjectSummary(detail.key, detail.info.size, detail.info.modified)
    try:
        job = Copy(store, [source], detail.key, target, replace=True)
    except ConsoleError as error:
        screen.show_error(error)
        return
    exists = await screen.request(lambda: store.exists(target))
    if exists is None or (exists and not await screen.ask(_best_question(target))):
        return
    screen.run_job(job, lambda _: screen.model.refresh())


def _best_question(target: str) -> ConfirmScreen:
    return ConfirmScreen(
        "Best checkpoint",
        f"{safe_text(target)} exists and would be replaced by a copy of this checkpoint.",
        (Choice("", "Cancel"), Choice("replace", "Replace", "warning")),
    )


NEEDS_CHECKPOINT = {"best", "train_from"}
_NOT_OF_TORCH_SAVE = {SHARDED, SAFETENSORS}  # one has its weights in other files, the other has nothing else


def allows(action: str, content: Content | None) -> bool:
    """Whether an action of NEEDS_CHECKPOINT can be done with what was read."""
    if not isinstance(content, CheckpointInfo):
        return False
    return content.resumable if action == "train_from" else content.kind not in _NOT_OF_TORCH_SAVE


def weights_source(screen: Browser) -> ObjectSummary | None:
    """The checkpoint that alone is selected and shown, where it has more than weights that can be loaded; else None."""
    sources, detail = screen.targets, screen.detail
    content = detail.content if detail is not None else None
    if detail is None or not isinstance(content, CheckpointInfo) or content.foreign or not content.model:
        return None
    (source, *others) = sources
    fits = isinstance(source, ObjectSummary) and source.key == detail.key and not others
    return source if fits and isinstance(source, ObjectSummary) and content.kind not in _NOT_OF_TORCH_SAVE else None


def check_file(path: Path) -> None:
    """Raises ConsoleError when weights cannot be written to the path, for example as it exists."""
    try:
        check_out(path, force=False)
    except SettingsError as error:
        raise ConsoleError(error.message, remedy="Enter another name.") from error


class WeightsDownload(Job):
    """Downloads a checkpoint and writes its weights to `out`."""

    moves_bytes = True

    def __init__(self, store: ObjectStore, source: ObjectSummary, out: Path) -> None:
        super().__init__(f"Weights of {safe_text(source.key)}")
        self._store = store.pausing(self.wait_to_retry)
        self._source = source
        self._out = out

    def work(self) -> None:
        """Reads the checkpoint whole, as its tensors are in any place of the file. Raises ConsoleError."""
        from ossconsole.training.compute.weights_file import read_weights, refuse_too_large

        where = self._store.uri(safe_text(self._source.key))
        info = self._store.head(self._source.key)  # of a symbolic link, the listing has another size
        refuse_too_large(info.size, where)
        self.tracker.add_total(1, info.size)
        self.tracker.totals_known()
        data = self._fetched(info, where)
        self.check_cancelled()
        export_weights(read_weights(data, where), where, self._out)
        self.tracker.complete(None, 0)  # its bytes were counted part by part

    def _fetched(self, info: ObjectInfo, where: str) -> bytes:
        parts: dict[int, bytes] = {}

        def fetch(start: int) -> None:
            self.check_cancelled()
            parts[start] = self._store.get_range(info.key, start, min(PART_SIZE, info.size - start))
            self.tracker.advance(start, len(parts[start]))

        self.pool(range(0, info.size, PART_SIZE), fetch)
        data = b"".join(parts.pop(start) for start in sorted(parts))
        if len(data) != info.size or info.crc64 not in {None, fastcrc.crc64.xz(data)}:
            raise ConsoleError(f"{where} was replaced while it was read.", remedy="Try again.")
        return data

    def retry(self) -> WeightsDownload:
        """The same again: the parts were in memory alone."""
        return WeightsDownload(self._store, self._source, self._out)


@work(exclusive=True, group="dialog", exit_on_error=False)
async def compare(screen: Browser) -> None:
    """Compare the two selected checkpoints, which are objects or the folders of DCP checkpoints."""
    store, sources = screen.store, screen.targets
    if store is None:
        return
    if len(sources) != 2:
        screen.notify("Select two checkpoints with space, then press =.", timeout=4)
        return
    checkpoints = await screen.request(lambda: [_inspected(store, source) for source in sources])
    if checkpoints:
        objects = [source for source in sources if isinstance(source, ObjectSummary)]
        await screen.ask(CheckpointCompareScreen(store, objects, *checkpoints))


def _inspected(store: ObjectStore, source: ObjectOrPrefix) -> CheckpointInfo:
    """Raises CheckpointError, StorageError, and ConsoleError for a folder that is not a checkpoint."""
    if isinstance(source, ObjectSummary):
        return inspect_checkpoint(store, source.key, source.size)
    found = read_folder(store, source)
    if found is None:
        raise ConsoleError(f"{safe_text(source)} is not a DCP checkpoint.", remedy="Select two checkpoints.")
    return found


class CheckpointCompareScreen(ConsoleModal):
    """Two checkpoints side by side; `n` downloads both and compares the values of the tensors."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "back", show=False),
        Binding("n", "norms", "Norms", show=False),
    ]

    def __init__(
        self, store: ObjectStore, sources: Sequence[ObjectSummary], left: CheckpointInfo, right: CheckpointInfo
    ) -> None:
        super().__init__()
        self._store = store
        self._sources = sources
        self._left = left
        self._right = right
        self._distances: dict[str, TensorDistance] = {}
        self._download: Download | None = None
        self._status = ""

    def compose(self) -> ComposeResult:
        """The comparison as one scrolled view."""
        both = size(self._left.size + self._right.size)
        keys = f"n download both ({both}) for norms · esc close" if self._can_download else "esc close"
        with self.frame("Compare checkpoints", keys, classes="-full"):
            yield DetailView(self._blocks, id="comparison")

    def on_mount(self) -> None:
        """Show the progress of the downloads."""
        self.query_one(DetailView).focus()
        self.set_interval(0.25, self._show_progress)

    def action_back(self) -> None:
        """Cancel the downloads and close the screen."""
        if self._download:
            self._download.cancel()
        self.dismiss(None)

    def action_norms(self) -> None:
        """Download both checkpoints and compare their tensors."""
        if self._can_download and self._download is None and not self._distances:
            self._measure()

    @property
    def _can_download(self) -> bool:
        """Whether the tensors are in the objects; those of a DCP checkpoint are in other files."""
        return SHARDED not in {self._left.kind, self._right.kind}

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _measure(self) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=make_folder(state_dir()), prefix="compare-") as folder:
                files = self._fetch(Path(folder))
                self._download, self._status = None, "comparing"
                found = tensor_distances(self._left, files[0], self._right, files[1])
                self._distances = {distance.name: distance for distance in found}
                self._status = ""
        except (ConsoleError, OSError) as error:
            self._status = str(error)
        finally:
            self._download = None
        self.app.call_from_thread(self._redraw)

    def _fetch(self, folder: Path) -> list[Path]:
        files = []
        for number_, source in enumerate(self._sources):
            below = folder / str(number_)
            self._download = Download(self._store, [source], source.key.rpartition("/")[0] + "/", below)
            self._download.start()
            self._download.wait()
            if self._download.state is not JobState.DONE:
                failed = [failure.reason for failure in self._download.failures]
                raise self._download.error or ConsoleError(failed[0] if failed else "The download was cancelled.")
            files.append(next(path for path in below.iterdir() if path.is_file()))
        return files

    def _show_progress(self) -> None:
        if self._download is not None:
            progress = self._download.progress()
            self._status = f"downloading: {size(progress.bytes_done)} of {size(progress.bytes_total)}"
            self._redraw()

    def _redraw(self) -> None:
        self.query_one(DetailView).redraw()

    def _blocks(self, width: int, _height: int) -> Sequence[Block]:
        half = (width - 18) // 2
        lines: list[Block] = []
        for label, left, right in self._rows():
            mark, style = ("!", "warn") if left != right else (" ", "text")
            line = Line((mark, style), (label, "dim")).to(16, "dim")
            line.add(shorten_middle(left, half), style).to(17 + half).add(shorten_middle(right, half), style)
            lines.append(line)
        if self._status:
            lines += [Line((f" {part}", "warn")) for part in wrap(safe_text(self._status), width - 2)]
        lines.append(Line())
        pairs = pair_tensors(self._left, self._right)
        changed = sum(pair.change != "same shape" for pair in pairs)
        shapes = f"{changed} added, removed or with another shape" if changed else "shapes identical"
        lines.append(Line((f" {counted(len(pairs), 'tensor')}, {shapes}", "strong")))
        if not changed and not self._distances:
            return lines  # a row for each tensor would say nothing more
        ordered = sorted(pairs, key=lambda pair: (pair.change == "same shape", -self._distance_of(pair.name)))
        for pair in ordered:
            # Both shapes where they differ.
            sides = dict.fromkeys("x".join(map(str, row.shape)) for row in (pair.left, pair.right) if row is not None)
            shape = f" {self.glyphs.arrow} ".join(sides)
            change = Line((f"{shape} ", "dim"), (pair.change, "text" if pair.change == "same shape" else "warn"))
            if pair.name in self._distances:
                change.add(self._distance_words(self._distances[pair.name]), "text")
            name = shorten_middle(safe_text(pair.name), max(12, width - change.width - 3))
            lines.append(Line((f" {name}", "text")).right(change.add(" "), width))
        return lines

    def _distance_of(self, name: str) -> float:
        found = self._distances.get(name)
        return (found.relative or 0.0) if found else 0.0

    @staticmethod
    def _distance_words(distance: TensorDistance) -> str:
        relative = percent(distance.relative, 2) if distance.relative is not None else number(distance.difference)
        return f"  |d| {number(distance.difference):>9}  {relative:>9}  max {number(distance.largest):>8}"

    def _rows(self) -> list[tuple[str, str, str]]:
        left, right = self._left, self._right
        rows = [("name", left.name, right.name), ("kind", left.kind, right.kind)]
        rows += [
            (
                FIELD_LABELS.get(name, name),
                field_text(left.fields.get(name, "")),
                field_text(right.fields.get(name, "")),
            )
            for name in ("model_name", "run", "epoch", "step", "sample_format", "image_size", "classes")
            if name in left.fields or name in right.fields
        ]
        rows += [
            (metric_label(name), metric_text(name, left.metrics.get(name)), metric_text(name, right.metrics.get(name)))
            for name in dict.fromkeys((*left.metrics, *right.metrics))
        ]
        rows += [
            ("parameters", f"{left.parameters:,}", f"{right.parameters:,}"),
            ("size", size(left.size), size(right.size)),
        ]
        return [(safe_text(label), safe_text(one), safe_text(other)) for label, one, other in rows]
