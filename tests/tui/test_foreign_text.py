"""Whatever others wrote, what the console draws only draws: names, keys, replies, events, and what is pasted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from rich.cells import cell_len
from rich.segment import Segment
from textual import events as keys
from textual.app import App
from textual.color import Color
from textual.widgets import Input

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import UploadPlan
from ossconsole.storage.jobs.job import Failure
from ossconsole.telemetry import events
from ossconsole.tui.console import PreparationStage, StageState
from ossconsole.tui.kit.dialogs import (
    Choice,
    ConfirmScreen,
    ListScreen,
    PromptScreen,
    TextScreen,
    TypedConfirmScreen,
)
from ossconsole.tui.kit.terminal_bytes import TerminalGuard
from ossconsole.tui.kit.text import Line
from ossconsole.tui.setup.profiles import ProfileForm
from tests.foreign import FOREIGN, WORST, acting
from tests.tui.conftest import AppMaker
from tests.tui.fakes import REAL, START, FakeRun, FakeStore, FakeUpload, Script, upload_progress
from tests.tui.fakes_setup import FakeBucketSetup, SetupServices, all_good
from tests.tui.screens import settle, shown

FEW = settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(FOREIGN)
def test_lines(text: str) -> None:
    line = Line((text, "text")).add(text, "dim")
    assert line.text.isprintable()
    assert line.width == cell_len(line.text)


@given(FOREIGN)
def test_the_guard_keeps_the_cells(text: str) -> None:
    guarded = TerminalGuard().apply([Segment(text), Segment("own")], Color(0, 0, 0))
    assert "".join(segment.text for segment in guarded).isprintable()
    assert sum(segment.cell_length for segment in guarded) == cell_len(text) + 3


def check(app: App[str]) -> None:
    text = shown(app)
    assert not acting(text), text


def services(text: str) -> SetupServices:
    """Everything that could come from outside is `text`."""
    profile = msgspec.structs.replace(REAL, name=f"n{text}", bucket=f"b{text}", dataset_prefix=f"d{text}")
    error = ConsoleError(text, remedy=text)
    script = Script().steps(3)
    script.add(
        events.Switch(time=script.time, endpoint=EndpointKind.ACCELERATED, reason=text, step=3),
        events.WarningEvent(time=script.time, message=text, remedy=text, step=3),
        events.ErrorEvent(time=script.time + 10, message=text, remedy=text, step=3),
    )
    progress = upload_progress(workers=(text,), recent_failures=(Failure(text, text, text, text),), error=text)
    return SetupServices(
        profile=profile,
        stages=(PreparationStage(text, StageState.FAILED, text),),
        run=FakeRun(script.events),
        upload=FakeUpload(progress, settings=UploadSettings(source=text)),  # type: ignore[arg-type]
        stores={
            EndpointKind.STANDARD: FakeStore({f"{text}{name}": 3 for name in ("a", "b/c")}, profile),
            EndpointKind.ACCELERATED: FakeStore(profile=profile, error=error),
        },
        plan=UploadPlan(files=1, classes=(text,), samples={text: 1}, notes=(Failure(text, text),)),
        setup=FakeBucketSetup(profile=profile, steps=[msgspec.structs.replace(s, detail=text) for s in all_good()]),
    )


def refuse(text: str) -> None:
    raise ConsoleError(text)


async def visit(make_app: AppMaker, text: str) -> None:
    found = services(text)
    app = make_app(found, now=START + 5)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        for key in "1234":
            await pilot.press(key)
            await settle(pilot)
            check(app)
        await pilot.press("e")
        await settle(pilot)
        check(app)
        await pilot.press("escape")
        app.show_error(ConsoleError(text, remedy=text))
        app.notify(text, markup=False)
        await pilot.pause()
        check(app)
        for screen in (
            PromptScreen("Title", text, text, check=refuse),
            TypedConfirmScreen("Title", text, word=text, button="Delete"),
            ListScreen("Title", [Line((text, "text"))]),
            TextScreen("Title", text, text, Path("nowhere")),
            ConfirmScreen("Title", text, (Choice("", "Stay"),)),
            ProfileForm(found.setup.profile),
        ):
            app.push_screen(screen)
            await settle(pilot)
            for field in screen.query(Input):
                field.post_message(keys.Paste(text))
            await pilot.pause()
            check(app)
            await pilot.press("enter")
            await pilot.pause()
            check(app)
            while app.screen is screen:
                app.pop_screen()
            await pilot.pause()


def test_every_screen_and_dialog(make_app: AppMaker) -> None:
    @FEW
    @example(WORST)
    @given(FOREIGN)
    def tried(text: str) -> None:
        asyncio.run(visit(make_app, text))

    tried()


@pytest.mark.parametrize("glyphs", ["ascii", "braille"])
async def test_control_characters_are_spelled_out(make_app: AppMaker, glyphs: str) -> None:
    from ossconsole.tui.kit.glyphs import SETS

    app = make_app(services(WORST), "train", now=START + 5, glyph_set=SETS[glyphs])
    async with app.run_test(size=(200, 40)) as pilot:
        await settle(pilot)
        assert r"\x1b]52;c;ZXZpbA==\x07\x9b31m\u202e" in shown(app)
