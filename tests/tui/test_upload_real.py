"""An upload started from the screen, with its real processes, while Textual has the terminal's streams."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from textual.widgets import Input, Select

from ossconsole.config.profiles import Profile
from ossconsole.dataset.manifest import read_manifest
from ossconsole.dataset.upload.job import UploadJob, UploadSettings
from ossconsole.dataset.upload.plan import UploadPlan, create_upload, plan_upload
from ossconsole.sandbox.faults import Error, FaultPlan, Rule
from tests.dataset.conftest import jpeg, make_pictures
from tests.dataset.uploads import WAIT_S, read_shard_list
from tests.sandboxed import Sandboxed
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeServices
from tests.tui.screens import settle, shown


class RealUploads(FakeServices):
    """The engine itself behind the screen."""

    def __init__(self, profile: Profile, sandboxed: Sandboxed) -> None:
        super().__init__(profile=profile)
        self._owner = sandboxed.owner

    def plan_upload(
        self, settings: UploadSettings, stop: threading.Event, on_progress: Callable[[int], None]
    ) -> UploadPlan:
        assert self.profile is not None
        return plan_upload(self.profile, self._owner, settings, stop=stop, on_progress=on_progress)

    def start_upload(self, settings: UploadSettings) -> UploadJob:  # type: ignore[override]
        assert self.profile is not None
        job = create_upload(self.profile, self._owner, settings)
        job.pause()  # so that the test, not the machine, decides when it gets under way
        job.start()
        self.upload = self.own_upload = job  # type: ignore[assignment]
        return job


def running(services: RealUploads) -> UploadJob:
    assert isinstance(services.upload, UploadJob)
    return services.upload


async def test_from_form_to_manifest_with_a_retry_of_failures(
    make_app: AppMaker, sandboxed_bucket: Sandboxed, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "pictures", train=20, val=4)
    (source / "train/ants/broken.jpg").write_bytes(b"no picture")
    services = RealUploads(sandboxed_bucket.profile("screen"), sandboxed_bucket)
    denied = Rule(action=Error(code="AccessDenied"), method="PUT", key="*/train/ants/8.jpg")
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = str(source)
        app.screen.query_one("#size", Select).value = "64"
        await settle(pilot)
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "21 train, 4 val" in shown(app)
        with sandboxed_bucket.faults(FaultPlan(rules=[denied])):
            await pilot.press("ctrl+s")
            await settle(pilot)
            assert "paused" in shown(app)
            await pilot.press("minus", "b")
            app.screen.query_one(Input).value = "2.5"
            await pilot.press("enter")
            await settle(pilot)
            assert "0 of 28 in parallel, at most 2.5 MB/s" in shown(app)
            await pilot.press("p", "4")  # it continues while another screen shows
            summary = running(services).result(WAIT_S)
        await pilot.press("3")
        await settle(pilot)
        text = shown(app)
        assert (summary.uploaded, summary.failed) == (23, 2)
        for words in ("23 uploaded", "2 failed", "broken.jpg", "8.jpg", "r retry what is missing"):
            assert words in text, words
        (source / "train/ants/broken.jpg").write_bytes(jpeg(77))
        await pilot.press("r")
        await settle(pilot)
        await pilot.press("p")
        again = running(services).result(WAIT_S)
    assert (again.uploaded, again.unchanged, again.failed) == (2, 23, 0)
    store = sandboxed_bucket.store()
    assert len(read_manifest(store, "screen/data").splits["train"]) == 21
    store.close()


async def test_shards_and_another_prefix_are_set_in_the_form(
    make_app: AppMaker, sandboxed_bucket: Sandboxed, tmp_path: Path
) -> None:
    services = RealUploads(sandboxed_bucket.profile("screen-shards"), sandboxed_bucket)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = str(make_pictures(tmp_path / "pictures", train=3, val=1))
        app.screen.query_one("#stored", Select).value = "100"
        app.screen.query_one("#prefix", Input).value = "/screen-shards/elsewhere/"
        await settle(pilot)
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "in tars of 100" in shown(app)
        assert "oss://127/screen-shards/elsewhere" in shown(app)
        await pilot.press("ctrl+s")
        await settle(pilot)
        await pilot.press("p")
        assert running(services).result(WAIT_S).uploaded == 4
        await settle(pilot)
        assert "--dataset-prefix screen-shards/elsewhere" in shown(app)
    store = sandboxed_bucket.store()
    shards = read_shard_list(store, "screen-shards/elsewhere").shards
    assert [(shard.tar, len(shard.samples)) for shard in shards] == [
        ("train/shard-00000.tar", 3),
        ("val/shard-00000.tar", 1),
    ]
    store.close()
