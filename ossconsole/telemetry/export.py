"""A run record as files that other programs read: CSV, one JSON document, TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import reason
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.telemetry.runs import read_events

STEP_COLUMNS = (*(name for name in events.Step.__struct_fields__ if name != "logged"), "wait_fraction")
EPOCH_COLUMNS = tuple(name for name in events.Epoch.__struct_fields__ if name != "class_top1")  # a table, not a number
_STEP_SCALARS = {
    "train/loss": "loss",
    "train/lr": "lr",
    "train/grad_norm": "grad_norm",
    "throughput/samples_per_s": "samples_per_s",
    "time/data_wait_s": "data_wait_s",
    "time/step_s": "step_time_s",
    "time/fetch_s": "fetch_s",
    "time/decode_s": "decode_s",
    "time/wait_fraction": "wait_fraction",
}
_GPU_SCALARS = {"utilization_percent": "utilization", "power_w": "power", "memory_bytes": "memory_used"}
_EPOCH_SCALARS = {"epoch/train_loss": "train_loss", "val/loss": "val_loss", "val/top1": "top1", "val/top5": "top5"}


def export_csv(record: Path, steps: Path) -> Sequence[Path]:
    """Writes one row per step into `steps`, one row per epoch into `<name>-epochs.csv` beside it; returns the paths.

    An unknown value (a diverged loss) is an empty field. Figures that a script logged are the last columns of the
    steps, as "logged.NAME". Raises ConsoleError.
    """
    epochs = steps.with_name(f"{steps.stem}-epochs{steps.suffix}")
    for path, kind, columns in ((steps, events.Step, STEP_COLUMNS), (epochs, events.Epoch, EPOCH_COLUMNS)):
        with _whole(path) as file:
            logged = _logged_names(record) if kind is events.Step else ()
            write_csv((event for event in read_events(record) if isinstance(event, kind)), columns, file, logged)
    return [steps, epochs]


def _logged_names(record: Path) -> Sequence[str]:
    """The names of what a script logged, in the order of their first steps."""
    return tuple(
        {name: None for event in read_events(record) if isinstance(event, events.Step) for name in event.logged}
    )


def write_csv(rows: Iterable[Event], columns: Sequence[str], file: TextIO, logged: Sequence[str]) -> None:
    """Writes a header, then one row per event: its attributes `columns`, then of a step the figures `logged`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, *(f"logged.{name}" for name in logged)])
    for event in rows:
        others = event.logged if isinstance(event, events.Step) else {}
        writer.writerow([*(getattr(event, column) for column in columns), *(others.get(name) for name in logged)])


def export_json(record: Path, target: Path) -> Path:
    """Writes the whole record as one JSON array, an object per event. Raises ConsoleError."""
    with _whole(target) as file:
        separator = "["
        for event in read_events(record):
            file.write(f"{separator}\n{events.encode(event).decode()}")
            separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")
    return target


def export_tensorboard(record: Path, folder: Path) -> Path:
    """Writes scalars by step, with the times of the run, as a TensorBoard event file in `folder`.

    Raises ConsoleError, also where the package is not installed.
    """
    board = TensorBoardFolder(folder)
    try:
        for event in read_events(record):
            board.add(event)
    finally:
        board.close()
    return folder


class TensorBoardFolder:
    """Scalars of a run's events in a TensorBoard event file, also while the run is alive; for one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises ConsoleError, also where the package is not installed."""
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ConsoleError(
                f"TensorBoard is not installed ({error}).", remedy="Install it: pip install 'ossconsole[tensorboard]'"
            ) from error
        self._folder = folder
        self._step = 0
        try:
            self._writer = Writer(str(folder))
        except OSError as error:
            raise _unwritable(folder, error) from error

    def add(self, event: Event) -> None:
        """Writes the scalars of an event; telemetry has no step of its own: it counts for the step before.

        Raises ConsoleError.
        """
        if isinstance(event, events.Step | events.Epoch):
            self._step = event.step
        try:
            for tag, value in _scalars(event):
                if value is not None:
                    self._writer.add_scalar(tag, value, self._step, wall_time=event.time)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def flush(self) -> None:
        """Makes what was written visible to TensorBoard. Raises ConsoleError."""
        try:
            self._writer.flush()
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def close(self) -> None:
        """Closes the file. Raises ConsoleError."""
        try:
            self._writer.close()
        except OSError as error:
            raise _unwritable(self._folder, error) from error


def _scalars(event: Event) -> Iterator[tuple[str, float | None]]:
    if isinstance(event, events.Step):
        yield from ((tag, getattr(event, name)) for tag, name in _STEP_SCALARS.items())
        yield from ((f"logged/{name}", value) for name, value in event.logged.items())
    elif isinstance(event, events.Epoch):
        yield from ((tag, getattr(event, name)) for tag, name in _EPOCH_SCALARS.items())
    elif isinstance(event, events.Telemetry):
        if event.host is not None:
            yield "host/cpu_percent", event.host.cpu
        for gpu in event.gpus:
            name = f"gpu{gpu.index}" if gpu.mig is None else f"gpu{gpu.index}.{gpu.mig}"
            yield from ((f"{name}/{tag}", getattr(gpu, field)) for tag, field in _GPU_SCALARS.items())


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[TextIO]:
    """A file that is renamed to `target` when it is complete; a pipe or a device is written directly.

    A symbolic link is followed, so that its target is replaced. Raises ConsoleError.
    """
    try:
        real = Path(os.path.realpath(target))
        if real.exists() and not real.is_file():
            with real.open("w", encoding="utf-8", newline="") as file:
                yield file
            return
        part = real.with_name(f".ossconsole-{os.getpid()}.part")
        try:
            with part.open("w", encoding="utf-8", newline="") as file:
                yield file
            part.replace(real)
        finally:
            with contextlib.suppress(OSError):  # it was renamed, or could not be created
                part.unlink()
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> ConsoleError:
    return ConsoleError(f"{target} cannot be written: {reason(error)}.", remedy="Give another path with --output.")
