"""The predictions of a run on Train and in a replay: evaluated in the background, shown, cancelled."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.color import Color
from textual.widget import Widget

from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import ConsoleError
from ossconsole.storage.jobs.job import JobState
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.predictions import ClassAccuracy, Confusion, Evaluation, WrongImage, save_predictions
from ossconsole.telemetry.runs import RunRecord, record_path
from ossconsole.training.run_evaluation import EvaluationJob
from ossconsole.tui.kit.glyphs import ASCII
from ossconsole.tui.kit.scroll import ImageRow
from ossconsole.tui.train.screen import NewRunScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import SIMULATED, FakeRun, FakeServices, Script
from tests.tui.screens import settle, shown
from tests.tui.snapshots import pictured
from tests.tui.test_train_pictures import SIZES, decided, pressed, size_id
from tests.tui.test_warm_up import until_text


@pytest.mark.parametrize("shape", [(9, 9), (4, 16), (16, 4)])
def test_nothing_is_drawn_around_the_images_of_a_sheet(shape: tuple[int, int]) -> None:
    """A black ground would be a hole in a light theme."""
    white = np.full((*shape, 3), 255, np.uint8)
    widget = SimpleNamespace(app=SimpleNamespace(console=SimpleNamespace(color_system="truecolor")))
    rows = ImageRow([white, white], 9).strips(cast("Widget", widget), plain=False)
    assert {row.cell_length for row in rows} == {1 + 2 * (9 + 2)}
    colours = {colour for row in rows for _, style, _ in row if style for colour in (style.color, style.bgcolor)}
    assert colours <= {Color.from_rgb(255, 255, 255), None}


def thumbnail(number: int) -> bytes:
    """A disc on a gradient, in other colours for each number."""
    y, x = np.mgrid[0:112, 0:112]
    pixels = np.stack([x * 2, y * 2, np.full_like(x, 40 + 17 * number)], 2).astype(np.uint8)
    pixels[(x - 40 - 3 * number) ** 2 + (y - 56) ** 2 < 900] = (230, 60 + 15 * number, 40)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


FOUND = Evaluation(
    images=400,
    unread=1,
    top1=0.8625,
    top5=0.985,
    classes=[ClassAccuracy(name, 0.55 + 0.04 * at, 20) for at, name in enumerate(("wolf", "husky", "lynx", "fox"))]
    + [ClassAccuracy(f"n0{4487081 + at}", 0.75 + 0.01 * at, 20) for at in range(16)],
    confusions=[
        Confusion("wolf", "husky", 7, 0.35),
        Confusion("husky", "wolf", 6, 0.3),
        Confusion("lynx", "n04487081", 3, 0.15),
    ],
    worst=[
        WrongImage(f"d/val/wolf/{at}.jpg", "wolf", "Alaskan malamute", 0.99 - 0.02 * at, 0.01, thumbnail(at))
        for at in range(10)
    ],
    checkpoint="oss://127/checkpoints/resnet18-20250615-150640-a1b2-e05-s000400.pt",
)


class HeldEvaluation(EvaluationJob):
    """Has evaluated 120 of 400 images; saves FOUND after `release`, or ends when it is cancelled."""

    def __init__(self, record: Path) -> None:
        super().__init__(record, SIMULATED, lambda: Credentials("key", Secret("secret")))
        self.release = threading.Event()

    def work(self) -> None:
        self._report_progress(120, 400)
        while not self.release.wait(0.005):
            self.check_cancelled()
        save_predictions(self.record, FOUND)


@pytest.fixture
def record() -> Path:
    """The record of a finished run."""
    script = decided().end_epoch().state(RunState.FINISHED).summary()
    path = record_path("20250615-150640-a1b2")
    script.events[0] = msgspec.structs.replace(script.events[0], bucket=SIMULATED.bucket, region=SIMULATED.region)
    with RunRecord(path) as opened:
        opened.append(*script.events)
    return path


def ended(record: Path, evaluation: EvaluationJob | ConsoleError | None = None) -> FakeServices:
    script = decided().end_epoch().state(RunState.FINISHED).summary()
    run = FakeRun(list(script.events), state=RunState.FINISHED, alive=False, record_path=record)
    return FakeServices(run=run, next_evaluation=evaluation)


async def test_p_evaluates_in_the_background_and_shows_the_result(make_app: AppMaker, record: Path) -> None:
    job = HeldEvaluation(record)
    app = make_app(ended(record, job))
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert "p predictions" in shown(app)
        await pilot.press("p")
        await until_text(pilot, app, "120/400")
        await pilot.press("escape")
        assert app.jobs == [job]
        assert job.alive
        await pilot.press("p")  # the same evaluation again
        await until_text(pilot, app, "120/400")
        assert app.jobs == [job]
        job.release.set()
        for words in ("top-1 86.2 %", "wolf → husky", "35 % of class", "1 not read", "p 0.99"):
            await until_text(pilot, app, words)
        await pilot.press("escape", "p")  # now from the file
        await until_text(pilot, app, "top-1 86.2 %")
        assert len(app.jobs) == 1


async def test_an_evaluation_can_be_cancelled(make_app: AppMaker, record: Path) -> None:
    job = HeldEvaluation(record)
    app = make_app(ended(record, job))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("p")
        await until_text(pilot, app, "x cancel")
        await pilot.press("x")
        assert job.wait(10)
        await until_text(pilot, app, "e evaluate again")
        assert job.state is JobState.CANCELLED


async def test_no_run_is_configured_during_an_evaluation(make_app: AppMaker, record: Path) -> None:
    job = HeldEvaluation(record)
    app = make_app(ended(record, job))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("p")
        await until_text(pilot, app, "x cancel")
        await pilot.press("escape", "n")
        await settle(pilot)
        assert ["is being evaluated" in notice.message for notice in app._notifications] == [True]
        assert not isinstance(app.screen, NewRunScreen)
        job.cancel()
        assert job.wait(10)
        await pilot.press("n")
        await settle(pilot)
        assert isinstance(app.screen, NewRunScreen)


async def test_a_refusal_is_shown(make_app: AppMaker, record: Path) -> None:
    app = make_app(ended(record, ConsoleError("The bucket has no checkpoint of the run any more.")))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("p")
        for _ in range(200):
            await pilot.pause(0.01)
            if app._notifications:
                break
        assert ["no checkpoint of the run any more" in notice.message for notice in app._notifications] == [True]


async def test_a_run_is_evaluated_only_after_its_end(make_app: AppMaker) -> None:
    script = decided().end_epoch()
    app = make_app(FakeServices(run=FakeRun(list(script.events))))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert app.screen.check_action("predictions", ()) is None


async def test_a_replayed_run_shows_its_predictions_from_its_beginning(make_app: AppMaker, record: Path) -> None:
    save_predictions(record, FOUND)
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await until_text(pilot, app, "20250615-150640")
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("p")
        await until_text(pilot, app, "top-1 86.2 %")


async def test_a_high_screen_shows_all_classes(make_app: AppMaker, record: Path) -> None:
    save_predictions(record, FOUND)
    app = make_app(ended(record))
    async with app.run_test(size=(200, 60)) as pilot:
        await settle(pilot)
        await pilot.press("p")
        await until_text(pilot, app, FOUND.classes[-1].name)
        assert "worst misclassified" in shown(app)
        assert " more" not in shown(app)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"bucket": "another"},
            "The run used oss://another (cn-hangzhou), and the profile has oss://127 (cn-hangzhou)",
        ),
        ({"region": "cn-beijing", "bucket": "127"}, "Use the profile sandbox"),
    ],
)
def test_a_run_of_another_bucket_is_refused(tmp_path: Path, change: dict[str, str], problem: str) -> None:
    script = Script()
    with RunRecord(tmp_path / "r.jsonl") as opened:
        first = msgspec.structs.replace(script.events[0], profile="sandbox", region="cn-hangzhou")
        opened.append(msgspec.structs.replace(first, **change))
    with pytest.raises(ConsoleError) as refused:
        HeldEvaluation(tmp_path / "r.jsonl")
    assert problem in str(refused.value)


@pictured
@pytest.mark.parametrize("size", SIZES[:2], ids=size_id)
def test_predictions(
    snap_compare: Callable[..., bool], make_app: AppMaker, record: Path, size: tuple[int, int]
) -> None:
    save_predictions(record, FOUND)
    assert snap_compare(make_app(ended(record)), terminal_size=size, run_before=pressed("p"))


@pictured
def test_the_sheet_scrolls_into_view(snap_compare: Callable[..., bool], make_app: AppMaker, record: Path) -> None:
    save_predictions(record, FOUND)
    app = make_app(ended(record), glyph_set=ASCII)
    assert snap_compare(app, terminal_size=SIZES[0], run_before=pressed("p", "end"))


async def test_an_evaluation_is_listed_also_where_the_key_was_pressed_twice(make_app: AppMaker, record: Path) -> None:
    job, held = HeldEvaluation(record), threading.Event()
    known = ended(record, job)
    start = known.start_evaluation

    def slowly(record: Path) -> EvaluationJob:
        assert held.wait(20)
        if known.evaluation is not None:
            raise ConsoleError("An evaluation is active.")
        return start(record)

    known.start_evaluation = slowly  # type: ignore[method-assign]
    app = make_app(known)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("p")
        app.screen.action_predictions()  # type: ignore[attr-defined]
        held.set()
        await settle(pilot)
        assert app.jobs == [job]
        job.cancel()
