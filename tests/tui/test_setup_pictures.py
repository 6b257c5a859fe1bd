"""Snapshots of the Setup screen: empty, testing, tested, failing, and its dialogs; 80x24 and 120x40."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input

from ossconsole.config.connector import save_connector_config
from ossconsole.config.profiles import Settings, save_settings
from ossconsole.storage.probe.report import ProbeStep
from ossconsole.tui.kit.dialogs import ConfirmScreen, TypedConfirmScreen
from ossconsole.tui.setup.accelerator import AcceleratorForm
from ossconsole.tui.setup.panels import ProbeState
from ossconsole.tui.setup.screen import SetupScreen, _read_accelerator
from tests.tui.conftest import AppMaker
from tests.tui.fakes import REAL
from tests.tui.fakes_setup import SetupServices, accelerated_unreachable, all_good, half_way
from tests.tui.screens import settle
from tests.tui.snapshots import pictured

pytestmark = pictured
SIZES = ((80, 24), (120, 40))
STATES = {"empty": None, "testing": half_way, "tested": all_good, "failing": accelerated_unreachable}
Compare = Callable[..., bool]


def prepared(steps: Sequence[ProbeStep] | None, *, over: bool) -> Callable[[Pilot[Any]], Any]:
    """Brings the screen to the moment after these steps."""

    async def prepare(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        screen = pilot.app.screen
        assert isinstance(screen, SetupScreen)
        if steps is not None:
            times = iter((0.0, 3.2))
            probe = ProbeState(clock=lambda: next(times, 3.2))
            for step in steps:
                probe.on_step(step)
            if over:
                probe.finish()
            screen._probe = probe
            if not probe.problems and over:
                await asyncio.to_thread(_read_accelerator, screen.services.bucket_setup(), screen._known)
        else:  # the test that the screen has run by itself, which took no time
            screen._probe = ProbeState(clock=lambda: 0.0)
            screen._probe.finish()
        await settle(pilot)

    return prepare


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("state", STATES)
def test_screen(snap_compare: Compare, make_app: AppMaker, size: tuple[int, int], state: str) -> None:
    steps = STATES[state]
    before = prepared(steps() if steps else None, over=state != "testing")
    assert snap_compare(make_app(SetupServices(), "setup"), terminal_size=size, run_before=before)


@pytest.mark.parametrize(
    ("dialog", "keys"),
    [("profiles", "p"), ("profile", "e"), ("key", "k"), ("connector", "o"), ("accelerator", "a")],
)
def test_dialog(snap_compare: Compare, make_app: AppMaker, dialog: str, keys: str) -> None:
    save_settings(Settings().with_profile(REAL, activate=True))
    save_connector_config({"logPath": "/var/log/oss-connector/connector.log"})

    async def open_dialog(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await prepared(None, over=True)(pilot)  # a clock would show how long the test below took
        below = pilot.app.screen
        await pilot.press(keys)
        for _ in range(100):
            await pilot.pause()
            if pilot.app.screen is not below:
                break
        for field in pilot.app.screen.query(Input):
            field.cursor_blink = False
        await pilot.pause()

    assert snap_compare(make_app(SetupServices(), "setup"), terminal_size=SIZES[0], run_before=open_dialog)


def test_question_before_the_accelerator_changes(snap_compare: Compare, make_app: AppMaker) -> None:
    async def until(pilot: Pilot[Any], kind: type[Screen[Any]]) -> None:
        while not isinstance(pilot.app.screen, kind):
            await pilot.pause()

    async def open_question(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await prepared(None, over=True)(pilot)
        await pilot.press("a")
        await until(pilot, ConfirmScreen)
        await pilot.press("right", "enter")
        await until(pilot, AcceleratorForm)
        pilot.app.screen.query_one("#field-quota_gb", Input).value = "2048"
        pilot.app.screen.query_one("#field-paths", Input).value = "dataset/imagenet/, checkpoints/"
        await pilot.press("ctrl+s")
        await until(pilot, TypedConfirmScreen)
        pilot.app.screen.query_one(Input).cursor_blink = False
        await pilot.pause()

    assert snap_compare(make_app(SetupServices(), "setup"), terminal_size=SIZES[0], run_before=open_question)
