"""The dashboard's own keys, and the panels by themselves."""

from __future__ import annotations

import re

import msgspec
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.samples import GpuSample
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit.glyphs import ASCII, BRAILLE, SETS, Glyphs
from ossconsole.tui.kit.plot import large
from ossconsole.tui.kit.text import Line
from ossconsole.tui.train import compare, headline, machine
from ossconsole.tui.train import dashboard as eventlog
from ossconsole.tui.train import headline as tiles
from ossconsole.tui.train.charts import AXIS_WIDTH, SPEED, TimeAxis, chart, chart_specs
from ossconsole.tui.train.monitor import DashboardContext, RunMonitor
from tests.tui.conftest import AppMaker
from tests.tui.fakes import START, FakeRun, FakeServices, Script, gpu, host, sample
from tests.tui.screens import settle, shown

ACCELERATED = EndpointKind.ACCELERATED


def reduced(script: Script) -> RunView:
    view = RunView()
    for event in script.events:
        view.apply(event)
    return view


def full() -> Script:
    script = Script().state(RunState.RUNNING, 3).steps(80).end_epoch().steps(20).switch(ACCELERATED)
    return script.steps(60, wait=0.05)


def text(lines: list[Line]) -> str:
    return "\n".join(line.text for line in lines)


@pytest.mark.parametrize("size", [(1, 1), (8, 3), (20, 2), (60, 18), (80, 24), (300, 90)])
@pytest.mark.parametrize("glyphs", SETS.values(), ids=SETS)
def test_no_panel_breaks_at_any_size(size: tuple[int, int], glyphs: object) -> None:
    width, height = size
    empty, busy = RunView(), reduced(full())
    busy.apply(events.Telemetry(time=START + 1, gpus=tuple(gpu(index) for index in range(8)), host=host()))
    for view in (empty, busy):
        context = DashboardContext(view, START + 200, glyphs)  # type: ignore[arg-type]
        window = TimeAxis().window(view, context.now)
        drawn = [
            headline.verdict(context, width, height),
            [headline.progress(context, width), headline.failure(context, width)],
            tiles.tiles(context, width),
            compare.comparison(context, width, height),
            machine.machine(context, width, height),
            eventlog.event_log(context, width, height),
            *(chart(context, spec, window, width, height) for spec in (SPEED, *chart_specs(view, raw=True, log=True))),
        ]
        for lines in drawn:
            for line in lines:
                assert line.to(width).width == width


def test_ascii_is_ascii() -> None:
    view = reduced(full())
    context = DashboardContext(view, view.last_time or 0.0, ASCII)
    window = TimeAxis().window(view, context.now)
    lines = [
        *headline.verdict(context, 100, 2),
        headline.progress(context, 100),
        *compare.comparison(context, 40, 12),
        *eventlog.event_log(context, 100, 6),
        *(
            line
            for spec in (SPEED, *chart_specs(view, raw=False, log=False))
            for line in chart(context, spec, window, 80, 8)
        ),
    ]
    strange = {character for line in lines for character in line.text if ord(character) > 126}
    assert strange <= {"±", "–"}, "words may hold them; what is drawn may not"


def test_the_curve_has_the_colour_of_the_endpoint_and_the_lane_its_glyph() -> None:
    view = reduced(full())
    context = DashboardContext(view, view.last_time or 0.0, BRAILLE)
    lines = chart(context, SPEED, TimeAxis().window(view, context.now), 80, 8)
    assert {style for _, style in lines[3].pieces} >= {"standard", "accelerated"}
    lane = lines[-2].text
    assert lane.index("●") < lane.index("▲")


def test_many_switches_keep_the_glyphs_and_drop_the_colours() -> None:
    script = Script().state(RunState.RUNNING).steps(5)
    for _ in range(12):
        script.switch(script.endpoint.other, ahead=0).steps(6, wait=0.1)
    view = reduced(script)
    context = DashboardContext(view, view.last_time or 0.0, BRAILLE)
    lines = chart(context, SPEED, TimeAxis().window(view, context.now), 120, 8)
    assert all(len(line.pieces) <= 4 for line in lines[1:-2] if BRAILLE.dot not in line.text)
    assert lines[-2].text.count("▲") >= 5


def test_a_replay_names_only_keys_that_it_has() -> None:
    view = reduced(Script().state(RunState.RUNNING).steps(40))
    live, replayed, auto = (
        text(compare.comparison(DashboardContext(view, START, BRAILLE, **also), 40, 8))
        for also in ({}, {"has_controls": False}, {"comparison_status": "auto A/B: visit 1"})
    )
    assert "press e to measure accelerated" in live
    assert "accelerated not measured yet" in replayed
    assert "accelerated not measured yet" in auto


def test_percentages_show_with_the_precision_that_is_read() -> None:
    for wait, words in ((0.2, r" \d\d % "), (0.001, r" 0\.\d % ")):
        view = reduced(Script().state(RunState.RUNNING).steps(40, wait=wait, compute=0.196))
        context = DashboardContext(view, view.last_time or 0.0, BRAILLE)
        waits = chart_specs(view, raw=False, log=False)[0]
        assert re.search(words, chart(context, waits, TimeAxis().window(view, context.now), 60, 6)[0].text)


def test_a_gpu_that_fell_off_the_bus_says_so() -> None:
    view = RunView()
    lost = GpuSample(index=1, problem="This GPU fell off the bus.")
    view.apply(events.Telemetry(time=START, gpus=(gpu(0), lost), host=host()))
    shown_lines = text(machine.machine(DashboardContext(view, START, BRAILLE), 100, 4))
    assert "GPU 1  This GPU fell off the bus." in shown_lines
    assert "GPU 0" in shown_lines


def test_the_gpus_of_the_run_come_first_and_are_marked() -> None:
    view = RunView()
    view.apply(events.Devices(time=START, device="cuda", gpus=("GPU-5", "GPU-6")))
    view.apply(events.Telemetry(time=START, gpus=tuple(gpu(at, uuid=f"GPU-{at}") for at in range(8)), host=host()))
    context = DashboardContext(view, START, BRAILLE)
    rows = text(machine.machine(context, 100, 5)).splitlines()
    assert [row[:6] for row in rows[:3]] == ["▶GPU 5", "▶GPU 6", " GPU 0"]
    assert "5 more GPUs" in rows[3]
    assert chart_specs(view, raw=False, log=False)[2].title == "2 GPUs util"
    assert text(machine.detail_lines(context, 100)).count("▶GPU") == 2


def test_throttling_and_missing_figures_of_a_gpu() -> None:
    view = RunView()
    odd = gpu(0, power=None, temperature=None, throttle=("power cap",))
    view.apply(events.Telemetry(time=START, gpus=(odd,)))
    line = text(machine.machine(DashboardContext(view, START, BRAILLE), 120, 3))
    assert "throttled: power cap" in line
    assert "power " not in line.replace("power cap", "")


@pytest.mark.parametrize("gpus", [0, 8])
async def test_the_large_chart_has_its_rows_at_every_size(make_app: AppMaker, gpus: int) -> None:
    script = full()
    services = FakeServices(
        run=FakeRun(list(script.events)), sample=sample([gpu(index) for index in range(gpus)], at=script.time)
    )
    app = make_app(services, now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        for size in ((80, 24), (100, 30), (120, 35), (120, 50), (200, 60)):
            await pilot.resize_terminal(*size)
            await settle(pilot)
            live = app.screen.query_one("#live").region
            parts = [app.screen.query_one(name).region for name in ("#main", "#charts")]
            assert parts[0].height >= 7, size
            assert sum(part.height for part in parts) == live.height, size
            assert min(part.height for part in parts[1:]) >= 4, size


async def test_errors_stay_until_dismissed(make_app: AppMaker) -> None:
    script = full()
    script.add(events.ErrorEvent(time=script.time, message="No answer.", remedy="Check the [network]."))
    app = make_app(FakeServices(run=FakeRun(list(script.events))), now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert "✗ No answer. Check the [network]." in shown(app).splitlines()[4]
        await pilot.press("d")
        await settle(pilot)
        assert "No answer." not in shown(app).splitlines()[4]


async def test_charts_without_room_are_counted_and_a_key_shows_them(make_app: AppMaker) -> None:
    script = full()
    app = make_app(FakeServices(run=FakeRun(list(script.events))), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.tick()
        await pilot.pause()
        assert "v: 7 more" in shown(app)
        assert "─ loss ─" in shown(app)
        await pilot.press("v")
        await settle(pilot)
        assert "─ top-1 ─" in shown(app)
        assert "─ loss ─" not in shown(app)


async def test_zoom_crosshair_log_and_raw(make_app: AppMaker) -> None:
    script = full()
    app = make_app(FakeServices(run=FakeRun(list(script.events))), now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("plus", "y", "u", "x", "left")
        await pilot.pause()
        text_ = shown(app)
        assert "1 min" in text_
        assert "loss, log, raw" in text_
        assert text_.count("15:08:0") >= 4, "the crosshair's time is at every chart"
        await pilot.press("f", "minus", "minus", "minus", "minus")
        await pilot.pause()
        assert "  all ─" in shown(app)


@pytest.mark.parametrize(("earlier", "later"), [("left", "right"), ("h", "l")])
async def test_the_crosshair_moves_with_arrows_and_with_letters(make_app: AppMaker, earlier: str, later: str) -> None:
    script = full()
    app = make_app(FakeServices(run=FakeRun(list(script.events))), now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("x")
        await settle(pilot)
        newest = shown(app)
        await pilot.press(*[earlier] * 3)
        await settle(pilot)
        assert shown(app) != newest
        await pilot.press(*[later] * 3)
        await settle(pilot)
        assert shown(app) == newest


async def test_the_learning_rate_is_checked_before_it_is_set(make_app: AppMaker) -> None:
    run = FakeRun(list(full().events))
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("R", *"-1", "enter")
        await settle(pilot)
        assert "is not a learning rate" in shown(app)
        await pilot.press("home", "delete", "delete", *"0.01", "enter")
        await settle(pilot)
    assert run.asked == [("set_lr", 0.01)]


async def test_a_key_profiles_the_next_steps(make_app: AppMaker) -> None:
    run = FakeRun(list(full().events))
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("t")
        await settle(pilot)
    assert run.asked == [("profile",)]


def test_the_norm_of_the_gradients_has_a_chart_where_it_was_recorded() -> None:
    view = reduced(full())
    without = chart_specs(view, raw=False, log=False)
    view._plot("grad_norm", view.last_time or 0.0, 1.0)
    assert [spec.title for spec in chart_specs(view, raw=False, log=False) if spec not in without] == ["gradient norm"]


def test_counts_fit_their_tiles() -> None:
    assert tiles._count(1, "sample", "samples") == "1 sample"
    assert tiles._count(97_458, "sample", "samples") == "97,458 samples"
    assert tiles._count(120_676_352, "sample", "samples") == "121M samples"
    assert all(len(tiles._count(10**power, "batch", "batches")) < tiles.TILE_WIDTH for power in range(12))


async def test_the_list_of_events_follows_the_run(make_app: AppMaker) -> None:
    script = full()
    run = FakeRun(list(script.events))
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("i")
        await settle(pilot)
        screen = app.screen
        assert isinstance(screen, eventlog.EventsScreen)
        for number, moves in enumerate(("", "up", "")):
            selected = screen.table.cursor_row
            run.waiting = [events.InfoEvent(time=script.time, message=f"event {number}")]
            app.tick()
            screen.follow()
            await settle(pilot)
            assert f"event {number}" in shown(app)
            row = screen.table.cursor_row
            assert row is not None
            assert (row.text == f"event {number}") == (number < 2)
            assert number < 2 or row is selected
            if moves:
                await pilot.press(moves)


async def test_every_event_can_be_read_whole(make_app: AppMaker) -> None:
    script = full()
    long = "The reader process ended. " * 12
    script.add(events.WarningEvent(time=script.time, message=long, remedy="Look [here]."))
    app = make_app(FakeServices(run=FakeRun(list(script.events))), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "more ─" in shown(app).splitlines()[-4]
        await pilot.press("i")
        await settle(pilot)
        text_ = " ".join(shown(app).replace("│", " ").split())
        assert "Look [here]." in text_
        assert "run 20250615-150640-a1b2 starts" in text_
        await pilot.press("up")
        await settle(pilot)
        assert "Look [here]." not in shown(app)
        await pilot.press("escape")
        await settle(pilot)
        assert "─ samples/s ─" in shown(app)


async def test_a_run_that_failed_before_it_began_says_why(make_app: AppMaker) -> None:
    refused = events.ErrorEvent(time=START, message="The bucket is gone.", remedy="Look for it.")
    run = FakeRun([refused, events.State(time=START, state=RunState.FAILED)], state=RunState.FAILED, alive=False)
    app = make_app(FakeServices(run=run), now=START)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        lines = [line.strip() for line in shown(app).splitlines()]
    assert "✗ The run did not start" in lines
    assert "The bucket is gone. Look for it." in lines


async def test_the_progress_of_a_checkpoint_is_shown_until_it_is_written(make_app: AppMaker) -> None:
    script = full()
    saving = events.Saving(time=script.time, key="checkpoints/one.pt", bytes=90_000_000, written=41_000_000)
    run = FakeRun([*script.events, saving])
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "↑ writing checkpoint checkpoints/one.pt: 41.0 of 90.0 MB, 46 %" in shown(app)
        run.waiting = [msgspec.structs.replace(saving, written=0, over=True)]
        await settle(pilot)
        assert "writing checkpoint" not in shown(app)


@pytest.mark.parametrize(("key", "words"), [("b", "warm cache"), ("g", "memory clock 5000 MHz")])
async def test_a_key_shows_what_does_not_fit(make_app: AppMaker, key: str, words: str) -> None:
    script = full()
    services = FakeServices(
        run=FakeRun(list(script.events)), sample=sample([gpu(index) for index in range(8)], at=script.time)
    )
    app = make_app(services, now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert words not in shown(app)
        assert f"{key}: " in shown(app)
        await pilot.press(key)
        await settle(pilot)
        assert words in shown(app)
        await pilot.press(key)
        await settle(pilot)
        assert "─ samples/s ─" in shown(app)


def test_a_diverged_loss_leaves_a_gap_in_both_curves() -> None:
    view = reduced(Script().state(RunState.RUNNING).steps(30).steps(10, loss=None).steps(30))
    context = DashboardContext(view, view.last_time or 0.0, BRAILLE)
    window = TimeAxis().window(view, context.now)
    for raw in (False, True):
        spec = chart_specs(view, raw=raw, log=False)[1]
        rows = chart(context, spec, window, 127, 6)[1:]
        drawn = [line.text[AXIS_WIDTH + 1 :].replace(BRAILLE.dot, " ") for line in rows]
        columns = "".join("x" if any(row[at : at + 1].strip() for row in drawn) else " " for at in range(60))
        assert len(columns.split()) == 2, "two stretches of curve"


@pytest.mark.parametrize("glyphs", SETS.values(), ids=SETS)
def test_the_loss_as_measured_lies_behind_the_smoothed_one(glyphs: Glyphs) -> None:
    script = Script().state(RunState.RUNNING)
    for loss in (1.0, 3.0) * 30:
        script.steps(1, loss=loss)
    view = reduced(script)
    context = DashboardContext(view, view.last_time or 0.0, glyphs)
    window = TimeAxis().window(view, context.now)
    both, alone = (chart(context, chart_specs(view, raw=raw, log=False)[1], window, 60, 9) for raw in (False, True))
    assert "smoothed 2.05  raw 3.00" in both[0].text
    assert "loss, raw" in alone[0].text
    loose = {text for line in both[1:] for text, style in line.pieces[2:] if style == "dim" and text.strip()}
    line = {text for line in both[1:] for text, style in line.pieces[2:] if style == "primary" and text.strip()}
    assert loose
    assert line
    if glyphs.chart != "braille":
        assert {*"".join(loose)} <= {" ", "·" if glyphs.chart == "block" else "."}
        assert not {*"".join(line)} & {"·", "."}
    assert all(style != "dim" for line in alone[1:] for _, style in line.pieces[2:])


def test_the_step_time_shows_in_its_parts() -> None:
    view = reduced(Script().state(RunState.RUNNING).steps(30))
    lines = headline.verdict(DashboardContext(view, view.last_time or 0.0, BRAILLE), 200, 2)
    assert "= wait 40" in lines[0].text
    assert "copy 4.0 + compute 200" in lines[0].text
    slow = reduced(Script().state(RunState.RUNNING).steps(30, compute=1.2))
    lines = headline.verdict(DashboardContext(slow, slow.last_time or 0.0, BRAILLE), 200, 2)
    assert "+ copy 0.00 + compute 1.20" in lines[0].text, "all in seconds"


def test_a_mig_instance_says_that_nvml_has_no_utilization() -> None:
    view = RunView()
    instance = gpu(0, mig=1, utilization=None, problem="MIG is on: NVML reports no utilization for an instance.")
    view.apply(events.Telemetry(time=START, gpus=(instance,), host=host()))
    context = DashboardContext(view, START, BRAILLE)
    line = text(machine.machine(context, 100, 2))
    assert "GPU 0.1  utilization n/a (MIG)" in line
    assert "4.1/15 GiB" in line
    assert "NVML reports no utilization for an instance." in text(machine.detail_lines(context, 78))


def test_auto_compare_says_when_the_ratio_is_known() -> None:
    script = Script(epochs=200).state(RunState.RUNNING).steps(5)
    run = FakeRun(list(script.events))
    monitor = RunMonitor(FakeServices(run=run), clock=lambda: script.time)  # type: ignore[arg-type]
    monitor.pull()
    monitor.auto = AutoCompare()
    for _ in range(40):
        done = len(script.events)
        if run.asked:
            _, kind, reason = run.asked.pop()
            script.switch(kind, reason, ahead=0)  # type: ignore[arg-type]
        run.waiting = list(
            script.steps(30, wait=0.4 if script.endpoint is EndpointKind.STANDARD else 0.05).events[done:]
        )
        monitor.pull()
        if monitor.auto.done:
            break
    assert monitor.view.endpoint is ACCELERATED or run.asked, "it ends on the faster one"
    assert any(line.text.startswith("auto A/B done: the accelerated endpoint gives 2.") for line in monitor.view.log)


def decided() -> RunView:
    script = Script(epochs=200, steps_per_epoch=1000).state(RunState.RUNNING)
    for _ in range(8):
        script.steps(60, wait=0.4 if script.endpoint is EndpointKind.STANDARD else 0.05)
        script.switch(script.endpoint.other, ahead=0)
    return reduced(script.steps(20, wait=0.4))


@pytest.mark.parametrize("auto", ["", "auto A/B: 7/9 pairs, goal ± 5 %"])
def test_a_decided_ratio_is_the_largest_thing(auto: str) -> None:
    view = decided()
    lines = compare.comparison(DashboardContext(view, START, ASCII, comparison_status=auto), 34, 7)
    assert len(lines) == 7
    drawn = text(lines)
    assert all(row in drawn for row in large(view.comparison.ratio, ASCII))
    assert view.comparison.ratio in drawn  # with its interval below
    assert "samples/s" in drawn
    few = text(compare.comparison(DashboardContext(reduced(full()), START, ASCII), 34, 7))
    assert "|_" not in few, "an undecided ratio is not shown in large figures"


def test_a_run_that_ended_before_the_first_evaluation_collects_no_more() -> None:
    view = reduced(full())
    assert "collecting 1/6 pairs" in text(compare.comparison(DashboardContext(view, START, BRAILLE), 40, 8))
    view.apply(events.State(time=view.last_time or 0.0, state=RunState.STOPPED))
    assert "too short: 1 of 6 pairs" in text(compare.comparison(DashboardContext(view, START, BRAILLE), 40, 8))


def test_a_long_event_takes_the_rows_that_are_left() -> None:
    view = reduced(full())
    words = " ".join(f"word{number}" for number in range(30))
    view.apply(events.InfoEvent(time=START + 200, message=words))
    context = DashboardContext(view, START + 200, BRAILLE)
    events_of_run = len(view.log)
    few = eventlog.event_log(context, 80, events_of_run)
    assert len(few) == events_of_run
    assert few[-1].text.endswith("…")
    many = eventlog.event_log(context, 80, events_of_run + 5)
    assert words in " ".join(text(many).split())
    assert all(line.width <= 80 for line in many)


def test_the_rows_that_matter_most_show_in_one_order() -> None:
    context = DashboardContext(reduced(full()), START, BRAILLE)
    every = [line.text.strip() for line in compare.comparison(context, 60, 30)]
    names = [row[0] for row in compare._ROWS]
    rows = [next(at for at, line in enumerate(every) if line.startswith(name)) for name in names]
    assert rows == sorted(rows)
    few = text(compare.comparison(context, 60, 7))
    assert "fetch p95" in few
    assert "fetch p50" not in few


def test_pairs_are_counted_once() -> None:
    """The row of auto A/B has them; the row that this saves shows a measurement."""
    context = DashboardContext(reduced(full()), START, BRAILLE, comparison_status="auto A/B: 1/6 pairs, until ± 5 %")
    shown = text(compare.comparison(context, 40, 8))
    assert shown.count("1/6 pairs") == 1
    assert "batches" in shown


@pytest.mark.parametrize("width", [60, 64, 80, 120])
def test_the_card_of_a_finished_run_cuts_no_word(width: int) -> None:
    view = decided()
    view.apply(events.State(time=view.last_time or 0.0, state=RunState.FINISHED))
    lines = headline.verdict(DashboardContext(view, START, BRAILLE, has_controls=True), width, 7)
    rows = {line.text[2:14].strip(): line.text[16:].strip() for line in lines}
    assert all(line.width <= width for line in lines)
    assert rows["speed-up"].endswith(("per epoch", "/epoch", ")"))
    assert set(rows["next"].split(" · ")) <= {"T resume", "p predictions", "n new run", "r all runs"}


def test_an_empty_chart_has_no_values_on_its_axis() -> None:
    drawn = text(chart(DashboardContext(RunView(), START, BRAILLE), SPEED, TimeAxis().window(RunView(), START), 60, 12))
    assert not re.search(rf"\d *{BRAILLE.tick}", drawn), drawn


def test_the_detail_lines_name_the_conditions() -> None:
    drawn = text(compare.detail_lines(DashboardContext(decided(), START, BRAILLE), 78))
    assert "conditions: 8 pairs" in drawn
    assert "batch 64, 2 workers" in drawn
    assert "typical step, stalls excluded" in drawn


def test_a_control_names_the_steps_of_one_endpoint_by_turns_and_finds_one() -> None:
    script = Script(epochs=200, steps_per_epoch=1000).state(RunState.RUNNING).steps(5)
    run = FakeRun(list(script.events))
    monitor = RunMonitor(FakeServices(run=run), clock=lambda: script.time)  # type: ignore[arg-type]
    monitor.pull()
    monitor.start_control()
    control = monitor.control
    assert control is not None
    while not control.done:
        done = len(script.events)
        run.waiting = list(script.steps(30).events[done:])
        monitor.pull()
    assert not run.asked, "the run is not touched"
    assert control.passed
    assert control.measurement.figures(ACCELERATED).steps > 0
    assert monitor.view.figures(ACCELERATED).steps == 0, "the run's own figures keep the true name"
    assert control.outcome.startswith("A/A control on standard alone: ")
    assert control.outcome.endswith("1.00 is inside, as it must be")
    assert control.words.endswith("1.00 inside")
    assert [line.text for line in monitor.view.log].count(control.outcome) == 1


def test_a_control_ends_where_the_run_changes_the_endpoint() -> None:
    script = Script().state(RunState.RUNNING).steps(20)
    run = FakeRun(list(script.events))
    monitor = RunMonitor(FakeServices(run=run), clock=lambda: script.time)  # type: ignore[arg-type]
    monitor.pull()
    monitor.start_control()
    known = len(script.events)
    run.waiting = script.switch(ACCELERATED, "by hand").steps(5).events[known:]
    monitor.pull()
    assert monitor.control is not None
    assert monitor.control.outcome == (
        "A/A control on standard alone ended, the run changed to accelerated: too short: 0 of 6 pairs"
    )


@pytest.mark.parametrize(
    ("end", "words"),
    [("switch", "auto A/B ended, the accelerated endpoint failed: "), ("over", "auto A/B ended, the run is over: ")],
)
def test_auto_compare_ends_with_the_comparison(end: str, words: str) -> None:
    script = Script().state(RunState.RUNNING).steps(20).switch(ACCELERATED, "auto A/B").steps(8, wait=0.05)
    run = FakeRun(list(script.events))
    monitor = RunMonitor(FakeServices(run=run), clock=lambda: script.time)  # type: ignore[arg-type]
    monitor.pull()
    monitor.auto = AutoCompare()
    known = len(script.events)
    if end == "over":
        run.alive = False
    else:
        script.switch(EndpointKind.STANDARD, "the accelerated endpoint failed").steps(60)
    run.waiting = script.events[known:]
    monitor.pull()
    assert monitor.auto.done
    assert not run.asked, "a run that fell back is left where it is"
    assert sum(line.text.startswith(words) for line in monitor.view.log) == 1


def test_the_telemetry_of_a_run_of_another_process_is_used() -> None:
    script = Script().state(RunState.RUNNING).steps(5)
    theirs = events.Telemetry(time=START + 100, gpus=(gpu(0, power=321.0),), host=host())
    run = FakeRun([*script.events, theirs])
    services = FakeServices(run=run, sample=sample([gpu(0, power=1.0)], at=START + 101))
    monitor = RunMonitor(services, clock=lambda: START + 101)  # type: ignore[arg-type]
    monitor.pull()
    assert monitor.view.telemetry == theirs
    services.sample = sample([gpu(0, power=1.0)], at=START + 120)
    monitor.pull()
    assert monitor.view.telemetry is not None
    assert monitor.view.telemetry.gpus[0].power == 1.0, (
        "without telemetry of the run for a while, our own sample counts"
    )
