"""The Train screen as it looks in every state of a run, and what opens over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RunRecord, record_path
from ossconsole.tui.console import PreparationStage, StageState
from ossconsole.tui.kit.glyphs import ASCII, BLOCK
from tests.tui.conftest import AppMaker
from tests.tui.fakes import REAL, FakeRun, FakeServices, Script, gpu, sample
from tests.tui.screens import settle
from tests.tui.snapshots import pictured

pytestmark = pictured
SIZES = ((80, 24), (120, 40), (200, 60))
NO_GPU = "The run uses the CPU: no NVIDIA driver (libnvidia-ml.so.1 not found)."
ACCELERATED = EndpointKind.ACCELERATED
Compare = Callable[..., bool]


def compared() -> Script:
    """Standard for an epoch and a half, then accelerated with a cold and a warm cache."""
    script = Script().state(RunState.RUNNING, 3).steps(80).end_epoch().steps(20).switch(ACCELERATED)
    return script.steps(58, wait=0.05, fetch=0.08).end_epoch().steps(40, wait=0.05, fetch=0.08)


def decided() -> Script:
    """Ten stretches on the endpoints by turns: enough pairs for an interval."""
    script = Script(epochs=20, steps_per_epoch=1000).state(RunState.RUNNING, 3)
    for _ in range(10):
        slow = script.endpoint is EndpointKind.STANDARD
        script.steps(60, wait=0.4 if slow else 0.22, fetch=0.5 if slow else 0.08)
        script.switch(script.endpoint.other, ahead=0)
    return script.steps(30, wait=0.4)


def _starting() -> Script:
    return Script()


def _running() -> Script:
    return Script().state(RunState.RUNNING, 3).steps(96)


def _settling() -> Script:
    return Script().state(RunState.RUNNING, 3).steps(80).end_epoch().steps(20).switch(ACCELERATED).steps(3, wait=0.05)


def _paused() -> Script:
    return compared().state(RunState.PAUSED, 1)


def _failed() -> Script:
    script = _running()
    message, remedy = (
        "The accelerated endpoint does not answer: timed out.",
        "Switch to standard, or check the network.",
    )
    script.add(events.ErrorEvent(time=script.time, message=message, remedy=remedy, step=script.step))
    return script.state(RunState.FAILED)


def _finished() -> Script:
    return compared().end_epoch().state(RunState.FINISHED).summary()


def _decided_and_finished() -> Script:
    return decided().end_epoch().state(RunState.FINISHED).summary()


def _stopped() -> Script:
    return compared().state(RunState.STOPPED).summary(RunState.STOPPED)


STATES = {
    "starting": _starting,
    "running": _running,
    "settling": _settling,
    "compared": compared,
    "decided": decided,
    "paused": _paused,
    "failed": _failed,
    "finished": _finished,
    "finished-decided": _decided_and_finished,
    "stopped": _stopped,
}


def services_of(script: Script, gpus: int = 0) -> FakeServices:
    found = [gpu(number, utilization=30.0 + 7 * number) for number in range(gpus)]
    last = script.events[-1]
    state = last.state if isinstance(last, events.State | events.Summary) else RunState.RUNNING
    run = FakeRun(list(script.events), state=state, alive=not state.final)
    return FakeServices(run=run, sample=sample(found, "" if gpus else NO_GPU, at=script.time))


async def twice(pilot: Pilot[Any]) -> None:
    """Charts are redrawn on every second tick."""
    await settle(pilot)
    await settle(pilot)


def pressed(*keys: str) -> Callable[[Pilot[Any]], Any]:
    async def press(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        for key in keys:
            await pilot.press(key)
            await settle(pilot)
        for field in pilot.app.screen.query(Input):
            field.cursor_blink = False
        await twice(pilot)

    return press


def size_id(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _id(value: str | tuple[int, int]) -> str:
    return value if isinstance(value, str) else size_id(value)


@pytest.mark.parametrize("size", SIZES, ids=size_id)
@pytest.mark.parametrize("state", STATES)
def test_state(snap_compare: Compare, make_app: AppMaker, size: tuple[int, int], state: str) -> None:
    script = STATES[state]()
    app = make_app(services_of(script), now=script.time + 0.1)
    assert snap_compare(app, terminal_size=size, run_before=twice)


@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_idle(snap_compare: Compare, make_app: AppMaker, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(FakeServices(sample=sample([gpu()]))), terminal_size=size, run_before=twice)


@pytest.mark.parametrize("size", SIZES[:2], ids=size_id)
def test_making_ready(snap_compare: Compare, make_app: AppMaker, size: tuple[int, int]) -> None:
    stages = [
        PreparationStage("sandbox", StageState.DONE, "http://127.0.0.1:9000, speeds are simulated"),
        PreparationStage("sample images", StageState.ACTIVE, "400 of 850 drawn"),
        PreparationStage("upload", StageState.WAITING),
    ]
    services = FakeServices(stages=stages, sample=sample(problem=NO_GPU))
    assert snap_compare(make_app(services), terminal_size=size, run_before=twice)


@pytest.mark.parametrize(("gpus", "size"), [(1, SIZES[0]), (8, SIZES[0]), (8, SIZES[1]), (8, SIZES[2])])
def test_gpus(snap_compare: Compare, make_app: AppMaker, gpus: int, size: tuple[int, int]) -> None:
    script = compared()
    services = services_of(script, gpus)
    services.profile = REAL
    services.run = FakeRun([_measured(event) for event in script.events])
    assert snap_compare(make_app(services, now=script.time + 0.1), terminal_size=size, run_before=twice)


def _measured(event: events.Event) -> events.Event:
    return msgspec.structs.replace(event, simulated=False) if isinstance(event, events.Run) else event


@pytest.mark.parametrize("theme", ["console-light", "console-dark-256", "console-light-256", "ansi-dark", "ansi-light"])
def test_themes(snap_compare: Compare, make_app: AppMaker, theme: str) -> None:
    script = compared()
    app = make_app(services_of(script), now=script.time + 0.1, theme=theme)
    assert snap_compare(app, terminal_size=SIZES[0], run_before=twice)


@pytest.mark.parametrize("glyphs", [ASCII, BLOCK], ids=lambda glyphs: glyphs.name)
def test_symbols(snap_compare: Compare, make_app: AppMaker, glyphs: object) -> None:
    script = compared()
    app = make_app(services_of(script), now=script.time + 0.1, glyph_set=glyphs)
    assert snap_compare(app, terminal_size=SIZES[0], run_before=twice)


def test_without_colour(snap_compare: Compare, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    script = compared()
    app = make_app(services_of(script), now=script.time + 0.1)
    assert snap_compare(app, terminal_size=SIZES[0], run_before=twice)


@pytest.mark.parametrize(
    "keys",
    [("plus", "left", "x", "left", "left"), ("v", "y"), ("b",), ("g",), ("question_mark",), ("s",), ("R",), ("q",)],
    ids=["crosshair", "charts", "comparison", "machine", "help", "stop", "learning-rate", "quit"],
)
def test_keys(snap_compare: Compare, make_app: AppMaker, keys: tuple[str, ...]) -> None:
    script = compared()
    app = make_app(services_of(script), now=script.time + 0.1)
    assert snap_compare(app, terminal_size=SIZES[0], run_before=pressed(*keys))


@pytest.mark.parametrize("size", SIZES[:2], ids=size_id)
def test_new_run(
    snap_compare: Compare, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    services = FakeServices(sample=sample([gpu(uuid="GPU-0000")]))
    assert snap_compare(make_app(services), terminal_size=size, run_before=pressed("n"))


def _record(number: int, script: Script, *, batch: int) -> None:
    run = f"20250615-15064{number}-a1b2"
    first = script.events[0]
    assert isinstance(first, events.Run)
    settings = {**first.settings, "batch_size": batch}
    script.events[0] = msgspec.structs.replace(first, run=run, time=first.time - number, settings=settings)
    with RunRecord(record_path(run)) as record:
        for event in script.events:
            record.append(event)


OF_RUNS = {"runs": ("r",), "replay": ("r", "enter", "G"), "compare": ("r", "space", "space", "c")}


@pytest.mark.parametrize(("view", "size"), [*itertools.product(OF_RUNS, SIZES[:2]), ("replay", SIZES[2])], ids=_id)
def test_runs(snap_compare: Compare, make_app: AppMaker, view: str, size: tuple[int, int]) -> None:
    _record(1, _finished(), batch=64)
    _record(2, _failed(), batch=32)
    assert snap_compare(make_app(FakeServices()), terminal_size=size, run_before=pressed(*OF_RUNS[view]))


def test_too_small(snap_compare: Compare, make_app: AppMaker) -> None:
    assert snap_compare(make_app(FakeServices()), terminal_size=(50, 12), run_before=twice)


def test_smallest(snap_compare: Compare, make_app: AppMaker) -> None:
    script = compared()
    app = make_app(services_of(script), now=script.time + 0.1)
    assert snap_compare(app, terminal_size=(60, 18), run_before=twice)
