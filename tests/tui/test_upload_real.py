"""An upload started from the screen, with its real processes, while Textual has the terminal's streams."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.widgets import Input, Select

from ossconsole.config.profile import Profile
from ossconsole.dataset.manifest import read_manifest
from ossconsole.dataset.plan import UploadPlan, plan_upload
from ossconsole.dataset.settings import UploadSettings
from ossconsole.dataset.upload import UploadJob
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import WAIT_S
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
        job = UploadJob(self.profile, self._owner, settings)
        job.start()
        self.upload = self.own_upload = job  # type: ignore[assignment]
        return job


@pytest.mark.parametrize("broken", [False, True])
async def test_from_form_to_manifest(
    make_app: AppMaker, sandboxed_bucket: Sandboxed, tmp_path: Path, broken: bool
) -> None:
    source = make_pictures(tmp_path / "pictures", train=20, val=4)
    if broken:
        (source / "train/ants/broken.jpg").write_bytes(b"no picture")
    profile = sandboxed_bucket.profile(f"screen-{broken}")
    services = RealUploads(profile, sandboxed_bucket)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = str(source)
        app.screen.query_one("#size", Select).value = "64"
        await settle(pilot)
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "20 train, 4 val" in shown(app) or "21 train, 4 val" in shown(app)
        await pilot.press("ctrl+s")
        job = services.upload
        assert isinstance(job, UploadJob)
        summary = job.wait(WAIT_S)
        await settle(pilot)
        text = shown(app)
    assert (summary.uploaded, summary.failed) == (24, int(broken))
    assert "24 uploaded" in text
    assert ("broken.jpg" in text) is broken
    store = sandboxed_bucket.store()
    assert len(read_manifest(store, profile.dataset_prefix).splits["train"]) == 20
    store.close()
