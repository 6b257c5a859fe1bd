"""The demo without a terminal: sandbox, dataset, a run on both endpoints, the comparison, and the checkpoint."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ossconsole.cli.options import OpenTarget, Target
from ossconsole.cli.output import say, say_json
from ossconsole.cli.sandbox import DEMO_SETTINGS, fill_sandbox, start_slow_down
from ossconsole.cli.train import print_line, run_to_end
from ossconsole.cli.unattended import Printing
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import load_settings
from ossconsole.config.text import counted
from ossconsole.telemetry import events
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.demo_speed import slowed_standard
from ossconsole.telemetry.events import megabytes, number, percent
from ossconsole.telemetry.view import RunView

if TYPE_CHECKING:
    from ossconsole.dataset.manifest import Manifest
    from ossconsole.storage.client import ObjectStore
    from ossconsole.telemetry.events import Event
    from ossconsole.training.run import TrainingRun

_SETTINGS = msgspec.structs.replace(DEMO_SETTINGS, epochs=10_000, warmup_steps=32, patience_s=60.0, keep_checkpoints=2)
"""The run ends when the comparison is decided, or after _MEASURE_S seconds of steps.

An automatic warm-up, a share of all these epochs, would last longer: the model would learn nothing.
"""

_MEASURE_S = 80.0


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo adds to the run's summary.

    `result` is the comparison in words, `verified` the checkpoint that was read back, `checkpoints` are all keys below
    the checkpoint prefix. `elapsed_s` is the time of the whole demo.
    """

    simulated: bool
    result: str
    dataset: str
    record: str
    verified: str
    checkpoints: tuple[str, ...]
    elapsed_s: float


def run_demo(target: Target, *, as_json: bool) -> int:
    """Runs the whole workflow on the sandbox and prints it; returns the exit code. Raises ConsoleError."""
    from ossconsole.telemetry.sampler import Sampler
    from ossconsole.training.run import TrainingRun

    begun, on_hangup = time.monotonic(), load_settings().on_hangup
    with target.open() as opened:
        fill_sandbox(opened)
        printing = Printing(say_json if as_json else print_line)
        driver = _Driver(printing)
        sampler = Sampler()
        run = TrainingRun(opened.profile, opened.credentials, _SETTINGS, sampler, on_event=driver)
        driver.run, printing.stop, printing.warn = run, run.stop, run.warn
        if opened.sandbox is not None:
            driver.slow_down = functools.partial(start_slow_down, run.wait, opened.sandbox)
        code = run_to_end(run, sampler, opened, on_hangup, as_json=as_json)
        if code == 0:
            _conclude(opened, run, driver.view, begun, as_json=as_json)
        elif run.summary is not None:
            printing(run.summary)
        return code


def _conclude(opened: OpenTarget, run: TrainingRun, view: RunView, begun: float, *, as_json: bool) -> None:
    """Verifies the checkpoint and prints the result of the demo. Raises ConsoleError."""
    from ossconsole.dataset.manifest import read_manifest
    from ossconsole.storage.client import ObjectStore

    summary, saved = run.summary, view.last_checkpoint
    if summary is None or saved is None:
        raise ConsoleError("The run has ended without a checkpoint.", remedy=f"Its record is {run.record_path}.")
    store = ObjectStore(opened.profile, opened.credentials)
    try:
        listed = _verify(store, saved)
        manifest = read_manifest(store, opened.profile.dataset_prefix)
    finally:
        store.close()
    result = DemoResult(
        simulated=opened.profile.simulated,
        result=comparison_words(view),
        dataset=store.uri(opened.profile.dataset_prefix),
        record=str(run.record_path),
        verified=store.uri(saved.key),
        checkpoints=tuple(listed),
        elapsed_s=time.monotonic() - begun,
    )
    if as_json:
        fields = {**msgspec.to_builtins(summary), **msgspec.to_builtins(result)}
        say_json(fields)
    else:
        for line in _lines(manifest, view, summary, result):
            say(line)


class _Driver:
    """Shows the run's events, switches its endpoints until the comparison is decided, and then ends it.

    It does not wait until the ratio is precise. The first epoch is read through the accelerated endpoint alone: it
    fills the cache. The summary is not shown.
    """

    def __init__(self, show: Callable[[Event], None]) -> None:
        self.view = RunView()
        self.run: TrainingRun | None = None
        self.slow_down: Callable[[float], object] = lambda _objects_per_s: None
        self._show = show
        self._looked = False
        self._auto = AutoCompare()
        self._until: float | None = None

    def __call__(self, event: Event) -> None:
        self.view.apply(event)
        if not isinstance(event, events.Summary):
            self._show(event)
        if isinstance(event, events.Step) and self.run is not None:
            self._until = self._until or event.time + _MEASURE_S
            self._steer(self.run, over=event.time >= self._until)

    def _steer(self, run: TrainingRun, *, over: bool) -> None:
        kind = None
        if self.view.last_epoch is not None:
            self._look()
            kind = self._auto.decide(self.view)
        if self._auto.done or self.view.comparison.decided or over:
            run.stop()
        elif kind is not None:
            run.switch(kind, "A/B")

    def _look(self) -> None:
        """Slow the standard endpoint down where the machine is slow; not before, as the cache would fill slowly."""
        if self._looked:
            return
        self._looked = True
        if slowed := slowed_standard(self.view):
            self._show(events.InfoEvent(time=time.time(), message=slowed.caption, step=self.view.step))
            self.slow_down(slowed.objects_per_s)


def comparison_words(view: RunView) -> str:
    """The comparison of the two endpoints in words, decided or not."""
    found = view.comparison
    return f"{f'the accelerated endpoint {found.sentence}' if found.decided else found.words} (simulated)"


def _verify(store: ObjectStore, saved: events.Checkpoint) -> list[str]:
    """Lists the checkpoints and reads this one back. Raises ConsoleError where it is not what was written."""
    from ossconsole.storage.checkpoints.inspect import inspect_checkpoint

    sizes = {found.key: found.size for found in store.list_all(f"{store.profile.checkpoint_prefix}/")}
    for key in (saved.key, saved.stable_key):
        if sizes.get(key) != saved.bytes:
            raise ConsoleError(f"{store.uri(key)} has {sizes.get(key, 0)} bytes; {saved.bytes} were written.")
    if store.head(saved.key).crc64 != store.head(saved.stable_key).crc64:
        raise ConsoleError(f"{store.uri(saved.stable_key)} differs from {store.uri(saved.key)}.")
    step = inspect_checkpoint(store, saved.stable_key, saved.bytes).fields.get("step")
    if step != saved.step:
        raise ConsoleError(f"{store.uri(saved.stable_key)} is of step {step}; step {saved.step} was written.")
    return list(sizes)


def _lines(manifest: Manifest, view: RunView, summary: events.Summary, result: DemoResult) -> list[str]:
    """The result in ten lines."""
    pictures, saved = sum(map(len, manifest.splits.values())), view.last_checkpoint
    assert saved is not None  # noqa: S101 - it was verified
    of_run = [key for key in result.checkpoints if summary.run in key]
    samples, classes = counted(pictures, "sample"), counted(len(manifest.classes), "class", "classes")
    done = f"{counted(summary.epochs, 'epoch')}, {counted(summary.steps, 'step')} in {summary.seconds:.0f} s"
    rows = [
        ("Dataset", f"{result.dataset}: {samples} in {classes}, {manifest.size} px"),
        ("Run", f"{summary.run}: {done}"),
        *((str(kind).capitalize(), _endpoint_words(view, kind)) for kind in EndpointKind),
        ("Comparison", result.result),
        ("Accuracy", f"validation loss {number(summary.val_loss)}, top-1 {percent(summary.top1 or 0.0)}"),
        ("Checkpoint", f"{result.verified}: {megabytes(saved.bytes)}, step {saved.step}, read back and verified"),
        ("Listed", f"{counted(len(result.checkpoints), 'checkpoint')}; of this run: {', '.join(of_run)}"),
        ("Next", "`ossconsole demo` in a terminal shows this live; `ossconsole config init` sets up your own bucket"),
    ]
    first = f"The demo took {result.elapsed_s:.0f} s. Speeds are simulated: they say nothing about the real service."
    return [first, *(f"{label:<13}{text}" for label, text in rows)]


def _endpoint_words(view: RunView, kind: EndpointKind) -> str:
    figures = view.figures(kind)
    if figures.samples_per_s is None:
        return "not measured"
    wait = "" if figures.wait_fraction is None else f", data wait {percent(figures.wait_fraction)}"
    cold = ", cold cache" if figures.cold else ""
    return f"{figures.samples_per_s:.0f} samples/s{wait}{cold} (simulated)"
