"""The shell: modes, header, footer, help, palette, quitting, a terminal that is too small, crashes."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from rich.color import ColorSystem
from textual.events import MouseDown, MouseUp
from textual.screen import Screen

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import make_folder, state_dir
from ossconsole.dataset.upload.progress import Phase
from ossconsole.tui import app as app_module
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.console import NoCredentials, PreparationStage, StageState, Starting
from ossconsole.tui.help import HelpScreen, KeyTable, LogScreen
from ossconsole.tui.kit import actions, memory
from ossconsole.tui.kit.dialogs import ConfirmScreen, ListScreen
from ossconsole.tui.kit.glyphs import BRAILLE
from ossconsole.tui.kit.palette import ActionProvider
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.terminal_bytes import TerminalBackground
from ossconsole.tui.kit.text import Line
from ossconsole.tui.setup.profiles import ProfileForm
from ossconsole.tui.train.runs import RunsScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import REAL, SECRET, FakeRun, FakeServices, FakeUpload, Script, upload_progress
from tests.tui.screens import settle, shown


def test_the_first_paint_waits_for_no_screen_and_nothing_a_screen_needs() -> None:
    code = (
        "import sys, ossconsole.cli.console, ossconsole.cli.application, ossconsole.tui.app\n"
        "late = ('numpy', 'http.client', 'psutil', 'ossconsole.tui.browse.screen', 'ossconsole.telemetry.view')\n"
        "print([name for name in late if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_neither_the_app_nor_its_screens_load_heavy_libraries() -> None:
    code = (
        "import sys, ossconsole.cli.application, ossconsole.tui.app\n"
        "import ossconsole.tui.browse.screen, ossconsole.tui.train.screen\n"
        "heavy = {'torch', 'torchvision', 'oss2', 'pynvml', 'osstorchconnector', 'PIL', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


async def test_objects_excluded_from_garbage_collection_are_collected_again(make_app: AppMaker) -> None:
    async with make_app(FakeServices()).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()


async def test_a_full_collection_waits_until_no_key_is_pressed(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds = gc.get_threshold()
    app = make_app(FakeServices())
    collected: list[bool] = []
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert gc.get_threshold()[2] > thresholds[2]
        monkeypatch.setattr(gc, "get_count", lambda: (0, 0, 60))
        monkeypatch.setattr(gc, "collect", lambda: collected.append(True))
        app.pace.key("j", time.monotonic())
        app.tick()
        assert not collected
        app.pace.key("j", time.monotonic() - 3)
        app.tick()
        assert collected
        monkeypatch.undo()
    assert gc.get_threshold() == thresholds


async def test_the_header_names_endpoint_bucket_and_sandbox(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        head = shown(app).splitlines()[0]
    assert "● standard" in head
    assert "oss://127" in head
    assert "sandbox: simulated" in head


async def test_a_real_profile_is_not_called_simulated(make_app: AppMaker) -> None:
    app = make_app(FakeServices(profile=REAL, readonly=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        head = shown(app).splitlines()[0]
    assert "imagenet-hz" in head
    assert "simulated" not in head
    assert "read-only" in head


async def test_the_keys_of_the_modes_switch_screens(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        for key, mode in (("1", "setup"), ("2", "browse"), ("3", "upload"), ("4", "train")):
            await pilot.press(key)
            await settle(pilot)
            assert app.current_mode == mode


NO_KEY = NoCredentials(profile=REAL)


async def test_without_credentials_the_console_opens_on_setup(make_app: AppMaker) -> None:
    services = FakeServices(standing=Starting(profile=REAL))
    app = make_app(services, "")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert app.current_mode == "browse"
        services.stand(NO_KEY)
        await settle(pilot)
        assert app.current_mode == "setup"
        for mode in "234":
            await pilot.press(mode)
            await settle(pilot)
            assert "No credentials for profile imagenet-hz. Press 1, then k." in shown(app)
            assert "imagenet-hz: no credentials" in shown(app)


async def test_a_screen_selected_meanwhile_stays(make_app: AppMaker) -> None:
    services = FakeServices(standing=Starting(profile=REAL))
    app = make_app(services, "")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("4")
        services.stand(NO_KEY)
        await settle(pilot)
        assert app.current_mode == "train"


async def test_a_click_on_the_mode_bar_switches_too(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.click("ModeBar", offset=(12, 0))
        await settle(pilot)
        assert app.current_mode == "browse"


async def test_help_is_made_from_the_registry(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 60)) as pilot:
        await settle(pilot)
        await pilot.press("question_mark")
        await settle(pilot)
        assert isinstance(app.screen, HelpScreen)
        lines = [line.text for line in app.screen.query_one(KeyTable).lines(200)]
        for action in actions.ACTIONS:
            assert any(action.label in line and action.help in line for line in lines)
        await pilot.press("escape")
        await settle(pilot)
        assert not isinstance(app.screen, HelpScreen)


def test_every_key_has_one_meaning_on_a_screen() -> None:
    assert actions.checked_keymap({}) == {}  # raises where two actions of a screen share a key


def test_every_action_is_reachable_without_control_and_function_keys() -> None:
    """Containers, browser terminals and desktops keep those."""
    for action in actions.ACTIONS:
        keys = action.keys.split(",")
        assert not all(re.fullmatch(r"ctrl\+.*|f\d+", key) for key in keys), action
        assert not re.fullmatch(r"ctrl\+.*|f\d+", keys[0]), "the first one is shown"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train.paus": "p"}, "Did you mean 'train.pause'"),
        ({"train.pause": "pp"}, "'pp' is not a key"),
        ({"train.pause": "s"}, "s is a key of both train.pause and train.stop"),
        ({"view.raw-loss": "q"}, "q is a key of both"),
    ],
)
def test_a_keymap_is_validated(keys: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        actions.checked_keymap(keys)


async def test_keys_of_the_settings_work_and_show_in_footer_and_help(make_app: AppMaker) -> None:
    actions.use_keymap(actions.checked_keymap({"train.pause": "!,f5", "app.quit": "Q"}))
    try:
        run = FakeRun(list(Script().steps(3).events))
        app = make_app(FakeServices(run=run))
        async with app.run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            assert "! Pause" in shown(app)
            await pilot.press("space")
            await settle(pilot)
            assert run.asked == []
            await pilot.press("exclamation_mark", "f5")
            await settle(pilot)
            assert run.asked == [("pause",), ("resume",)]
            await pilot.press("question_mark", "slash", *"pause or")
            await settle(pilot)
            assert "! f5" in shown(app)
    finally:
        actions.use_keymap({})


async def test_the_help_is_searched_and_moved_in_as_in_vim(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("question_mark")
        await settle(pilot)
        assert shown(app).index("Train") < shown(app).index("New run")
        await pilot.press("G")
        await settle(pilot)
        assert "on another screen" in shown(app) or "Compare" in shown(app)
        await pilot.press("slash", *"presigned")
        await settle(pilot)
        assert "Copy URI, key, URL or presigned URL" in " ".join(shown(app).split())
        assert "Configure a run" not in shown(app)
        await pilot.press("escape")
        await settle(pilot)
        assert "New run" in shown(app)
        await pilot.press("escape")
        await settle(pilot)
        assert not isinstance(app.screen, HelpScreen)


async def test_the_palette_has_our_actions_alone(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    assert {ActionProvider} == app.COMMANDS
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press("colon")
        await settle(pilot)
        await pilot.pause(0.3)
        assert "Train: New run (n)" in shown(app)
        assert "🔎" not in shown(app)


def test_every_action_exists(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    for action in actions.ACTIONS:
        if action.scope == "app":
            assert hasattr(app, f"action_{action.name}"), action
        elif action.scope in app.MODES:
            assert hasattr(app.MODES[action.scope](), f"action_{action.name}"), action


async def test_the_footer_shows_the_actions_that_fit_and_counts_the_others(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(62, 20)) as pilot:
        await settle(pilot)
        foot = shown(app).splitlines()[-1]
    assert "n New run" in foot
    assert "more" in foot


async def test_q_quits_directly_when_nothing_runs(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("q")
        await pilot.pause()
    assert app.return_code == 0
    assert app.return_value == ""


@pytest.mark.parametrize(("steps", "answer"), [(1, "detach"), (2, "stop")])
async def test_q_asks_while_a_run_is_alive_and_staying_is_the_default(
    make_app: AppMaker, steps: int, answer: str
) -> None:
    app = make_app(FakeServices(run=FakeRun(list(Script().steps(3).events))))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("q")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmScreen)
        assert "A training run is still running" in " ".join(shown(app).split())
        await pilot.press("enter")
        await settle(pilot)
        assert not isinstance(app.screen, ConfirmScreen)
        await pilot.press("q")
        await pilot.pause()
        await pilot.press(*["right"] * steps, "enter")
        await pilot.pause()
    assert app.return_value == answer


async def test_q_does_not_ask_about_a_run_of_another_process(make_app: AppMaker) -> None:
    run = FakeRun(list(Script().steps(3).events), is_remote=True)
    app = make_app(FakeServices(run=run))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("q")
        await pilot.pause()
    assert app.return_value == ""
    assert run.asked == []


async def test_control_c_shows_how_to_quit(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+c")
        await settle(pilot)
        assert "q quits the console" in shown(app)
        assert app.is_running


@pytest.mark.parametrize("size", [(40, 10), (1, 1), (59, 40), (100, 17)])
async def test_a_small_terminal_gets_a_card(make_app: AppMaker, size: tuple[int, int]) -> None:
    app = make_app(FakeServices(run=FakeRun(list(Script().steps(30).events))))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert app.screen.has_class("-too-small")
        await pilot.resize_terminal(80, 24)
        await settle(pilot)
        assert not app.screen.has_class("-too-small")
        assert "samples/s" in shown(app)


async def test_the_palette_offers_actions_with_their_keys(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+p")
        await pilot.pause()
        await pilot.press(*"help")
        await settle(pilot)
        await pilot.pause(0.3)
        assert "Everywhere: Help (?)" in shown(app)


async def test_the_log_shows_the_newest_lines(make_app: AppMaker) -> None:
    from ossconsole.terminal import logs

    make_folder(logs.log_path().parent)
    logs.log_path().write_text("2025 INFO 1 a: quiet\n2025 ERROR 1 a: loud\n")
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("f12")
        await settle(pilot)
        assert isinstance(app.screen, LogScreen)
        assert "loud" in shown(app)
        await pilot.press("f12")
        await settle(pilot)
        assert not isinstance(app.screen, LogScreen)


async def test_themes_and_symbols_change_by_key(make_app: AppMaker) -> None:
    app = make_app(FakeServices(run=FakeRun(list(Script().steps(30).events))))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        seen = set()
        for _ in range(4):
            await pilot.press("f9")
            await settle(pilot)
            seen.add(app.theme)
        assert seen == {"console-dark", "console-light", "ansi-dark", "ansi-light"}
        await pilot.press("f9", "f10", "f10")
        await settle(pilot)
        assert app.glyphs.name == "ascii"
        assert "o standard" in shown(app)
    again = make_app(FakeServices(), theme=None, glyph_set=None)
    assert (again.theme, again.glyphs.name) == ("console-light", "ascii"), "it is remembered"


async def test_theme_and_symbols_change_even_if_they_cannot_be_remembered(
    make_app: AppMaker, lose_state: Callable[[], None]
) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        lose_state()
        before = app.theme
        await pilot.press("f9")
        await settle(pilot)
        assert app.theme != before
        assert sum("Not remembered" in notice.message for notice in app._notifications) == 1


@pytest.mark.parametrize("content", [b'{"look/": {"theme": [], "glyphs": {}}}', b"{"])
async def test_it_starts_with_a_damaged_memory_file_and_names_its_copy(make_app: AppMaker, content: bytes) -> None:
    (state_dir() / "forms.json").write_bytes(content)
    state_dir().chmod(0o777)
    app = make_app(FakeServices(), theme=None, glyph_set=None)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = "\n".join(notice.message for notice in app._notifications)
    (kept,) = state_dir().glob("forms.json.damaged-*")
    assert kept.name in text
    assert "is writable for all users (mode 0777)" in text


def test_a_terminal_of_16_colours_keeps_its_own(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "")
    monkeypatch.setenv("TERM", "xterm-16color")
    monkeypatch.setattr("rich.console.Console._detect_color_system", lambda _console: ColorSystem.STANDARD)
    assert make_app(FakeServices(), theme=None).theme == "ansi-dark"


async def test_errors_show_with_their_remedy(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await settle(pilot)
        app.show_error(ConsoleError("The bucket [red]x[/red] is gone.", remedy="Look elsewhere."))
        await settle(pilot)
        text = shown(app)
    assert "[red]x[/red]" in text
    assert "Look elsewhere." in text


@pytest.mark.parametrize("mode", ["browse", "upload", "train"])
async def test_a_failed_worker_is_shown_and_logged(
    make_app: AppMaker, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise KeyError("a name")

    app = make_app(FakeServices(), mode)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        for place in (app, app.screen):
            place.run_worker(fail(), exit_on_error=False, name="listing")
            await settle(pilot)
        assert shown(app).count("Unexpected KeyError.") == 2
    failed = [record for record in caplog.records if "the worker listing" in record.message]
    assert len(failed) == 2
    assert all(record.exc_info and isinstance(record.exc_info[1], KeyError) for record in failed)


async def test_a_crash_ends_with_code_1_one_line_and_no_locals(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(FakeServices())

    def broken() -> None:
        access_key_secret = SECRET
        raise RuntimeError(f"a widget failed {len(access_key_secret)}")

    async def run() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            monkeypatch.setattr(app.screen, "tick", broken)
            app.call_later(app.tick)
            await pilot.pause()

    with pytest.raises(RuntimeError, match="a widget failed"):
        await run()
    assert app.return_code == 1
    left = [str(item) for item in app.crash_lines]
    assert len(left) == 1
    assert "a widget failed" in left[0]
    assert SECRET not in left[0]


async def test_an_error_while_leaving_is_not_a_crash(make_app: AppMaker) -> None:
    app: ConsoleApp = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.exit("")
        app._handle_exception(RuntimeError("torn down"))
    assert app.return_code == 0


async def test_a_live_run_found_after_the_start_is_shown(make_app: AppMaker) -> None:
    services = FakeServices(profile=REAL)
    app = make_app(services, "")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert app.current_mode == "browse"
        services.run = FakeRun(list(Script().steps(3).events))
        await settle(pilot)
        assert app.current_mode == "train"


async def test_a_live_upload_is_shown_but_not_that_of_the_sample_dataset(make_app: AppMaker) -> None:
    stages = (PreparationStage("upload", StageState.ACTIVE),)
    services = FakeServices(stages=stages, upload=FakeUpload(upload_progress()))
    app = make_app(services, "")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert app.current_mode == "welcome"
        services.stages = ()
        await settle(pilot)
        assert app.current_mode == "upload"


async def test_a_first_start_opens_the_welcome_with_the_preparation(make_app: AppMaker) -> None:
    stages = (
        PreparationStage("sandbox", StageState.DONE),
        PreparationStage("sample images", StageState.ACTIVE, "425 of 850 drawn", 0.5),
    )
    services = FakeServices(profile=None, stages=stages)
    app = make_app(services, "")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert app.current_mode == "welcome"
        text = shown(app)
        for words in ("Try the demo", "Connect a bucket", "Continue a run", "425 of 850 drawn", "━" * 10):
            assert words in text
        await pilot.press("enter")
        await settle(pilot)
        await settle(pilot)
        assert services.demos == 1
        assert app.current_mode == "train"


@pytest.mark.parametrize(
    ("keys", "expected"), [(["c"], ProfileForm), (["j", "enter"], ProfileForm), (["down", "down", "enter"], RunsScreen)]
)
async def test_the_welcome_leads_to_the_other_ways_to_begin(
    make_app: AppMaker, keys: list[str], expected: type[Screen[object]]
) -> None:
    app = make_app(FakeServices(profile=None), "")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press(*keys)
        await settle(pilot)
        await settle(pilot)
        assert isinstance(app.screen, expected)


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)])
async def test_the_run_is_in_the_mode_bar_of_every_screen_and_0_leads_to_it(
    make_app: AppMaker, size: tuple[int, int]
) -> None:
    app = make_app(FakeServices(run=FakeRun(list(Script().steps(27).events))), "setup")
    async with app.run_test(size=size) as pilot:
        for mode in "1234":
            await pilot.press(mode)
            await settle(pilot)
            head = shown(app).splitlines()[0]
            assert "0 ▶ 27/400" in head
            assert "●" in head
        await pilot.press("2", "0")
        await settle(pilot)
        assert app.current_mode == "train"


async def test_failed_work_comes_first(make_app: AppMaker) -> None:
    upload = FakeUpload(upload_progress(phase=Phase.FAILED, error="no space left"), alive=False)
    app = make_app(FakeServices(run=FakeRun(list(Script().steps(27).events)), upload=upload), "browse")
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        head = shown(app).splitlines()[0]
        assert "▶ 27/400" in head
        assert "✗ upload failed" in head
        await pilot.press("0")
        await settle(pilot)
        assert app.current_mode == "upload"
        await pilot.press("0")
        await settle(pilot)
        assert app.current_mode == "train"


async def test_control_z_suspends_unless_work_of_this_process_would_stop_too(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = FakeServices(run=FakeRun(list(Script().steps(3).events)))
    app = make_app(services)
    suspended: list[None] = []
    monkeypatch.setattr(app, "action_suspend_process", lambda: suspended.append(None))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+z")
        await settle(pilot)
        assert suspended == []
        assert any("A training run would pause" in item.message for item in app._notifications)
        services.run = FakeRun(is_remote=True)
        await pilot.press("ctrl+z")
        await settle(pilot)
        assert suspended == [None]


async def test_notifications_leave_the_newest_events_free(make_app: AppMaker) -> None:
    app = make_app(FakeServices(run=FakeRun(list(Script().steps(3).events))))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        app.notify("A word of it", timeout=60)
        await settle(pilot)
        rows = [at for at, line in enumerate(shown(app).splitlines()) if "A word of it" in line]
        assert rows == [1]


async def test_a_light_terminal_gets_the_light_theme_unless_the_answer_is_late_or_a_theme_was_selected(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(ConsoleApp, "query_background", lambda _: asked.append(None))

    async def answered(limit_s: float) -> str:
        monkeypatch.setattr(app_module, "_BACKGROUND_S", limit_s)
        app = ConsoleApp(FakeServices(), glyph_set=BRAILLE)  # type: ignore[arg-type]
        async with app.run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            app.post_message(TerminalBackground(0.98, 0.98, 0.9))
            await settle(pilot)
            return app.theme

    assert (await answered(3600.0)).startswith("console-light")
    assert (await answered(0.0)).startswith("console-dark")
    memory.remember("look", "", {"theme": "console-dark", "glyphs": "braille"})
    asked.clear()
    assert (await answered(3600.0)).startswith("console-dark")
    assert asked == []


async def test_clicks_that_arrive_together_close_a_dialog_once(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    answers: list[object] = []
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.push_screen(ListScreen("Rows", [Line(("one", "text")), Line(("two", "text"))]), answers.append)
        await pilot.pause()
        region = app.screen.query_one("#choices").region
        for kind in (MouseDown, MouseUp) * 3:
            event = kind(None, region.x, region.y, 0, 0, 1, False, False, False, region.x, region.y)
            app._driver.process_message(event)  # type: ignore[union-attr]
        await pilot.pause()
        assert answers == [("enter", 0)]
        assert isinstance(app.screen, ConsoleScreen)
