"""Run records: one JSON Lines file per run, readable while it grows or after a crash; and the list of all runs."""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import STATE_DIR_VARIABLE, make_folder, open_regular, reason, state_dir, write_remedy
from ossconsole.config.text import counted
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import ComparisonReport
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.ranks import RankFigures

SUFFIX = ".jsonl"
# Our lines have a few hundred bytes; a longer one is not ours and must not fill the memory.
MAX_LINE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 18
SEARCH_BYTES = 1 << 20
"""Searched in one call, which holds the interpreter's lock for about 0.4 ms: a record has 400 MB after a day."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Frequent and cheap to lose in a power cut; all others are synced to the disk.
_UNSYNCED = (events.Step, events.Telemetry, events.LoaderWorkers, events.RankWork, events.InfoEvent)


class RecordError(ConsoleError):
    """A run record cannot be opened or read."""


def runs_dir() -> Path:
    """The folder of the run records; it may be missing."""
    return state_dir() / "runs"


def new_run_id(now: float | None = None) -> str:
    """A fresh id that sorts by start time (UTC)."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{secrets.token_hex(2)}"


def record_path(run: str) -> Path:
    """The path of the record of `run`. Raises SettingsError where `run` is not a run id."""
    if not _RUN_ID.fullmatch(run):
        raise SettingsError(f"{run!r} is not a run id.", remedy="`ossconsole status` names the newest run.")
    return runs_dir() / f"{run}{SUFFIX}"


class RunRecord(AbstractContextManager["RunRecord"]):
    """Appends events to a record (0600), one per line, from any thread.

    A failing disk must not end a run: `append` never raises, `lost` counts the events that are missing and `problem`
    is the reason (empty for none).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.problem = ""
        self._lock = threading.Lock()
        self._torn = False
        make_folder(path.parent)
        try:
            # O_NONBLOCK: opening a fifo must not wait for its reader.
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise RecordError(
                f"The run record {path} cannot be written: {reason(error)}.", remedy=write_remedy(path, error)
            ) from error

    def append(self, *new: Event) -> None:
        """Writes events as lines, in one write; warnings, state changes and results are on the disk when this returns.

        One write of many steps spares a script's loop the change of threads that each write costs.
        """
        lines = b"".join(events.encode(event) + b"\n" for event in new)
        with self._lock:
            try:
                written = self._write(lines)
                problem = "" if written == len(lines) else os.strerror(errno.ENOSPC)
                if not problem and not all(isinstance(event, _UNSYNCED) for event in new):
                    os.fsync(self._fd)
            except OSError as error:
                written, problem = 0, str(error.strerror)
            if problem:
                self.lost += len(new) - lines[:written].count(b"\n")
                self.problem = f"The run record {self.path} lacks {counted(self.lost, 'event')}: {problem}."

    def _write(self, lines: bytes) -> int:
        """Returns how many of the bytes the disk has accepted."""
        # A full disk can cut a line; the next event then starts a new line, so that only the cut one is lost.
        first = b"\n" if self._torn else b""
        written = os.write(self._fd, first + lines)
        self._torn = written < len(first + lines)
        return max(0, written - len(first))

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __exit__(self, *_exception: object) -> None:
        self.close()


class RecordReader(AbstractContextManager["RecordReader"]):
    """Reads a record incrementally, also while it grows.

    An incomplete line is left for the next `poll`; `skipped` counts the lines that are not a known event (cut by a
    crash, or written by a newer version).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0
        self._pending = b""
        self._overlong = False
        try:
            self._fd = open_regular(path)
        except OSError as error:
            raise RecordError(
                f"The run record {path} cannot be read: {error.strerror}.", remedy="`ossconsole status` names a run."
            ) from error

    def poll(self) -> list[Event]:
        """The next events, some thousand at most; empty where there is none."""
        while block := self._read():
            *lines, self._pending = (self._pending + block).split(b"\n")
            if self._overlong and lines:
                del lines[0]
                self._overlong = False
            if len(self._pending) > MAX_LINE_BYTES:
                self.skipped += not self._overlong
                self._overlong = True
                self._pending = b""
            found = [event for line in lines if line.strip() and (event := self._decode(line))]
            if found:
                return found
        return []

    @property
    def read_share(self) -> float:
        """How much of the record has been read, 0 to 1."""
        size = os.fstat(self._fd).st_size
        return os.lseek(self._fd, 0, os.SEEK_CUR) / size if size else 1.0

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _BLOCK_BYTES)
        except OSError as error:
            raise RecordError(f"The run record {self.path} cannot be read: {error.strerror}.") from error

    def finish(self) -> list[Event]:
        """The event of a last line without its newline; empty where a crash cut it."""
        line, self._pending = self._pending, b""
        event = None if self._overlong or not line.strip() else self._decode(line)
        return [] if event is None else [event]

    def _decode(self, line: bytes) -> Event | None:
        try:
            return events.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.skipped += 1
            return None

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __exit__(self, *_exception: object) -> None:
        self.close()


def read_events(path: Path) -> Iterator[Event]:
    """Every event of a record, in constant memory. Raises RecordError when it cannot be read."""
    with RecordReader(path) as reader:
        while found := reader.poll():
            yield from found
        yield from reader.finish()


E = TypeVar("E", bound=events.Event)


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run by its record: how it started, and its newest metrics.

    `samples_per_s` and `wait_fraction` are those of the whole run once it has ended (None with a `reason` where it was
    too short), and of its last steps until then. `comparison` is the newest result, `ranks` are the newest figures of
    each rank. `alive` is True while its process exists on this machine, None for a run of another machine. `top1` is a
    fraction of 1; `started` and `updated` are Unix seconds. `class_top1` is the top-1 of the last epoch, by class.
    `device` is cpu or cuda, "" where unknown, and `gpus` are UUIDs; `gpu_utilization` is their mean in the newest
    sample, in percent. `ceiling` is the share of what the model can do there, in words; "" where unknown.
    """

    run: str
    path: str
    started: float
    updated: float
    version: str
    pid: int
    host: str
    alive: bool | None
    state: RunState
    profile: str = ""
    bucket: str = ""
    simulated: bool = False
    step: int = 0
    epoch: int = 0
    samples_per_s: float | None = None
    wait_fraction: float | None = None
    reason: str = ""
    endpoint: EndpointKind | None = None
    loss: float | None = None
    val_loss: float | None = None
    top1: float | None = None
    class_top1: dict[str, float] = {}
    checkpoint: str = ""
    error: str = ""
    comparison: ComparisonReport | None = None
    device: str = ""
    gpus: tuple[str, ...] = ()
    gpu_utilization: float | None = None
    ceiling: str = ""
    ranks: tuple[RankFigures, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether its process ended without a final event: a crash, a kill, a power cut."""
        return self.alive is False and not self.state.final


def summarise(path: Path) -> RunSummary:
    """The summary of the record at `path`. Raises RecordError where it cannot be read, or is not a record."""
    try:
        with os.fdopen(open_regular(path), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _summarise(path, data)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecordError(f"{path} is not a readable run record: {reason}.", remedy=_REMEDY) from error


_REMEDY = "`ossconsole status` names the newest run."


def list_runs(*, newest: int | None = None) -> list[RunSummary]:
    """Every run of the state folder, newest first; files that are not records are left out.

    `newest` limits their number: the last ones by their names, which begin with the date, are read. Raises RecordError
    where the folder cannot be read; a missing one has no runs.
    """
    records = _records()
    if newest is not None:
        records = sorted(records, key=lambda path: path.name)[-newest:]
    summaries = (_summary_or_none(path) for path in records)
    found = [summary for summary in summaries if summary is not None]
    return sorted(found, key=lambda summary: (summary.started, summary.run), reverse=True)


def _records() -> list[Path]:
    directory = runs_dir()
    try:
        return [path for path in directory.iterdir() if path.name.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(
            f"The run records in {directory} cannot be read: {reason(error)}.",
            remedy=f"Make the folder readable, or set {STATE_DIR_VARIABLE} to the folder of your runs.",
        ) from error


def find_run(run: str = "", *, profile: str = "", bucket: str = "") -> RunSummary:
    """The named run; without a name the newest active one, else the newest, of `profile` and `bucket` where given.

    Raises RecordError where there is none.
    """
    if run:
        return summarise(record_path(run))
    runs = [summary for summary in list_runs() if profile in {"", summary.profile} and bucket in {"", summary.bucket}]
    if not runs:
        for path in _records():
            if not os.access(path, os.R_OK):
                summarise(path)  # raises: a file that cannot be read may be the run
        of = f" of {profile or bucket}" if profile or bucket else ""
        raise RecordError(f"No run{of} is recorded yet.", remedy="Start one: `ossconsole train` or `ossconsole demo`.")
    return next((summary for summary in runs if summary.alive and not summary.state.final), runs[0])


def _summary_or_none(path: Path) -> RunSummary | None:
    try:
        return summarise(path)
    except ConsoleError:
        return None


def _summarise(path: Path, data: mmap.mmap) -> RunSummary:
    run = _decode(data[: _line_end(data, 0)], events.Run)
    if run is None:
        raise ValueError("its first line is not the start of a run")
    latest = _last(data, events.Run) or run  # a restart writes the event again
    step = _last(data, events.Step)
    epoch = _last(data, events.Epoch)
    checkpoint = _last(data, events.Checkpoint)
    switch = _last(data, events.Switch)
    state = _last(data, events.State)
    failure = _last(data, events.ErrorEvent)
    summary = _last(data, events.Summary)
    compared = _last(data, events.Compared)
    ranks = _last(data, events.RankWork)
    devices = _last(data, events.Devices)
    whole = summary or step  # each has both figures
    newest = [event.time for event in (run, step, epoch, checkpoint, switch, state, summary) if event is not None]
    endpoint = step.endpoint if step else None
    return RunSummary(
        run=run.run,
        path=str(path),
        started=run.time,
        updated=max(newest),
        version=run.version,
        pid=latest.pid,
        host=latest.host,
        alive=is_alive(latest),
        state=summary.state if summary else state.state if state else RunState.STARTING,
        profile=run.profile,
        bucket=run.bucket,
        simulated=run.simulated,
        step=step.step if step else 0,
        epoch=step.epoch if step else 0,
        samples_per_s=whole.samples_per_s if whole else None,
        wait_fraction=whole.wait_fraction if whole else None,
        reason=summary.reason if summary else "",
        endpoint=switch.endpoint if switch and (step is None or switch.time > step.time) else endpoint,
        loss=step.loss if step else None,
        val_loss=epoch.val_loss if epoch else None,
        top1=epoch.top1 if epoch else None,
        class_top1=epoch.class_top1 if epoch else {},
        checkpoint=checkpoint.key if checkpoint else "",
        error=(summary.error if summary else "") or (failure.message if failure else ""),
        comparison=(summary.comparison if summary else None) or (compared.comparison if compared else None),
        ranks=ranks.ranks if ranks else (),
        device=devices.device if devices else "",
        gpus=devices.gpus if devices else (),
        gpu_utilization=_mean_utilization(devices, _last(data, events.Telemetry)),
        ceiling=devices.share_of_ceiling(whole.samples_per_s if whole else None) if devices else "",
    )


def is_alive(run: events.Run) -> bool | None:
    """Whether the process of the run exists on this machine; None for a run of another machine."""
    if run.host and run.host != socket.gethostname():
        return None
    if run.pid <= 0:
        return False
    import psutil  # late: the console's first paint needs the recorder, not this

    try:
        process = psutil.Process(run.pid)
        # A process that started after the run has only reused its pid; 2 s cover clock adjustments.
        return (
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE and process.create_time() < run.time + 2
        )
    except psutil.Error:
        return False


def _mean_utilization(devices: events.Devices | None, telemetry: events.Telemetry | None) -> float | None:
    """The mean over the GPUs of the run in the last sample, in percent; None where it is unknown."""
    if devices is None or telemetry is None:
        return None
    known = [gpu.utilization for gpu in telemetry.gpus if gpu.uuid in devices.gpus and gpu.utilization is not None]
    return sum(known) / len(known) if known else None


def _last(data: mmap.mmap, kind: type[E]) -> E | None:
    """The last event of `kind`, searched from the end by the prefix that our encoder gives its line."""
    start = f'\n{{"event":"{kind.__struct_config__.tag}"'.encode()
    end = len(data)
    while end > 0:
        first = max(0, end - SEARCH_BYTES)
        at = data.rfind(start, first, end)
        event = _decode(data[at + 1 : _line_end(data, at + 1)], kind) if at >= 0 else None
        if event is not None:
            return event
        # An overlap, for a line that begins before `first` and whose prefix ends after it.
        end = at + 1 if at >= 0 else first + len(start) - 1 if first else 0
    return None


def _line_end(data: mmap.mmap, start: int) -> int:
    end = data.find(b"\n", start, start + MAX_LINE_BYTES)
    return min(len(data), start + MAX_LINE_BYTES) if end < 0 else end


def _decode(line: bytes, kind: type[E]) -> E | None:
    try:
        event = events.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return event if isinstance(event, kind) else None
