"""The warm-up's dialogs on Setup and Train: the plan before it starts, progress, limit, cancel, and its end."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.accelerator import Accelerator
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.jobs.warm import WarmPlan, WarmSource, WarmUp
from ossconsole.telemetry.events import RunState
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.kit.dialogs import ConfirmScreen
from ossconsole.tui.kit.jobs import WarmUpScreen, job_row
from ossconsole.tui.setup.panels import ProbeState
from ossconsole.tui.setup.screen import SetupScreen
from ossconsole.tui.train.screen import TrainScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeRun, FakeServices, FakeStore, Script
from tests.tui.fakes_setup import SetupServices
from tests.tui.screens import settle, shown
from tests.tui.snapshots import pictured

GB = 10**9
PLAN = WarmPlan(
    source=WarmSource("oss://imagenet-train/dataset/imagenet, by its manifest", list),
    accelerator=Accelerator(zone="cn-hangzhou-j", quota_gb=500),
    objects=50_000,
    bytes=31 * GB,
    todo=50_000,
    todo_bytes=31 * GB,
)


class PlannedStore(FakeStore):
    """Only what a job asks of its store before it reads."""

    def pausing(self, _pause: object) -> PlannedStore:
        return self


class HeldWarmUp(WarmUp):
    """Has read 12,000 objects, and ends with `release` or when it is cancelled."""

    def __init__(self, plan: WarmPlan = PLAN) -> None:
        super().__init__(PlannedStore(), plan)  # type: ignore[arg-type]
        self.release = threading.Event()
        self.began = threading.Event()

    def work(self) -> None:
        self.tracker.add_total(self.plan.todo, self.plan.todo_bytes)
        self.tracker.totals_known()
        for number in range(12_000):
            self.tracker.complete(number, 620_000)
        self.began.set()
        while not self.release.wait(0.005):
            self.check_cancelled()


async def until(pilot: Pilot[str], kind: type) -> None:
    for _ in range(200):
        await pilot.pause()
        if isinstance(pilot.app.screen, kind):
            return
    raise AssertionError(f"{kind} is not shown but {pilot.app.screen}")


async def until_text(pilot: Pilot[str], app: ConsoleApp, text: str) -> None:
    for _ in range(200):
        await pilot.pause(0.01)
        if text in " ".join(shown(app).replace("│", " ").split()):
            return
    raise AssertionError(f"{text!r} is not in\n{shown(app)}")


def services(mode: str, job: WarmUp | ConsoleError) -> FakeServices:
    return SetupServices(warm_up=job) if mode == "setup" else FakeServices(warm_up=job)


@pytest.mark.parametrize("mode", ["setup", "train"])
async def test_the_plan_comes_first_and_the_job_outlives_its_dialog(make_app: AppMaker, mode: str) -> None:
    job = HeldWarmUp()
    app = make_app(services(mode, job), mode)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("w")
        await until(pilot, ConfirmScreen)
        await until_text(pilot, app, "It fits: the accelerator in cn-hangzhou-j has 500 GB.")
        assert not app.jobs
        await pilot.press("right", "enter")
        await until(pilot, WarmUpScreen)
        await until_text(pilot, app, "12,000 of 50,000 objects")
        await pilot.press("escape")
        assert app.jobs == [job]
        assert job.alive
        await pilot.press("w")
        await until(pilot, WarmUpScreen)
        await pilot.press("escape")
        job.release.set()
        job.wait(10)
        for _ in range(200):
            await pilot.pause(0.01)
            if app._notifications and any("12,000 objects read" in notice.message for notice in app._notifications):
                break
        assert any("Warm-up done: 12,000 objects read." in notice.message for notice in app._notifications)


async def test_a_running_warm_up_takes_a_limit_and_can_be_cancelled(make_app: AppMaker) -> None:
    job = HeldWarmUp()
    app = make_app(services("setup", job), "setup")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("w")
        await until(pilot, ConfirmScreen)
        await pilot.press("right", "enter")
        await until(pilot, WarmUpScreen)
        await pilot.press("b")
        for _ in range(100):
            await pilot.pause()
            if app.screen.query("#answer"):
                break
        app.screen.query_one("#answer", Input).value = "120"
        await pilot.press("enter")
        await until(pilot, WarmUpScreen)
        assert job.cap.limit == 120e6
        await pilot.press("x")
        assert job.wait(10)
        await until_text(pilot, app, "cancelled")
    assert job.state is JobState.CANCELLED


async def test_what_was_read_before_is_read_again_on_request(make_app: AppMaker) -> None:
    job = HeldWarmUp(msgspec.structs.replace(PLAN, todo=0, warmed=50_000, warmed_at=1_750_000_000.0))
    found = services("setup", job)
    app = make_app(found, "setup")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("w")
        await until(pilot, ConfirmScreen)
        await until_text(pilot, app, "Read again")
        await pilot.press("right", "enter")
        await until(pilot, WarmUpScreen)
        job.cancel()
        assert job.wait(10)
    assert found.warm_ups == [False, True]


async def test_a_run_that_is_active_is_mentioned(make_app: AppMaker) -> None:
    found = services("train", HeldWarmUp())
    found.run = FakeRun([*Script().state(RunState.RUNNING).steps(5).events])
    app = make_app(found, "train")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("w")
        await until_text(pilot, app, "A run is active: it gets less of the bandwidth meanwhile")


async def test_a_reason_against_it_is_shown(make_app: AppMaker) -> None:
    app = make_app(services("train", ConsoleError("The bucket b has no accelerator.", remedy="Create one.")), "train")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("w")
        await settle(pilot)
        assert any("has no accelerator. Create one." in notice.message for notice in app._notifications)
        assert not app.jobs


def test_a_listed_job_shows_its_progress_and_failures() -> None:
    job = HeldWarmUp()
    job.tracker.add_total(4, 1000)
    assert job_row(job).text.split()[:2] == ["running", "0/4+"]
    job.tracker.totals_known()
    job.tracker.advance("a", 250)
    assert job_row(job).text.split()[:2] == ["running", "25"]
    job.fail("b", ConsoleError("gone"))
    assert "1 failed" in job_row(job).text
    assert job_row(job).text.endswith(job.title)


@pictured
@pytest.mark.parametrize("dialog", ["question", "progress"])
def test_picture(snap_compare: Any, make_app: AppMaker, dialog: str) -> None:
    plan = msgspec.structs.replace(
        PLAN, bytes=771 * GB, todo_bytes=500 * GB, todo=32_000, beyond=18_000, beyond_bytes=271 * GB
    )
    job = HeldWarmUp(plan if dialog == "question" else PLAN)

    async def open_dialog(pilot: Pilot[str]) -> None:
        await settle(pilot)
        below = pilot.app.screen
        assert isinstance(below, SetupScreen)
        below._probe = ProbeState(clock=lambda: 0.0)  # a clock would show how long the test took
        below._probe.finish()
        await settle(pilot)
        await pilot.press("w")
        await until(pilot, ConfirmScreen)
        if dialog == "progress":
            await pilot.press("right", "enter")
            await until(pilot, WarmUpScreen)
            job.cancel()  # the figures of a job that has ended do not change
            job.wait(10)
            job.tracker.snapshot = lambda: msgspec.structs.replace(  # type: ignore[method-assign]
                type(job.tracker).snapshot(job.tracker), bytes_per_s=287e6, seconds=26.0
            )
            pilot.app.screen._redraw()  # type: ignore[attr-defined]
        pilot.app.clear_notifications()
        for screen in pilot.app.screen_stack:
            await screen.query("Toast").remove()
        await pilot.pause()

    assert snap_compare(make_app(services("setup", job), "setup"), terminal_size=(80, 24), run_before=open_dialog)


async def test_the_key_pressed_again_during_the_planning_asks_once(make_app: AppMaker) -> None:
    job, held = HeldWarmUp(), threading.Event()
    known = services("train", job)
    plan = known.plan_warm_up

    def slowly(*, again: bool = False) -> WarmUp:
        assert held.wait(20)
        return plan(again=again)

    known.plan_warm_up = slowly  # type: ignore[method-assign]
    app = make_app(known, "train")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("w")
        app.screen.action_warm_up()  # type: ignore[attr-defined]
        held.set()
        await until(pilot, ConfirmScreen)
        await pilot.press("right", "enter")
        await until(pilot, WarmUpScreen)
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, TrainScreen)
        assert app.jobs == [job]
        job.release.set()
        job.wait(10)
