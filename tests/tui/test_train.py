"""The Train screen: what it says of a run, and what its keys ask of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest
from textual.events import Key
from textual.widgets import Input, Select

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.tui.console import PreparationStage, StageState
from ossconsole.tui.kit import dialogs, memory
from ossconsole.tui.kit.dialogs import ConfirmScreen
from ossconsole.tui.train.screen import NewRunScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import SIMULATED, START, FakeRun, FakeServices, FakeUpload, Script, gpu, sample, upload_progress
from tests.tui.screens import settle, shown
from tests.tui.test_train_pictures import decided

ACCELERATED = EndpointKind.ACCELERATED


def running(script: Script | None = None) -> FakeRun:
    script = script or Script().state(RunState.RUNNING, 3).steps(30)
    return FakeRun(list(script.events))


async def test_the_figures_of_a_run_are_on_the_screen(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING, 3).steps(80).end_epoch().steps(10)
    app = make_app(FakeServices(run=running(script)), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
    for words in ("I/O-bound", "66 %", "epoch 2/5", "step 90/400", "top-1", "42.0 %", "epoch-0001.pt", "● standard"):
        assert words in text, words


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_an_io_bound_run_shows_the_gain_of_jpegs(make_app: AppMaker, size: tuple[int, int]) -> None:
    script = Script().state(RunState.RUNNING, 3).steps(40)
    assert isinstance(script.events[0], events.Run)
    script.events[0] = msgspec.structs.replace(script.events[0], sample_format="image-u8", stored_as="shards")
    run = running(script)
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        text = " ".join(line.strip("▌ ") for line in shown(app).splitlines()[:6])
        rows = [app.screen.query_one("#verdict").region.height]
        done = len(script.events)
        run.waiting = list(script.switch(ACCELERATED).steps(2, wait=0.02).events[done:])
        await settle(pilot)
        assert "Switching to accelerated" in shown(app)
        rows.append(app.screen.query_one("#verdict").region.height)
    assert rows == 2 * [5 if size[0] == 80 else 4]
    assert "the accelerated endpoint would be worth at most 2.9x (estimated)" in text
    assert (
        "image-jpeg needs about 2.3 KB per sample instead of 12 KB: at most 2.9x (estimated; then computing limits). "
        "Try: ossconsole upload SRC --format image-jpeg --size 73" in text
    )


async def test_events_that_come_later_are_shown(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING).steps(5)
    run = running(script)
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "step 5/400" in shown(app)
        done = len(script.events)
        script.steps(7)
        run.waiting = list(script.events[done:])
        await settle(pilot)
        assert "step 12/400" in shown(app)


async def test_a_switch_settles_and_then_pairs_are_collected(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING).steps(60).switch(ACCELERATED).steps(2, wait=0.02)
    run = running(script)
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert "Switching to accelerated" in shown(app)
        done = len(script.events)
        script.steps(60, wait=0.02)
        run.waiting = list(script.events[done:])
        await settle(pilot)
        text = shown(app)
    assert "collecting 1/6 pairs" in text
    assert "▲ 2.7" not in text, "an undecided ratio is not shown"
    assert "simulated" in text


@pytest.mark.parametrize("kind", [EndpointKind.STANDARD, EndpointKind.ACCELERATED])
async def test_e_requests_the_other_endpoint(make_app: AppMaker, kind: EndpointKind) -> None:
    script = Script().state(RunState.RUNNING).steps(5)
    if kind is ACCELERATED:
        script.switch(kind).steps(3)
    run = running(script)
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("e")
        await settle(pilot)
    assert run.asked == [("switch", kind.other, "by hand")]


async def test_an_endpoint_that_does_not_answer_is_not_switched_to(make_app: AppMaker) -> None:
    run = running()
    services = FakeServices(run=run, unreachable={ACCELERATED: ConsoleError("No answer.", remedy="Check it.")})
    app = make_app(services)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        await pilot.press("e")
        await settle(pilot)
        assert "No answer. Check it." in " ".join(shown(app).split())
    assert run.asked == []


async def test_space_pauses_and_resumes(make_app: AppMaker) -> None:
    run = running()
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "space Pause" in shown(app)
        await pilot.press("space")
        await settle(pilot)
        assert "space Continue" in shown(app)
        run.state = RunState.PAUSED
        run.waiting = [events.State(time=START + 60, state=RunState.PAUSED)]
        await settle(pilot)
        assert "‖ paused" in shown(app)
        assert "space Continue" in shown(app)
        await pilot.press("space")
        await settle(pilot)
        assert "space Pause" in shown(app)
    assert run.asked == [("pause",), ("resume",)]


async def test_s_asks_first_and_the_safe_answer_has_the_focus(make_app: AppMaker) -> None:
    run = running()
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("s", "enter")
        await settle(pilot)
        assert run.asked == []
        await pilot.press("s", "right", "enter")
        await settle(pilot)
    assert run.asked == [("stop",)]


async def test_c_requests_a_checkpoint(make_app: AppMaker) -> None:
    run = running()
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("c")
        await settle(pilot)
    assert run.asked == [("checkpoint",)]


@pytest.mark.parametrize("mode", ["train", "setup"])
async def test_the_error_of_a_failed_run_is_a_toast_where_no_card_shows_it(make_app: AppMaker, mode: str) -> None:
    script = Script().state(RunState.RUNNING).steps(3)
    run = running(script)
    app = make_app(FakeServices(run=run), mode, now=START)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        error = events.ErrorEvent(time=script.time, message="Rank 1 was killed.", remedy="Resume.")
        run.waiting = [error, events.State(time=script.time, state=RunState.FAILED)]
        run.alive = False
        await settle(pilot)
        toasts = [each.message for each in app._notifications]
        assert ("Rank 1 was killed." in toasts) == (mode == "setup")
        assert ("Rank 1 was killed. Resume." in shown(app)) == (mode == "train")


async def test_a_request_that_the_run_refuses_is_not_shown_as_pending(make_app: AppMaker) -> None:
    """Such as a checkpoint of a script that is watched without `on_checkpoint`."""
    script = Script().state(RunState.RUNNING).steps(3)
    run = running(script)
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("c")
        await settle(pilot)
        assert "checkpoint after this step…" in shown(app)
        run.waiting, run.refused = [events.WarningEvent(time=script.time, message="No function saves one.")], 1
        await settle(pilot)
        assert "checkpoint after this step…" not in shown(app)
        await pilot.press("c")
        await settle(pilot)
        assert "checkpoint after this step…" in shown(app), "another request"


async def test_the_dialog_of_the_learning_rate_has_the_peak_and_not_the_present_rate(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING).steps(3)
    script.add(events.LearningRate(time=script.time, peak=0.25, step=3))
    run = running(script)
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("R")
        await settle(pilot)
        assert app.screen.query_one(Input).value == "0.25"
        assert "The rate is now " in shown(app), shown(app)
        await pilot.press("enter")
        await settle(pilot)
    assert run.asked == [("set_lr", 0.25)]


async def test_a_long_record_is_read_without_a_verdict_about_its_past(make_app: AppMaker) -> None:
    """An attached run that began hours ago looked as if its endpoint did not answer."""
    script = Script().state(RunState.RUNNING).steps(80)
    run = running(script)
    run.is_remote, run.reading = True, 0.34
    app = make_app(FakeServices(run=run), now=script.time + 40_000)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert "Reading the record of the run: 34 %" in shown(app)
        assert "reading the record…" in shown(app)
        assert "may not answer" not in shown(app)
        assert "ETA" not in shown(app)
        await pilot.press("e", "a", "A")
        await settle(pilot)
        assert run.asked == [], "the endpoint in use is not known yet"
        assert app.monitor.auto is None
        assert app.monitor.control is None
        done = len(script.events)
        run.waiting, run.reading = list(script.steps(1).events[done:]), None
        await settle(pilot)
        assert "No step for 667 min" in shown(app)


async def test_auto_compare_alternates_also_while_another_screen_shows(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING).steps(80)
    run = running(script)
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("a", "1")
        await settle(pilot)
        assert app.current_mode == "setup"
        assert run.asked == [("switch", ACCELERATED, "auto A/B")]


@pytest.mark.parametrize("remote", [False, True])
async def test_a_console_that_closes_during_auto_compare_leaves_the_run_on_its_first_endpoint(
    make_app: AppMaker, remote: bool
) -> None:
    script = Script().state(RunState.RUNNING).steps(80)
    run = running(script)
    run.is_remote = remote
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("a")
        await settle(pilot)
        assert run.asked == [("switch", ACCELERATED, "auto A/B")]
        done = len(script.events)
        run.waiting = list(script.switch(ACCELERATED, "auto A/B", ahead=0).events[done:])
        await settle(pilot)
    assert run.asked[1:] == [("switch", EndpointKind.STANDARD, "auto A/B")]


async def test_a_control_does_not_change_the_run_and_ends_at_a_second_press(make_app: AppMaker) -> None:
    run = running(Script().state(RunState.RUNNING).steps(40))
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("a", "A")
        await settle(pilot)
        assert app.monitor.auto is None
        assert "A/A control: collecting 0/6 pairs" in shown(app)
        await pilot.press("A")
        await settle(pilot)
        assert app.monitor.control is None
    assert run.asked in ([], [("switch", ACCELERATED, "auto A/B")])


async def test_no_key_of_a_run_works_without_one(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("e", "space", "s", "c", "a")
        await settle(pilot)
        assert "No run yet" in shown(app)


async def test_the_form_starts_a_run_and_is_remembered(make_app: AppMaker) -> None:
    services = FakeServices()
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        for name, value in (("batch_size", "32"), ("workers", "5"), ("resume", "latest")):
            app.screen.query_one(f"#field-{name}", Input).value = value
        await pilot.press("enter")
        await settle(pilot)
        started = services.started[0]
        assert (started.batch_size, started.workers, started.resume) == (32, 5, "latest")
        assert "loading torch" in shown(app)
        services.run = None
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        assert app.screen.query_one("#field-batch_size", Input).value == "32"
        assert app.screen.query_one("#field-resume", Input).value == "", "a run resumes from a checkpoint only once"
        await pilot.press("ctrl+r")
        await settle(pilot)
        shown_defaults = [
            app.screen.query_one(f"#field-{name}", Input).value for name in ("batch_size", "learning_rate")
        ]
        assert shown_defaults == ["auto", "auto"]
        await pilot.press("enter")
        await settle(pilot)
        assert (services.started[1].batch_size, services.started[1].learning_rate) == (0, 0)


async def test_the_form_names_the_dataset_of_the_run(make_app: AppMaker) -> None:
    services = FakeServices()
    app = make_app(services)
    assert services.profile is not None
    own = services.profile.dataset_prefix

    async def start_on(typed: str) -> str:
        """Starts a run on what is typed as its dataset, and returns what the form showed before."""
        services.run = None
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        field = app.screen.query_one("#field-dataset_prefix", Input)
        shown_before, field.value = field.value, typed
        await pilot.press("enter")
        await settle(pilot)
        return shown_before

    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert await start_on("photos/") == own
        assert await start_on(own) == "photos"
        assert await start_on("  ") == own
        assert isinstance(app.screen, NewRunScreen)
        assert app.focused is not None
        assert app.focused.id == "field-dataset_prefix"
        await pilot.press("ctrl+r")
        assert app.screen.query_one("#field-dataset_prefix", Input).value == own
        assert app.screen.query_one("#field-val_split", Input).value == "0.1"
    assert services.started_on == ["photos", own]


async def test_a_run_starts_when_its_settings_cannot_be_kept(
    make_app: AppMaker, lose_state: Callable[[], None]
) -> None:
    services = FakeServices()
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        lose_state()
        await pilot.press("enter")
        await settle(pilot)
        assert len(services.started) == 1
        assert sum("Not remembered" in notice.message for notice in app._notifications) == 1


@pytest.mark.parametrize("entered", ["", "0"])
async def test_words_stand_for_the_zeros_of_the_form(make_app: AppMaker, entered: str) -> None:
    """A step limit of 0 reads like no steps at all."""
    services = FakeServices()
    app = make_app(services)
    names = ("max_steps", "switch_every", "checkpoint_every", "image_size")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        fields = [app.screen.query_one(f"#field-{name}", Input) for name in names]
        assert [field.value for field in fields] == ["no limit", "off", "each epoch", "as stored"]
        for field in fields:
            field.value = entered or field.value
        await pilot.press("enter")
        await settle(pilot)
    assert [getattr(services.started[0], name) for name in names] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("epochs", "0", "Epochs: a whole number is needed, at least 1"),
        ("workers", "two", "Workers: a whole number is needed "),
        ("learning_rate", "-1", "Learning rate: a number is needed, at least 0"),
        ("val_split", "2", "Held out: a number is needed, below 1"),
        ("model", "resnet19", "resnet19"),
    ],
)
async def test_the_form_refuses_invalid_values(make_app: AppMaker, field: str, value: str, words: str) -> None:
    services = FakeServices()
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        app.screen.query_one(f"#field-{field}", Input).value = value
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, NewRunScreen)
        assert app.focused is not None
        assert app.focused.id == f"field-{field}"
        assert words in shown(app)
    assert services.started == []


async def test_a_frozen_backbone_needs_weights(make_app: AppMaker) -> None:
    services = FakeServices()
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        app.screen.query_one("#field-freeze", Select).value = "backbone"
        await pilot.press("enter")
        await settle(pilot)
        assert app.focused is not None
        assert app.focused.id == "field-weights"
        app.screen.query_one("#field-weights", Input).value = "imagenet"
        await pilot.press("enter")
        await settle(pilot)
    assert [(each.freeze, each.weights) for each in services.started] == [("backbone", "imagenet")]


async def test_a_gpu_is_selected_from_those_of_the_machine(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")  # an index of NVML would name another GPU for CUDA
    services = FakeServices(sample=sample([gpu(index, uuid=f"GPU-{index:04}") for index in range(3)]))
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        form = app.screen
        assert isinstance(form, NewRunScreen)
        control = form.query_one("#field-gpu", Select)
        assert [value for _, value in control._options] == ["auto", "GPU-0002", "GPU-0000"]
        assert "2 Tesla T4, 4.1/15 GiB in use" in str(control._options[1][0])
        control.value = "GPU-0002"
        form.query_one("#field-device", Select).value = "cpu"
        await pilot.press("enter")
        await settle(pilot)
        assert app.focused is not None
        assert app.focused.id == "field-gpu", "a GPU is of no use to a run on the CPU"
        form.query_one("#field-device", Select).value = "auto"
        await pilot.press("ctrl+s")
        await settle(pilot)
        services.run = None
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        assert app.screen.query_one("#field-gpu", Select).value == "auto"
    assert [(each.gpu, each.device) for each in services.started] == [("GPU-0002", "auto")]


async def test_keys_right_after_tab_go_into_the_next_field(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        for key in ("7", "tab", "8", "tab", "9", "shift+tab", "5"):  # all of them before any was handled
            app.post_message(Key(key, key if key.isdecimal() else None))
        await settle(pilot)
        values = [app.screen.query_one(f"#field-{name}", Input).value for name in ("epochs", "max_steps", "model")]
        assert values == ["7", "5", "9"]


async def test_read_only_starts_nothing(make_app: AppMaker) -> None:
    app = make_app(FakeServices(readonly=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        assert not isinstance(app.screen, NewRunScreen)


async def test_the_preparation_is_shown(make_app: AppMaker) -> None:
    stages = [
        PreparationStage("sandbox", StageState.DONE, "port 9000"),
        PreparationStage("sample images", StageState.ACTIVE, "drawing 120 of 640"),
        PreparationStage("upload", StageState.WAITING),
    ]
    services = FakeServices(stages=stages)
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
        await pilot.press("n")
        await settle(pilot)
        assert not isinstance(app.screen, NewRunScreen)
        (refusal,) = app._notifications
        assert refusal.message == "Preparing the sample dataset: sample images drawing 120 of 640"
        services.stages = [PreparationStage(stage.label, StageState.DONE) for stage in stages]
        await settle(pilot)
        assert "No run yet.  Press n" in shown(app)
        await pilot.press("n")
        await settle(pilot)
        assert isinstance(app.screen, NewRunScreen)
    assert "sandbox: preparing" in text
    assert "▶ sample images drawing 120 of 640" in " ".join(text.split())
    assert "✓ sandbox" in text


async def test_the_upload_of_the_sample_dataset_shows_its_progress(make_app: AppMaker) -> None:
    services = FakeServices(
        stages=[PreparationStage("upload", StageState.ACTIVE)], upload=FakeUpload(upload_progress(done=312, total=850))
    )
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "▶ upload 312 of 850 samples" in " ".join(shown(app).split())
        await pilot.press("2")
        await settle(pilot)
        assert "Preparing the sample dataset: upload 312 of 850 samples" in shown(app)


@pytest.mark.parametrize("count", [1, 8])
async def test_gpus_are_listed_and_the_rest_counted(make_app: AppMaker, count: int) -> None:
    script = Script().state(RunState.RUNNING).steps(10)
    services = FakeServices(run=running(script), sample=sample([gpu(index) for index in range(count)], at=script.time))
    app = make_app(services, now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        text = shown(app)
    assert "GPU 0" in text
    assert "41/70 W" in text
    assert ("more GPUs" in text) == (count == 8)


async def test_without_a_gpu_the_tile_says_why(make_app: AppMaker) -> None:
    services = FakeServices(sample=sample(problem="No NVIDIA driver on this machine."))
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "No NVIDIA driver on this machine." in shown(app)


async def test_a_hidden_screen_is_not_drawn(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = running()
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        train = app.screen
        await pilot.press("3")
        await settle(pilot)
        drawn: list[None] = []
        monkeypatch.setattr(train, "tick", lambda: drawn.append(None))
        app.tick()
        await pilot.pause()
        assert drawn == []
        assert run.waiting == [], "events are still taken in"


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)])
async def test_a_finished_run_has_a_card_with_its_result_and_the_next_steps(
    make_app: AppMaker, size: tuple[int, int]
) -> None:
    script = decided().end_epoch().state(RunState.FINISHED).summary()
    services = FakeServices(run=FakeRun(list(script.events), state=RunState.FINISHED, alive=False))
    app = make_app(services, now=script.time)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        text = shown(app)
        assert "saves 3:00 per epoch" in text or size[0] < 80
        assert "epoch-0001.pt" in text or size[0] < 80
        for words in ("Finished", "top-1 42.0 %", "1.43x of standard (1.41 ", "T resume", "n new run"):
            assert words in text, words
        assert "checkpoints/" in text
        await pilot.press("T")
        await settle(pilot)
        assert isinstance(app.screen, NewRunScreen)
        assert app.screen.value("resume").endswith("epoch-0001.pt")
        assert app.screen.value("epochs") == "3"
        assert app.screen.value("batch_size") == "64"


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_a_run_says_how_much_of_its_models_ceiling_it_reaches(make_app: AppMaker, size: tuple[int, int]) -> None:
    script = Script()
    ceiling = events.ModelCeiling(bench="t4-256", samples_per_s=302.0)
    script.add(events.Devices(time=script.time, device="cuda", gpus=("GPU-1",), ceiling=ceiling))
    script.state(RunState.RUNNING, 3).steps(30)
    run = running(script)
    app = make_app(FakeServices(run=run), now=script.time)
    words = " % of what the model can do on this GPU (benchmark t4-256)"
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert words in shown(app)
        assert "the accelerated endpoint" in shown(app), "the advice stays"
    ended = script.state(RunState.FINISHED).summary()
    app = make_app(FakeServices(run=FakeRun(list(ended.events), state=RunState.FINISHED, alive=False)))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert f"model         50{words}" in shown(app)


@pytest.mark.parametrize(("whole", "words"), [(0, "0 epochs, 30 "), (2, "2 epochs, 30 ")])
async def test_the_card_and_the_event_count_the_same_epochs(make_app: AppMaker, whole: int, words: str) -> None:
    script = Script().state(RunState.RUNNING, 3)
    for _ in range(whole):
        script.end_epoch()
    script.steps(30).state(RunState.STOPPED).summary(RunState.STOPPED)
    app = make_app(FakeServices(run=FakeRun(list(script.events), state=RunState.STOPPED, alive=False)), now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        lines = shown(app).splitlines()
    assert any("Stopped" in line and words in line for line in lines), "the card"
    assert any("stopped:" in line and words in line for line in lines), "the event"


async def test_with_a_price_the_card_says_what_the_faster_endpoint_saves(make_app: AppMaker) -> None:
    script = decided().end_epoch().state(RunState.FINISHED).summary()
    services = FakeServices(run=FakeRun(list(script.events), state=RunState.FINISHED, alive=False))
    app = make_app(services, now=script.time, price_per_hour=40.0)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert "accelerated saves 3:00 and CNY 2.00 per epoch" in shown(app)


async def test_a_failed_run_says_why_and_what_can_be_done_next(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING, 3).steps(80).end_epoch().steps(3)
    script.state(RunState.FAILED).summary(RunState.FAILED, "The accelerated endpoint does not answer.")
    app = make_app(FakeServices(run=FakeRun(list(script.events), state=RunState.FAILED, alive=False)))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
    for words in ("Failed", "83 of 400 steps", "The accelerated endpoint does not answer.", "T resume"):
        assert words in text, words


async def test_the_form_shows_the_end_of_a_long_key(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.new_run(resume="checkpoints/resnet18-20250615-150640-a1b2-e05-s000080.pt")
        await settle(pilot)
        await settle(pilot)
        assert "e05-s000080.pt" in shown(app)


async def test_no_run_is_configured_while_one_is_alive(make_app: AppMaker) -> None:
    app = make_app(FakeServices(run=running()))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        app.new_run(resume="checkpoints/a.pt")
        await settle(pilot)
        assert any("Press 0, then s" in notification.message for notification in app._notifications)
        assert not isinstance(app.screen, NewRunScreen)


async def test_a_checkpoint_typed_into_the_form_gives_its_settings(make_app: AppMaker) -> None:
    services = FakeServices(of_checkpoint={"image_size": 96, "seed": 7})
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        app.screen.query_one("#field-resume", Input).value = "latest"
        await pilot.press("enter")
        await settle(pilot)
        assert [(run.image_size, run.seed, run.resume) for run in services.started] == [(96, 7, "latest")]
        notices = [notice.message for notice in app._notifications]
        assert "As in the checkpoint: image size 96, seed 7." in notices


async def test_a_resumed_run_starts_with_the_settings_of_its_checkpoint(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.new_run(resume="checkpoints/a.pt", known={"image_size": 96, "seed": 7, "epochs": 2})
        await settle(pilot)
        form = app.screen
        assert isinstance(form, NewRunScreen)
        assert [form.value(name) for name in ("image_size", "seed", "epochs")] == ["96", "7", "3"]


async def test_every_request_is_acknowledged_before_the_run_has_done_it(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING, 3).steps(30)
    run = running(script)
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("space")
        await settle(pilot)
        assert "pausing after this step…" in shown(app)
        await pilot.press("space")
        await settle(pilot)
        assert run.asked == [("pause",), ("resume",)]
        await pilot.press("c")
        await settle(pilot)
        assert "checkpoint after this step…" in shown(app)
        await pilot.press("e")
        await settle(pilot)
        assert "switching to accelerated…" in shown(app)
        done = len(script.events)
        run.waiting = list(script.switch(ACCELERATED).events[done:])
        await settle(pilot)
        assert "switching to accelerated…" not in shown(app)


async def test_a_refused_switch_is_no_longer_announced(make_app: AppMaker) -> None:
    services = FakeServices(run=running(), unreachable={ACCELERATED: ConsoleError("It does not answer.")})
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("e")
        await settle(pilot)
        assert "switching to" not in shown(app)


async def test_the_letter_of_an_answer_gives_it_but_not_a_paste(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running()
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        monkeypatch.setattr(dialogs, "_TYPING_S", 3600.0)  # keys that follow one another at once, on any machine
        await pilot.press("s", "s", "y")
        await settle(pilot)
        assert isinstance(app.screen, ConfirmScreen)
        assert run.asked == []
        monkeypatch.setattr(dialogs, "_TYPING_S", 0.0)
        await pilot.press("n")
        await settle(pilot)
        assert run.asked == []
        await pilot.press("s")
        await settle(pilot)
        assert "k keep running · s stop" in shown(app)
        await pilot.press("s")
        await settle(pilot)
        assert run.asked == [("stop",)]
        assert "stopping after this step…" in shown(app)


async def test_the_demo_fills_the_cache_and_then_measures_by_itself(make_app: AppMaker) -> None:
    script = Script(steps_per_epoch=20).state(RunState.RUNNING, 3).switch(ACCELERATED, "auto A/B", ahead=0).steps(10)
    run = running(script)
    app = make_app(FakeServices(run=run, is_demo=True), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "demo: cache filling, 50 %" in shown(app)
        assert app.monitor.auto is None
        done = len(script.events)
        run.waiting = list(script.steps(10).end_epoch().events[done:])
        await settle(pilot)
        assert "has filled the accelerator's cache" in shown(app)
        assert app.monitor.auto is not None
        assert "auto A/B" in shown(app)


async def test_on_a_busy_machine_the_demo_slows_its_standard_endpoint_down(make_app: AppMaker) -> None:
    script = Script(steps_per_epoch=20).state(RunState.RUNNING, 3).steps(20, wait=0.01, compute=1.0)
    run = running(script)
    services = FakeServices(run=run, is_demo=True)
    app = make_app(services, now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert services.sandbox_speeds == []  # slow, the cache would fill slowly
        done = len(script.events)
        run.waiting = list(script.end_epoch().events[done:])
        await settle(pilot)
        assert services.sandbox_speeds == [pytest.approx(64 / 1.004 / 2.5, rel=0.01)]
        assert "the standard endpoint (simulated) is slowed down to 25 objects/s" in shown(app)


async def test_a_stopped_demo_fills_no_cache_any_more(make_app: AppMaker) -> None:
    script = Script(steps_per_epoch=20).state(RunState.RUNNING, 3).steps(12)
    run = running(script)
    app = make_app(FakeServices(run=run, is_demo=True), now=script.time)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert "demo: cache filling" in shown(app)
        done = len(script.events)
        run.waiting = list(script.state(RunState.STOPPED).events[done:])
        await settle(pilot)
        assert "Stopped" in shown(app)
        assert "demo: " not in shown(app)


async def test_a_switch_by_hand_ends_the_guide_of_the_demo(make_app: AppMaker) -> None:
    script = Script(steps_per_epoch=20).state(RunState.RUNNING, 3).steps(5).switch(ACCELERATED, "by hand").steps(20)
    run = running(script)
    app = make_app(FakeServices(run=run, is_demo=True), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        run.waiting = list(script.end_epoch().events[-3:])
        await settle(pilot)
        assert run.asked == []
        assert app.monitor.guide is None


async def test_a_remembered_value_that_is_not_in_the_list_is_replaced(make_app: AppMaker) -> None:
    memory.remember("train", "sandbox", {"device": "mps", "freeze": "head", "endpoint": "mirror", "epochs": 7})
    services = FakeServices()
    app = make_app(services, "train")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await pilot.pause()
        assert isinstance(app.screen, NewRunScreen)
        await pilot.press("ctrl+s")
        await settle(pilot)
    started = services.started[0]
    assert (started.device, started.freeze, started.endpoint, started.epochs) == ("auto", "none", "standard", 7)


async def test_the_answer_to_a_question_about_a_run_is_not_for_the_next_one(make_app: AppMaker) -> None:
    first, second = running(), running()
    services = FakeServices(run=first)
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("s")
        first.alive, services.run = False, second
        app.tick()
        await pilot.press("right", "enter")
        await settle(pilot)
        assert "stopping" not in shown(app)
    assert (first.asked, second.asked) == ([], [])


async def test_a_refused_switch_leaves_a_newer_request_alone(make_app: AppMaker) -> None:
    held = threading.Event()
    services = FakeServices(run=running())

    def refuse(kind: EndpointKind) -> None:
        assert held.wait(20)
        raise ConsoleError(f"{kind} does not answer.")

    services.preflight = refuse  # type: ignore[method-assign]
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("e", "space")
        held.set()
        await settle(pilot)
        assert "space Continue" in shown(app)


async def test_no_run_starts_on_a_profile_opened_behind_the_form(make_app: AppMaker) -> None:
    services = FakeServices()
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await pilot.pause()
        services.profile = msgspec.structs.replace(SIMULATED, name="other", bucket="other")
        app.tick()
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "Another profile was opened" in "".join(notice.message for notice in app._notifications)
    assert services.started == []
