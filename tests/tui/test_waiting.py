"""The event loop answers while the services are asked: no screen's action waits on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Settings, save_settings
from ossconsole.dataset.upload.plan import UploadPlan
from ossconsole.telemetry.events import RunState
from ossconsole.tui.console import NoCredentials
from tests.tui.conftest import AppMaker
from tests.tui.fakes import REAL, FakeRun, FakeUpload, Script, upload_progress
from tests.tui.fakes_setup import FakeBucketSetup, SetupServices, no_bucket
from tests.tui.screens import settle

_ANSWERS = 3
_STUCK_S = 20.0  # only where a test fails: the loop is held by the call it waits for


@dataclass
class Held:
    """Calls of services wait here until they are let go; `frozen` names those that the event loop waited for."""

    armed: bool = False
    calls: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    called: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def wrap(self, owner: object, name: str) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        def held(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                self.calls.append(name)
                self.called.set()
                if not self.released.wait(_STUCK_S):
                    self.frozen.append(name)
            return method(*args, **kwargs)

        setattr(owner, name, held)

    async def let_go_once_the_loop_answers(self) -> None:
        await asyncio.to_thread(self.called.wait, _STUCK_S)
        for _ in range(_ANSWERS):
            await asyncio.sleep(0.001)
        self.released.set()


SERVICES = (
    *("credentials", "store", "preflight", "start_run", "plan_upload", "start_upload", "plan_warm_up"),
    *("use_profile", "reload"),
)
BUCKET = ("probe", "instance", "accelerator", "save_accelerator", "delete_accelerator", "create_bucket")
STORE = ("list_page", "head")


def services(**changes: Any) -> tuple[SetupServices, Held]:
    found, held = SetupServices(setup=FakeBucketSetup(steps=no_bucket()), plan=UploadPlan(), **changes), Held()
    for name in SERVICES:
        held.wrap(found, name)
    for name in BUCKET:
        held.wrap(found.setup, name)
    for store in found.stores.values():
        for name in STORE:
            held.wrap(store, name)
    return found, held


def running() -> FakeRun:
    return FakeRun([*Script().state(RunState.RUNNING).steps(5).events])


def uploaded() -> FakeUpload:
    return FakeUpload(upload_progress(), alive=False)


UPLOAD = {"upload": uploaded(), "own_upload": uploaded()}


@pytest.mark.parametrize(
    "asked",
    [
        ("setup", ["c"], "probe", {}),
        ("setup", ["r"], "reload", {}),
        ("setup", ["p", "enter"], "use_profile", {}),
        ("setup", ["a"], "accelerator", {}),
        ("setup", ["k", *"id", "tab", *"secret", "enter"], "reload", {}),
        ("setup", ["e", "ctrl+s"], "reload", {}),
        ("browse", ["r"], "list_page", {}),
        ("browse", ["enter"], "list_page", {}),
        ("browse", ["D"], "list_page", {}),
        ("browse", ["g", "enter"], "list_page", {}),
        ("upload", ["ctrl+s"], "plan_upload", {}),
        ("upload", ["r"], "start_upload", UPLOAD),
        ("train", ["n", "enter"], "start_run", {}),
        ("train", ["e"], "preflight", {"run": running}),
        ("train", ["w"], "plan_warm_up", {"warm_up": ConsoleError("No accelerator.")}),
    ],
    ids=lambda asked: f"{asked[0]} {asked[2]}",
)
async def test_the_console_answers_while_a_service_is_busy(
    make_app: AppMaker, asked: tuple[str, list[str], str, dict[str, Any]], tmp_path: Path
) -> None:
    mode, keys, call, given = asked
    save_settings(Settings().with_profile(REAL, activate=True))
    made = {name: value() if callable(value) else value for name, value in given.items()}
    found, held = services(**made)
    found.stores[EndpointKind.STANDARD].keys = {"dataset/a.u8": 1, "b.pt": 2}
    app = make_app(found, mode)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await settle(pilot)
        if mode == "upload" and not given:
            app.screen.query_one("#source").value = str(tmp_path)  # type: ignore[attr-defined]
        held.armed = True
        watch = asyncio.create_task(held.let_go_once_the_loop_answers())
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
        await watch
        await settle(pilot)
    assert call in held.calls
    assert not held.frozen


async def test_a_new_screen_reads_its_data_in_the_background(make_app: AppMaker) -> None:
    """Each screen for the first time, with a service that does not answer yet."""
    for mode in ("setup", "browse", "upload", "train"):
        found, held = services()
        held.armed = True
        app = make_app(found, mode)
        async with app.run_test(size=(80, 24)) as pilot:
            while not app.screen.query("#body") or app.current_mode != mode:
                await pilot.pause(0.01)
            app.tick()
            await pilot.press("question_mark", "escape")
            held.released.set()
            await settle(pilot)
        assert not held.frozen


async def test_without_credentials_the_setup_screen_reads_in_the_background(make_app: AppMaker) -> None:
    found, held = services(standing=NoCredentials(profile=REAL))
    held.armed = True
    app = make_app(found, "setup")
    async with app.run_test(size=(80, 24)) as pilot:
        await held.let_go_once_the_loop_answers()
        await settle(pilot)
    assert held.calls == ["instance"]
    assert not held.frozen
