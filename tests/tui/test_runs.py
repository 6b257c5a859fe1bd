"""The Runs screen over real records: list, replay, compare, export."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import Comparison, Decision
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RecordError, RecordReader, RunRecord, RunSummary, list_runs, record_path
from ossconsole.telemetry.series import Point
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.kit.glyphs import ASCII, BLOCK, BRAILLE, Glyphs
from ossconsole.tui.train.charts import SPEED
from ossconsole.tui.train.replay import ReplayScreen
from ossconsole.tui.train.run_compare import STYLES, Axes, ComparedRun, RunCompareScreen, differences, overlay, smoothed
from ossconsole.tui.train.run_rows import run_header, run_row
from ossconsole.tui.train.runs import RunsScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import START, FakeServices, Script
from tests.tui.screens import settle, shown


def write(number: int, *, batch: int, wait: float, end: RunState | None = RunState.FINISHED) -> str:
    run = f"20250615-15064{number}-a1b2"
    script = Script(batch=batch).state(RunState.RUNNING, 3).steps(60, wait=wait).switch(EndpointKind.ACCELERATED)
    script.steps(60, wait=0.02).end_epoch()
    first = script.events[0]
    settings = {"batch_size": batch, "workers": 2, "endpoint": "standard"}
    script.events[0] = msgspec.structs.replace(first, run=run, time=START - number, settings=settings)
    if end is not None:
        script.state(end).summary(end)
    with RunRecord(record_path(run)) as record:
        for event in script.events:
            record.append(event)
    return run


@pytest.fixture
def two_runs() -> tuple[str, str]:
    return write(1, batch=32, wait=0.4), write(2, batch=64, wait=0.2, end=RunState.FAILED)


def status_row(app: ConsoleApp) -> str:
    """The row below the table, without what a toast covers of the rows above."""
    return next(row for row in shown(app).splitlines()[::-1] if row.startswith(" ") and "Back" not in row)


async def test_a_list_that_cannot_be_read_says_so_until_it_can(
    make_app: AppMaker, two_runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> list[RunSummary]:
        raise RecordError("The run records cannot be read: Permission denied.")

    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        with monkeypatch.context() as patched:
            patched.setattr("ossconsole.tui.train.runs.list_runs", unreadable)
            await pilot.press("r")
            await settle(pilot)
            assert " The run records cannot be read: Permission denied." in status_row(app)
            assert "Listing" not in shown(app)
        await pilot.press("r")
        await settle(pilot)
        assert "20250615-150641-a1b2" in status_row(app)


async def test_an_idle_screen_lists_the_newest_runs(make_app: AppMaker, two_runs: tuple[str, str]) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
    assert "No active run." in text
    assert "No run yet." not in text
    rows = [line.split() for line in text.splitlines() if "2025-06-15" in line]
    assert [row[2] for row in rows] == ["finished", "failed"]
    assert list_runs(newest=1)[0].run == max(two_runs)


def test_a_run_shows_its_speed_up_once_it_is_decided(two_runs: tuple[str, str]) -> None:
    run = list_runs()[0]
    report = Comparison(pairs=6).report()
    for decision, ratio, words in (
        (Decision.NONE, None, "–"),
        (Decision.SAME, None, "same"),
        (Decision.ACCELERATED, 2.38, "2.38x"),
    ):
        found = msgspec.structs.replace(report, decision=decision, ratio=ratio)
        row = run_row(msgspec.structs.replace(run, comparison=found), 80).text
        titles = run_header(80).text
        end = titles.index("speed-up") + len("speed-up")
        assert row[:end].split()[-1] == words
        assert len(row) == len(titles) <= 80


def test_words_start_below_their_title_and_figures_end_there(two_runs: tuple[str, str]) -> None:
    titles, row = run_header(200).text, run_row(list_runs()[0], 200).text
    assert len(row) == len(titles) <= 200
    for title, value in (("endpoint", "accelerated"), ("bucket", "sandbox")):
        assert row[titles.index(title) :].startswith(value)
    end = titles.index("samples/s") + len("samples/s")
    assert row[end - 1].isdigit()
    assert row[end].isspace()


def test_the_comparison_marks_settings_and_breaks_long_values() -> None:
    script = Script(epochs=20, steps_per_epoch=1000).state(RunState.RUNNING, 3)
    for _ in range(10):
        slow = script.endpoint is EndpointKind.STANDARD
        script.steps(60, wait=0.4 if slow else 0.22)
        script.switch(script.endpoint.other, ahead=0)
    runs = [ComparedRun(), ComparedRun()]
    for batch, run in zip((32, 64), runs, strict=True):
        for event in script.events:
            other = isinstance(event, events.Run) and {**event.settings, "batch_size": batch}
            run.apply(msgspec.structs.replace(event, settings=other) if other else event)
    views = [run.view for run in runs]
    rows = [line.text for line in differences(views, BRAILLE, 120, 30)]
    assert any(row.startswith("!batch size") for row in rows)
    assert any(row.startswith(" state") for row in rows)
    assert not any("…" in row for row in rows), "conditions in full"
    assert any("…" in line.text for line in differences(views, BRAILLE, 120, 17)), "no rows are left"
    few = [line.text for line in differences(views, BRAILLE, 80, 8)]
    assert len(few) == 8
    assert "more rows" in few[-1]


async def test_runs_are_listed_newest_first(make_app: AppMaker, two_runs: tuple[str, str]) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        await settle(pilot)
        assert isinstance(app.screen, RunsScreen)
        assert [run.run for run in app.screen.table.rows] == list(two_runs)
        text = shown(app)
    assert "finished" in text
    assert "failed" in text
    assert "accelerated" in text


async def test_enter_replays_to_the_same_figures(make_app: AppMaker, two_runs: tuple[str, str]) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        await pilot.press("enter", "G")
        await settle(pilot)
        assert isinstance(app.screen, ReplayScreen)
        text = shown(app)
        assert f"REPLAY  {two_runs[0]}" in text
        assert "✓ end" in text
        assert "too short: 1 of 6 pairs" in text
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, RunsScreen)


async def test_two_marked_runs_are_compared(make_app: AppMaker, two_runs: tuple[str, str]) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        await pilot.press("c")
        await settle(pilot)
        assert isinstance(app.screen, RunsScreen), "two are needed"
        await pilot.press("space", "space", "c")
        await settle(pilot)
        await settle(pilot)
        assert isinstance(app.screen, RunCompareScreen)
        rows = shown(app).splitlines()
    lines = [" ".join(line.split()) for line in rows]
    assert "!batch size 64 32" in lines
    assert "state failed finished" in lines
    assert not any("workers" in row[:24] for row in rows), "equal settings say nothing"


async def test_a_run_is_written_as_csv(
    make_app: AppMaker, two_runs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        await pilot.press("x", "right", "enter")
        await settle(pilot)
        await settle(pilot)
    with (tmp_path / f"{two_runs[0]}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 122


async def test_without_runs_the_list_says_so(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        await settle(pilot)
        assert "No recorded runs." in shown(app)
        await pilot.press("enter", "space", "c", "x", "escape")
        await settle(pilot)
        assert app.current_mode == "train"


@pytest.mark.parametrize("glyphs", [BRAILLE, BLOCK, ASCII], ids=lambda glyphs: glyphs.name)
def test_curves_of_several_runs_share_the_axes_and_differ_without_colours(glyphs: Glyphs) -> None:
    runs = [reduced(Script().steps(60, wait=wait)) for wait in (0.4, 0.2, 0.05)]
    lines = overlay(runs, SPEED, glyphs, 100, 14)
    assert len(lines) == 14
    assert all(line.width <= 100 for line in lines)
    for place, style in enumerate(STYLES[:3], 1):
        assert (f"{place} ", style) in lines[0].pieces
        cells = "".join(text for line in lines[1:-1] for text, used in line.pieces if used == style)
        assert len(cells) > 5, place
    assert "0:10" in lines[-1].text
    assert lines[1].text.strip()[0].isdigit()


def test_six_runs_are_compared_in_a_table() -> None:
    views = [reduced(Script(batch=number).steps(5)).view for number in range(1, 7)]
    for view, number in zip(views, range(1, 7), strict=True):
        assert view.run is not None
        view.run.settings["batch_size"] = number
    lines = differences(views, BRAILLE, 120, 40)
    assert next(line.text for line in lines if "batch size" in line.text).split()[2:] == list("123456")


def test_the_step_axis_and_the_smoothing_are_named_in_the_legend() -> None:
    runs = [reduced(Script().steps(steps)) for steps in (200, 100)]
    lines = overlay(runs, SPEED, BRAILLE, 100, 14, axes=Axes(by_step=True, smoothing=0.05))
    assert "by step, smoothed over 10 steps" in lines[0].text
    assert lines[-1].text.split()[:3] == ["0", "30", "60"]
    assert "·   ·   ·" in lines[1].text
    assert "by time, not smoothed" in overlay(runs, SPEED, BRAILLE, 100, 14, axes=Axes(smoothing=0.0))[0].text


def test_smoothing_leaves_gaps_out() -> None:
    nan = math.nan
    points = [Point(at, value, value, value, math.isnan(value)) for at, value in enumerate((1.0, 3.0, nan, 5.0))]
    assert [point.last for point in smoothed(points, 2.0)] == [2.0, 2.0, pytest.approx(nan, nan_ok=True), 5.0]
    assert smoothed(points, 0.0)[1] is points[1]


async def test_keys_change_the_axis_and_the_smoothing(make_app: AppMaker, two_runs: tuple[str, str]) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        await pilot.press("space", "space", "c")
        await settle(pilot)
        await settle(pilot)
        assert "by time, smoothed over" in shown(app)
        await pilot.press("t", "u")
        await settle(pilot)
        assert "by step, smoothed over 6 steps" in shown(app)


def reduced(script: Script) -> ComparedRun:
    run = ComparedRun()
    for event in script.events:
        run.apply(event)
    return run


async def test_marks_of_runs_that_were_deleted_are_dropped_and_a_missing_record_is_named(
    make_app: AppMaker, two_runs: tuple[str, str]
) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)
        await pilot.press("space", "space")
        record_path(two_runs[0]).unlink()
        await pilot.press("c")
        await settle(pilot)
        assert isinstance(app.screen, RunCompareScreen)
        assert "Reading the records" not in shown(app)
        assert two_runs[0] in "".join(shown(app).split())  # its path may be broken anywhere
        await pilot.press("escape", "r")
        await settle(pilot)
        assert app.screen.check_action("compare", ()) is None


async def test_a_record_that_cannot_be_read_any_more_ends_its_replay_alone(
    make_app: AppMaker, two_runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await settle(pilot)

        def stale(_: RecordReader) -> bytes:
            raise RecordError(f"The run record of {two_runs[0]} cannot be read: Stale file handle.")

        with monkeypatch.context() as patched:
            patched.setattr(RecordReader, "_read", stale)
            await pilot.press("enter")
            await settle(pilot)
            await settle(pilot)
        assert sum("Stale file handle" in notice.message for notice in app._notifications) == 1
        await pilot.press("home", "G")
        await settle(pilot)
        assert "top-1" in shown(app)
