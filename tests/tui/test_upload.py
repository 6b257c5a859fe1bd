"""The Upload screen: what is asked for, how far it is, and how it is ended."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input

from ossconsole.tui.services import UploadStatus
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeServices, FakeUpload
from tests.tui.screens import settle, shown


async def test_start_asks_for_what_was_chosen(make_app: AppMaker) -> None:
    services = FakeServices()
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        await pilot.press("ctrl+s")
        await settle(pilot)
    request = services.uploads[0]
    assert (request.source, request.sample_format, request.size) == (Path("/data/pictures"), "image-u8", 224)


async def test_progress_and_problems(make_app: AppMaker) -> None:
    status = UploadStatus(
        state="uploading",
        total=400,
        uploaded=97,
        skipped=3,
        bytes=18_000_000,
        seconds=12.0,
        samples_per_s=8.1,
        bytes_per_s=1.5e6,
        eta_s=37.0,
        problems=("imageNotFound.gif: not a picture",),
    )
    app = make_app(FakeServices(upload=FakeUpload(status)), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
    for words in ("uploading", "25 %", "97 uploaded of 400, 3 skipped, 0 failed", "0:37 left", "imageNotFound.gif"):
        assert words in text, words


async def test_pause_resume_and_cancel(make_app: AppMaker) -> None:
    upload = FakeUpload(UploadStatus(state="uploading", total=10))
    app = make_app(FakeServices(upload=upload), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("p")
        upload.shown = UploadStatus(state="paused", total=10)
        await pilot.press("p", "x")
        await settle(pilot)
    assert upload.asked == ["pause", "resume", "cancel"]


async def test_keys_of_the_modes_work_at_once_and_escape_leaves_the_input(make_app: AppMaker) -> None:
    app = make_app(FakeServices(), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).focus()
        await pilot.press("4", "escape", "4")
        await settle(pilot)
        assert app.current_mode == "train"
