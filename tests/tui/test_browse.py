"""The Browse screen through Pilot, on a real bucket: every action with its dialogs, and what it leaves behind."""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
import shutil
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import oss2
import pytest
import torch
from textual.pilot import Pilot
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat, encode
from ossconsole.dataset.manifest import Manifest, Sample, read_manifest, write_manifest
from ossconsole.sandbox.faults import Error, FaultPlan, Rule
from ossconsole.storage.checkpoints.inspect import LocalFiles, inspect_checkpoint
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.actions import Copy, Usage, Versioning
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.multipart import PART_SIZE, list_uploads
from ossconsole.storage.objects import ObjectSummary
from ossconsole.storage.retry import NO_RETRY
from ossconsole.telemetry import events
from ossconsole.telemetry.runs import RunRecord, record_path
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.browse import commands, table
from ossconsole.tui.browse.checkpoints import WeightsDownload
from ossconsole.tui.browse.local import LocalFileScreen, read_folder
from ossconsole.tui.browse.screen import BrowseScreen
from ossconsole.tui.browse.transfers import SyncScreen
from ossconsole.tui.console import NoCredentials, PreparationStage, Ready, StageState
from ossconsole.tui.kit import memory
from ossconsole.tui.kit.dialogs import (
    ConfirmScreen,
    ImageScreen,
    ListScreen,
    PromptScreen,
    TextScreen,
    TypedConfirmScreen,
)
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.train.screen import NewRunScreen, TrainScreen
from tests.sandboxed import Sandboxed
from tests.torch_files import torch_bytes
from tests.tui.browse_store import MemoryStore
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeRun, FakeServices, FakeStore, Script
from tests.tui.screens import past_opening, shown, thread_calls_ended

WAIT_S = 20.0


class Browser:
    """The screen under test, and words for what a user does with it."""

    def __init__(self, pilot: Pilot[Any]) -> None:
        self.pilot = pilot

    @property
    def screen(self) -> BrowseScreen:
        screen = self.pilot.app.screen_stack[0]
        assert isinstance(screen, BrowseScreen)
        return screen

    @property
    def app(self) -> ConsoleApp:
        assert isinstance(self.pilot.app, ConsoleApp)
        return self.pilot.app

    @property
    def text(self) -> str:
        return shown(self.pilot.app)

    @property
    def notices(self) -> str:
        """What the toasts say, which wrap it."""
        return "\n".join(notice.message for notice in self.pilot.app._notifications)

    async def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.text
            await self.pilot.pause(0.02)
            self.app.tick()
        await self.pilot.pause()  # a dialog that was pushed is not yet put together

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def answer(self, dialog: type, text: str) -> None:
        """Waits for the dialog and types the answer in place of what stands there."""
        await self.until(lambda: isinstance(self.pilot.app.screen, dialog))
        entry = self.pilot.app.screen.query_one("#answer")
        entry.value = text  # type: ignore[attr-defined]
        await self.press("enter")

    async def goes_to(self, name: str) -> None:
        """Puts the cursor on a name."""
        rows = self.screen.table.view.rows
        await self.until(lambda: self.screen.table.view.rows.find(name) is not None)
        rows = self.screen.table.view.rows
        row = rows.find(name)
        assert row is not None
        position = self.screen.table.view.position(row)
        assert position is not None
        self.screen.table.cursor = position
        await self.pilot.pause()

    async def job_is_over(self, state: JobState = JobState.DONE) -> None:
        await self.until(lambda: self.screen.console.jobs and not self.screen.console.jobs[-1].alive)
        assert self.screen.console.jobs[-1].state is state, self.screen.console.jobs[-1].failures


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads what is under the cursor at once."""
    monkeypatch.setattr("ossconsole.tui.browse.screen._READ_DELAY_S", 0.01)


@pytest.fixture
def bucket(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """A store whose profile's prefixes are this test's own."""
    store = ObjectStore(sandboxed_bucket.profile(f"browse/{request.node.name}"), sandboxed_bucket.owner, retry=NO_RETRY)
    yield store
    store.close()


Opener = Callable[..., Awaitable[Browser]]


def folder_of(store: ObjectStore) -> str:
    return store.profile.checkpoint_prefix.removesuffix("checkpoints")


def services(store: Any, **settings: Any) -> FakeServices:
    return FakeServices(profile=store.profile, stores=dict.fromkeys(EndpointKind, store), **settings)


async def opened(pilot: Pilot[Any], store: Any, folder: str | None = None) -> Browser:
    await past_opening(pilot)
    browser = Browser(pilot)
    await browser.until(lambda: browser.screen.store is not None)
    browser.screen.open_folder(folder_of(store) if folder is None else folder)
    await browser.until(lambda: browser.screen.model.listing.is_complete)
    return browser


def put(store: ObjectStore, **objects: bytes) -> None:
    for name, data in objects.items():
        store.put(folder_of(store) + name.replace("__", "/"), data)


def tags(name: str, value: str) -> oss2.models.TaggingRule:
    rule = oss2.models.TaggingRule()
    rule.add(name, value)
    return rule


def cursor_line(pilot: Pilot[Any]) -> str:
    """The row under the cursor of the list that shows."""
    table = pilot.app.screen.query_one("#choices")
    assert isinstance(table, VirtualTable)
    return "" if table.cursor_row is None else table.cursor_row.text


def contents(folder: Path) -> set[str]:
    """Of all files below."""
    return {path.read_bytes().decode() for path in folder.rglob("*") if path.is_file()}


def keys(store: ObjectStore) -> list[str]:
    folder = folder_of(store)
    return [found.key[len(folder) :] for found in store.list_all(folder)]


async def test_a_tree_is_downloaded_and_the_second_time_asks_about_existing_files(
    bucket: ObjectStore, make_app: AppMaker, tmp_path: Path
) -> None:
    put(bucket, tree__a=b"1", tree__b=b"22")
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.goes_to("tree/")
        await browser.press("d")
        await browser.answer(PromptScreen, str(tmp_path))
        await browser.job_is_over()
        assert (tmp_path / "tree" / "b").read_bytes() == b"22"
        (tmp_path / "tree" / "a").write_bytes(b"mine")
        await browser.press("d", "enter")
        await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await browser.press("right", "right", "right", "enter")
        await browser.until(lambda: len(browser.screen.console.jobs) == 2)
        await browser.job_is_over()
        assert (tmp_path / "tree" / "a").read_bytes() == b"1"


async def test_deleting_needs_the_typed_words_and_deletes_only_the_selection(
    bucket: ObjectStore, make_app: AppMaker
) -> None:
    put(bucket, keep=b"0", x__1=b"1", x__2=b"2", y=b"3")
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.goes_to("x/")
        await browser.press("space")
        await browser.goes_to("y")
        await browser.press("space", "x")
        await browser.until(lambda: isinstance(pilot.app.screen, TypedConfirmScreen))
        assert "3 objects, 3 B" in browser.text
        assert "done" not in browser.notices  # the dialog shows what was counted
        assert "cannot be undone" in browser.text
        await browser.answer(TypedConfirmScreen, "yes")
        assert isinstance(pilot.app.screen, TypedConfirmScreen)
        await browser.answer(TypedConfirmScreen, "delete 3")
        await browser.job_is_over()
        assert keys(bucket) == ["keep"]
        await browser.until(lambda: "0 folders, 1 object" in browser.text)


async def test_rename_and_copy_with_a_name_that_will_not_do(bucket: ObjectStore, make_app: AppMaker) -> None:
    put(bucket, old=b"data", x__1=b"1")
    folder = folder_of(bucket)
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.goes_to("old")
        await browser.press("m")
        await browser.answer(PromptScreen, f"{folder}old")
        await browser.until(lambda: "itself" in browser.text)
        await browser.answer(PromptScreen, f"{folder}new")
        await browser.job_is_over()
        await browser.goes_to("x/")
        await browser.press("c")
        await browser.answer(PromptScreen, f"{folder}z/")
        await browser.until(lambda: len(browser.screen.console.jobs) == 2)
        await browser.job_is_over()
    assert keys(bucket) == ["new", "x/1", "z/1"]


async def test_addresses_reach_the_clipboard_and_show(
    bucket: ObjectStore, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(bucket, **{"a b": b"1"})
    monkeypatch.chdir(tmp_path)
    app = make_app(services(bucket), "browse")
    uri = f"oss://127/{folder_of(bucket)}a b"
    async with app.run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        written: list[str] = []
        monkeypatch.setattr(app._driver, "write", written.append)
        await browser.goes_to("a b")
        await browser.press("y")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        await browser.press("enter")
        await browser.until(lambda: isinstance(pilot.app.screen, TextScreen))
        assert f"\x1b]52;c;{base64.b64encode(uri.encode()).decode()}\a" in written
        assert uri in browser.text.replace("\n", "")
        await browser.press("w")
        await browser.until((tmp_path / "oss-address.txt").exists)
        await browser.press("escape", "y")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        await browser.press("down", "down", "down", "enter")
        await browser.until(lambda: isinstance(pilot.app.screen, TextScreen))
        assert "x-oss-signature=" in app.clipboard
    assert (tmp_path / "oss-address.txt").read_text() == f"{uri}\n"


async def test_counting_a_folder(bucket: ObjectStore, make_app: AppMaker) -> None:
    put(bucket, f__1=b"1", f__g__2=b"22")
    async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.goes_to("f/")
        await browser.press("z")
        await browser.job_is_over()
        await browser.until(lambda: "2 objects, 3 B" in browser.text)
        assert "Standard" in browser.text


def checkpoint(epoch: int, scale: float) -> bytes:
    return torch_bytes(
        {
            "format": "ossconsole-checkpoint",
            "model": {"w": torch.ones(3, 2) * scale},
            "epoch": epoch,
            "step": epoch * 10,
            "metrics": {"top1": 0.5},
            "run": "r1",
        }
    )


async def test_checkpoints_are_shown_resumed_copied_to_best_and_compared(
    bucket: ObjectStore, make_app: AppMaker
) -> None:
    prefix = bucket.profile.checkpoint_prefix
    bucket.put(f"{prefix}/e1.pt", checkpoint(1, 1.0))
    bucket.put(f"{prefix}/e2.pt", checkpoint(2, 1.5))
    found = services(bucket)
    async with make_app(found, "browse").run_test(size=(120, 40)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("C")
        await browser.goes_to("e1.pt")
        await browser.until(lambda: "ossconsole checkpoint" in browser.text)
        assert "50.0 %" in browser.text
        await browser.press("B")
        await browser.job_is_over()
        assert bucket.get(f"{prefix}/best.pt") == checkpoint(1, 1.0)
        await browser.goes_to("e2.pt")
        await browser.until(lambda: "75.0 %" in browser.text or "epoch       2" in browser.text)
        await browser.press("B")
        await browser.until(lambda: "best.pt exists and would be replaced" in browser.text)
        await browser.press("enter")
        assert bucket.get(f"{prefix}/best.pt") == checkpoint(1, 1.0)
        await browser.goes_to("e1.pt")
        await browser.press("space")
        await browser.goes_to("e2.pt")
        await browser.press("space", "equals_sign")
        await browser.until(lambda: "Compare checkpoints" in browser.text)
        await browser.until(lambda: "shapes identical" in browser.text)
        assert any("!epoch" in line for line in browser.text.splitlines())  # what differs is marked without colour
        assert "top-1" in browser.text
        await browser.press("n")
        await browser.until(lambda: "50.00 %" in browser.text)
        await browser.press("escape")
        await browser.goes_to("e2.pt")
        await browser.until(lambda: browser.screen.check_action("train_from", ()) is True)
        await browser.press("T")
        await browser.until(lambda: isinstance(pilot.app.screen, NewRunScreen))
        await browser.press("ctrl+s")
        await browser.until(lambda: found.started)
        assert found.started[0].resume == f"{prefix}/e2.pt"


async def test_the_weights_of_a_checkpoint_are_downloaded_alone(
    bucket: ObjectStore, make_app: AppMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{bucket.profile.checkpoint_prefix}/e1.pt"
    bucket.put(key, checkpoint(1, 1.0))
    out = tmp_path / "mine.safetensors"
    async with make_app(services(bucket), "browse").run_test(size=(120, 40)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("C")
        await browser.goes_to("e1.pt")
        await browser.until(lambda: "ossconsole checkpoint" in browser.text)
        await browser.press("d")
        await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
        assert "Weights only" in browser.text
        await browser.press("right", "right", "enter")
        await browser.until(lambda: isinstance(pilot.app.screen, PromptScreen))
        assert "e1-weights.safetensors" in browser.text
        await browser.answer(PromptScreen, str(out))
        await browser.job_is_over()
        found = inspect_checkpoint(LocalFiles(), str(out), out.stat().st_size)
        assert [row.name for row in found.model] == [
            row.name for row in inspect_checkpoint(bucket, key, bucket.head(key).size).model
        ]
        await browser.press("d")
        await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await browser.press("right", "right", "enter")
        await browser.answer(PromptScreen, str(out))
        await browser.until(lambda: "exists already" in browser.text)
        monkeypatch.setitem(sys.modules, "onnx", None)
        await browser.answer(PromptScreen, str(tmp_path / "w.onnx"))
        await browser.until(lambda: "pip install 'ossconsole[onnx]'" in browser.text)
        await browser.press("escape", "d")
        await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await browser.press("right", "enter")
        await browser.answer(PromptScreen, str(tmp_path))
        await browser.until((tmp_path / "e1.pt").exists)
        await browser.until(lambda: not any(job.alive for job in browser.screen.console.jobs))


async def test_samples_show_as_images_with_labels_and_missing_ones_are_found(
    bucket: ObjectStore, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = bucket.profile.dataset_prefix
    data = encode(SampleFormat.IMAGE_U8, np.full((3, 8, 8), 200, np.uint8))
    for name in ("1", "2"):
        bucket.put(f"{prefix}/train/ants/{name}.u8", data)
    samples = tuple(Sample(f"train/ants/{name}.u8", 0, 8, 8) for name in ("1", "2", "3"))
    write_manifest(
        bucket,
        prefix,
        Manifest(format=SampleFormat.IMAGE_U8, size=8, classes=("ants",), splits={"train": samples}),
    )
    async with make_app(services(bucket), "browse").run_test(size=(120, 40)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("D")
        await browser.until(lambda: browser.screen.index is not None)
        browser.screen.open_folder(f"{prefix}/train/ants/")
        await browser.goes_to("1.u8")
        await browser.until(lambda: "by the manifest" in browser.text)
        assert "min 200, max 200, mean 200" in browser.text
        assert "ants" in browser.text
        assert "▀" in browser.text
        for graphics in ("blocks", "sixel", "kitty"):
            monkeypatch.setenv("OSSCONSOLE_PICTURES", graphics)
            await browser.press("i")
            await browser.until(lambda: isinstance(pilot.app.screen, ImageScreen))
            await browser.press("escape")
            await browser.until(lambda: pilot.app.screen is browser.screen)
        await browser.press("backspace")
        await browser.goes_to("ants/")
        await browser.press("p")
        await browser.until(lambda: "the first 2 of ants" in browser.text)
        browser.screen.open_folder(f"{prefix}/")
        await browser.goes_to("manifest.json")
        await browser.until(lambda: browser.screen.check_action("check_manifest", ()) is True)
        await browser.press("f")
        await browser.until(lambda: "missing: " in browser.text)
        assert "2 of 3" in browser.text


async def test_a_sample_read_before_the_manifest_is_read_again(
    bucket: ObjectStore, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = bucket.profile.dataset_prefix
    bucket.put(f"{prefix}/train/ants/1.u8", encode(SampleFormat.IMAGE_U8, np.full((3, 8, 8), 200, np.uint8)))
    samples = (Sample("train/ants/1.u8", 0, 8, 8),)
    manifest = Manifest(format=SampleFormat.IMAGE_U8, size=8, classes=("ants",), splits={"train": samples})
    write_manifest(bucket, prefix, manifest)
    arrives = threading.Event()

    def read_late(store: ObjectStore, prefix: str) -> Manifest:
        assert arrives.wait(WAIT_S)
        return read_manifest(store, prefix)

    monkeypatch.setattr("ossconsole.tui.browse.detail.read_manifest", read_late)
    async with make_app(services(bucket), "browse").run_test(size=(120, 40)) as pilot:
        browser = await opened(pilot, bucket, f"{prefix}/train/ants/")
        await browser.until(lambda: browser.screen.detail and browser.screen.detail.content)
        assert "by the manifest" not in browser.text
        arrives.set()
        await browser.until(lambda: "by the manifest" in browser.text)


async def test_unfinished_uploads_are_aborted(bucket: ObjectStore, make_app: AppMaker) -> None:
    folder = folder_of(bucket)
    upload = bucket.sdk.init_multipart_upload(f"{folder}big").upload_id
    bucket.sdk.upload_part(f"{folder}big", upload, 1, b"x" * 1000)
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("U")
        await browser.until(lambda: "Unfinished uploads" in browser.text)
        assert "1 part    1.0 KB" in browser.text
        await browser.press("X")
        await browser.answer(TypedConfirmScreen, "abort 1")
        await browser.until(lambda: not list(list_uploads(bucket, folder)))


async def test_readonly_writes_nothing(bucket: ObjectStore, make_app: AppMaker) -> None:
    put(bucket, a=b"1")
    bucket.sdk.init_multipart_upload(f"{folder_of(bucket)}unfinished")
    async with make_app(services(bucket, readonly=True), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("x", "c", "m", "R", "B", "T")
        await pilot.pause()
        assert pilot.app.screen is browser.screen
        assert browser.screen.console.jobs == []
        for action in ("delete", "copy", "rename", "restore", "best", "train_from"):
            assert browser.screen.check_action(action, ()) is None
        assert browser.screen.check_action("download", ()) is True
        await browser.press("U")
        await browser.until(lambda: "read-only" in browser.text)
        await browser.press("X")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
    assert len(list(list_uploads(bucket, folder_of(bucket)))) == 1


async def test_an_archived_object_is_restored_and_read(
    sandboxed_bucket: Sandboxed, bucket: ObjectStore, make_app: AppMaker
) -> None:
    for name, storage_class in (("cold.txt", "Archive"), ("warm.txt", "IA")):
        headers = {"x-oss-storage-class": storage_class}
        bucket.sdk.put_object(folder_of(bucket) + name, name.encode() * 2, headers=headers)
    async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.goes_to("cold.txt")
        await browser.until(lambda: "The object is archived" in browser.text)
        await browser.press("R")
        await browser.job_is_over()
        await browser.until(lambda: "Restore requested for 1 object" in browser.notices)
        assert "Archive: readable within a minute" in browser.notices
        sandboxed_bucket.control.finish_restores()
        await browser.press("r")
        await browser.until(lambda: "cold.txtcold.txt" in browser.text)
        assert "ongoing-request" in browser.text
        await browser.goes_to("warm.txt")
        await browser.press("R")
        await browser.until(lambda: "Nothing here is archived" in browser.notices)
        await browser.press("a", "R")
        await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await browser.until(lambda: "OSS bills" in browser.text and "ColdArchive: Expedited within 1" in browser.text)
        await browser.press("right", "enter")
        await browser.until(lambda: "done" in browser.notices)
        await browser.until(lambda: "2/2  32 B" not in browser.text)  # a job that is done leaves


async def test_another_bucket_keeps_versions_and_says_so(bucket: ObjectStore, make_app: AppMaker) -> None:
    other = bucket.for_bucket("versions-shown")
    other.create_bucket()
    other.sdk.put_bucket_versioning(oss2.models.BucketVersioningConfig("Enabled"))
    other.put("weights.txt", b"1", content_type="text/plain", metadata={"run": "r7"})
    other.put("weights.txt", b"22")
    other.sdk.put_object_tagging("weights.txt", oss2.models.Tagging(tags("stage", "best")))
    async with make_app(services(bucket), "browse").run_test(size=(120, 60)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("o")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        while "versions-shown" not in cursor_line(pilot):
            await browser.press("down")
        await browser.press("enter")
        await browser.goes_to("weights.txt")
        await browser.press("enter")
        await browser.until(lambda: "Access, tags and versions" in browser.text)
        drawn = " ".join(browser.text.split())
        for words in ("ACL default", "stage best", " 2 B, latest", " 1 B", "x-oss-hash-crc64ecma", "x-oss-version-id"):
            assert words in drawn
        await browser.press("escape", "x")
        await browser.until(lambda: isinstance(pilot.app.screen, TypedConfirmScreen))
        assert "kept as versions" in browser.text
        await browser.answer(TypedConfirmScreen, "delete 1")
        await browser.job_is_over()
    assert not other.exists("weights.txt")
    assert len(other.sdk.list_object_versions(prefix="weights").versions) == 2
    other.close()


async def test_buckets_and_a_key_that_may_not_list_them(sandboxed_bucket: Sandboxed, make_app: AppMaker) -> None:
    store = sandboxed_bucket.store()
    async with make_app(services(store), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("o")
        await browser.until(lambda: "Buckets of the account" in browser.text)
        assert "cn-sandbox" in browser.text
        await browser.press("escape")
    denied = sandboxed_bucket.store(key="no-list-buckets")
    named = store.for_bucket("named-bucket")
    named.create_bucket()
    named.put("in the named bucket", b"1")
    async with make_app(services(denied), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, denied, "")
        await browser.press("o")
        await browser.until(lambda: "AccessDenied" in browser.text)
        await browser.answer(PromptScreen, "missing-bucket")
        await browser.until(lambda: "NoSuchBucket" in browser.notices)
        assert browser.screen.store is not None
        assert browser.screen.store.profile.bucket == "127"  # the one that shows stays
        await browser.press("o")
        await browser.answer(PromptScreen, "named-bucket")
        await browser.until(lambda: "in the named bucket" in browser.text)
        assert "oss://named-bucket" in browser.text


async def test_a_denied_listing_says_why_and_continues_on_refresh(
    sandboxed_bucket: Sandboxed, bucket: ObjectStore, make_app: AppMaker
) -> None:
    put(bucket, a=b"1")
    wrong = ObjectStore(bucket.profile, sandboxed_bucket.wrong_secret, retry=NO_RETRY)
    async with make_app(services(wrong), "browse").run_test(size=(120, 30)) as pilot:
        await past_opening(pilot)
        browser = Browser(pilot)
        await browser.until(lambda: "SignatureDoesNotMatch" in browser.text)
        assert "press r to continue" in browser.text
        browser.screen.model.source = bucket
        browser.screen.model.listing._source = bucket
        await browser.press("r")
        await browser.until(lambda: browser.screen.model.listing.is_complete)
        assert "SignatureDoesNotMatch" not in browser.text.splitlines()[-2]


async def test_an_object_that_vanished_says_so(bucket: ObjectStore, make_app: AppMaker) -> None:
    put(bucket, gone=b"1")
    async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, bucket)
        bucket.delete(f"{folder_of(bucket)}gone")
        await browser.press("enter")
        await browser.until(lambda: "NoSuchKey" in browser.text)
        assert browser.screen.detail is not None
        assert "Refresh the listing" in browser.screen.detail.problem


async def test_failures_are_listed_and_a_download_is_retried(
    bucket: ObjectStore, make_app: AppMaker, tmp_path: Path
) -> None:
    put(bucket, a=b"1", b=b"2")
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        bucket.delete(f"{folder_of(bucket)}b")
        await browser.press("a", "d")
        await browser.answer(PromptScreen, str(tmp_path))
        await browser.job_is_over(JobState.FAILED)
        assert (tmp_path / "a").read_bytes() == b"1"
        await browser.press("J")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        await browser.press("enter")
        await browser.until(lambda: isinstance(pilot.app.screen, TextScreen))
        assert "NoSuchKey" in browser.text
        await browser.press("escape")
        put(bucket, b=b"2")
        await browser.press("J")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        await browser.press("a")
        await browser.until((tmp_path / "b").exists)
        await browser.job_is_over()


KEYS = {
    "checkpoints/resnet18.pt": 44_812_345,
    "dataset/imagenet/ILSVRC/Data/train/a/1.pt": 12_288,
    "dataset/imagenet/ILSVRC/Data/val/a/2.pt": 12_288,
    "notes [draft]\x1b[31m.txt": 12,
    "a//b": 1,
    "../../up": 2,
    "x\u202eexe.txt": 3,
}


async def test_names_show_safely_and_every_folder_opens(make_app: AppMaker) -> None:
    async with make_app(services(FakeStore(KEYS)), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, FakeStore(KEYS), "")
        assert "notes [draft]\\x1b[31m.txt" in browser.text
        assert "x\\u202eexe.txt" in browser.text
        assert "4 folders, 2 objects" in browser.text
        for folder, inner in (("../", "../"), ("a/", "(empty name)/")):
            await browser.goes_to(folder)
            await browser.press("enter")
            await browser.until(lambda: browser.screen.model.listing.is_complete)
            assert inner in browser.text
            await browser.press("backspace")
            await browser.until(lambda: browser.screen.model.listing.is_complete)


HOSTILE = ("esc\x1b[31m", "right\u202eto left", "[red]markup[ ]", "a//b", "../../up", "Case", "case", "n" * 900)


async def test_hostile_names_are_selected_downloaded_and_deleted(
    bucket: ObjectStore, make_app: AppMaker, tmp_path: Path
) -> None:
    for name in HOSTILE:
        bucket.put(folder_of(bucket) + name, name.encode())
    inside = tmp_path / "inside"
    async with make_app(services(bucket), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, bucket)
        for shown_name in ("esc\\x1b[31m", "right\\u202eto left", "[red]markup[ ]", "../"):
            assert shown_name in browser.text
        await browser.press("a", "d")
        await browser.answer(PromptScreen, str(inside))
        await browser.job_is_over()
        assert contents(tmp_path) == contents(inside) == set(HOSTILE)
        await browser.press("x")
        await browser.answer(TypedConfirmScreen, f"delete {len(HOSTILE)}")
        await browser.until(lambda: len(browser.screen.console.jobs) > 1 and not browser.screen.console.jobs[-1].alive)
    assert keys(bucket) == []


async def test_enter_goes_in_and_backspace_out_to_the_same_row(make_app: AppMaker) -> None:
    async with make_app(services(FakeStore(KEYS)), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, FakeStore(KEYS), "")
        await browser.goes_to("dataset/")
        await browser.press("enter")
        await browser.until(lambda: "oss://127 › dataset" in browser.text)
        await browser.press("backspace")
        await browser.until(lambda: browser.screen.model.listing.is_complete)
        assert browser.screen.model.rows.name(browser.screen.table.cursor_row or 0) == "dataset/"
        await browser.press("left_square_bracket")
        await browser.until(lambda: "oss://127 › dataset" in browser.text)
        await browser.press("right_square_bracket")
        await browser.until(lambda: browser.screen.model.prefix == "")


async def test_a_click_selects_a_row_and_a_second_one_opens_it(make_app: AppMaker) -> None:
    async with make_app(services(FakeStore(KEYS)), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, FakeStore(KEYS), "")
        table = browser.screen.table
        position = 1
        row = table.view.rows.name(int(table.view.order[position]))
        assert table.cursor != position
        await pilot.click("#objects", offset=(4, position + 1))  # below the header
        assert table.cursor == position
        assert browser.screen.model.prefix == ""
        await pilot.click("#objects", offset=(4, position + 1))
        await browser.until(lambda: browser.screen.model.prefix == row)


async def test_a_click_on_the_header_sorts_and_leaves_the_cursor(make_app: AppMaker) -> None:
    keys = {f"{number:03}.txt": 1 for number in range(60)}
    async with make_app(services(FakeStore(keys)), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, FakeStore(keys), "")
        await browser.press("end")
        table = browser.screen.table
        selected = table.cursor_row
        await pilot.click("#objects", offset=(4, 0))
        await browser.until(lambda: "name ↓" in browser.text)
        assert table.cursor_row == selected


async def test_bookmarks_are_kept(make_app: AppMaker) -> None:
    for _ in range(2):
        async with make_app(services(FakeStore(KEYS)), "browse").run_test(size=(80, 24)) as pilot:
            browser = await opened(pilot, FakeStore(KEYS), "checkpoints/")
            if memory.recall("bookmarks", "sandbox/127"):
                await from_bookmark(browser)
            else:
                await browser.press("b")


async def test_a_bookmark_that_cannot_be_kept_is_a_single_warning(
    make_app: AppMaker, lose_state: Callable[[], None]
) -> None:
    async with make_app(services(FakeStore(KEYS)), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, FakeStore(KEYS), "checkpoints/")
        lose_state()
        await browser.press("b")
        await browser.until(lambda: "Not remembered" in browser.notices)
        assert "Bookmark added" not in browser.notices
        assert browser.notices.count("Not remembered") == 1
        await browser.press("home")
        assert pilot.app.is_running


async def test_a_download_needs_no_state(
    bucket: ObjectStore, make_app: AppMaker, tmp_path: Path, lose_state: Callable[[], None]
) -> None:
    put(bucket, one=b"1")
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.goes_to("one")
        lose_state()
        await browser.press("d")
        await browser.answer(PromptScreen, str(tmp_path / "there"))
        await browser.job_is_over()
        assert contents(tmp_path / "there") == {"1"}
        assert browser.notices.count("Not remembered") == 1


async def from_bookmark(browser: Browser) -> None:
    browser.screen.open_folder("")
    await browser.press("apostrophe")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, ListScreen))
    await browser.press("enter")
    await browser.until(lambda: browser.screen.model.prefix == "checkpoints/")


async def test_filter_selection_and_escape_by_layers(make_app: AppMaker) -> None:
    store = FakeStore({f"{number:03d}.{'pt' if number % 2 else 'json'}": number for number in range(100)})
    async with make_app(services(store), "browse").run_test(size=(100, 24)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("slash", *"*.pt", "enter")
        await browser.until(lambda: "50 of 100" in browser.text)
        await browser.press("a")
        assert len(browser.screen.model.selection) == 50
        await browser.press("r")
        await browser.until(lambda: browser.screen.model.listing.is_complete and not browser.screen.model.refreshing)
        assert "50 of 100" in browser.text
        assert "50 selected" in browser.text
        await browser.press("escape")
        assert "50 of 100" not in browser.text
        assert "50 selected" in browser.text
        await browser.press("escape")
        assert "selected" not in browser.text
        await browser.press("home", "v", "down", "down", "v")
        assert "3 selected" in browser.text
        await browser.press("asterisk")
        await browser.answer(PromptScreen, "re:^09")
        await browser.until(lambda: "13 selected" in browser.text)
        await browser.press("slash", "r", "e", "colon", "left_parenthesis")
        assert browser.screen.filter_input.has_class("-bad")


async def test_a_refresh_keeps_cursor_and_scroll(make_app: AppMaker) -> None:
    store = FakeStore({f"{number:04d}": number for number in range(500)})
    async with make_app(services(store), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.goes_to("0300")
        await browser.press("up", "up", "up")
        top, cursor = browser.screen.table.scroll_offset.y, browser.screen.table.cursor
        store.keys["0000-new"] = 1
        await browser.press("r")
        await browser.until(lambda: browser.screen.model.rows.count == 501)
        assert browser.screen.model.rows.name(browser.screen.table.cursor_row or 0) == "0297"
        assert browser.screen.table.cursor == cursor + 1
        assert browser.screen.table.scroll_offset.y == top + 1


async def test_a_failed_listing_continues_where_it_stopped(make_app: AppMaker) -> None:
    store = FakeStore({f"{number:05d}": number for number in range(3000)})
    pages = 0

    def die_after_two(_: str) -> None:
        nonlocal pages
        pages += 1
        if pages == 3:
            raise StorageError("No answer from the endpoint", retriable=True)

    store.before_page = die_after_two
    async with make_app(services(store), "browse").run_test(size=(120, 24)) as pilot:
        await past_opening(pilot)
        browser = Browser(pilot)
        await browser.until(lambda: "No answer" in browser.text)
        assert "2,000 loaded; press r to continue" in browser.text
        await browser.press("r")
        await browser.until(lambda: "3,000 objects" in browser.text)
        assert pages == 4


async def test_rows_show_while_more_come_and_escape_stops(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_SLOW_S", 0.0)
    store = FakeStore({f"{number:05d}": number for number in range(5000)})
    gate, asked = threading.Semaphore(2), threading.Semaphore(0)

    def wait(_: str) -> None:
        asked.release()
        assert gate.acquire(timeout=WAIT_S)

    store.before_page = wait
    async with make_app(services(store), "browse").run_test(size=(120, 24)) as pilot:
        await past_opening(pilot)
        browser = Browser(pilot)
        await browser.until(lambda: "2,000+ objects" in browser.text)
        await browser.until(lambda: "no answer for 0 s (esc to stop)" in browser.text)
        await browser.press("s")
        await browser.until(lambda: "sorted among 2,000 loaded" in browser.text)
        await browser.press("escape")
        await browser.until(lambda: "stopped (r to continue)" in browser.text)
        gate.release(10)  # the page on its way comes, and is dropped
        assert "2,000+ objects" in browser.text
        await browser.press("r")
        await browser.until(lambda: "5,000 objects" in browser.text)


async def test_a_count_is_live_and_can_be_cancelled(make_app: AppMaker) -> None:
    store = FakeStore(KEYS)
    more = threading.Event()

    def endless(prefix: str) -> Iterator[ObjectSummary]:
        for number in itertools.count():
            if number == 1500:
                assert more.wait(WAIT_S)
            yield ObjectSummary(f"{prefix}{number}", 1000, 1)

    store.list_all = endless  # type: ignore[attr-defined]
    async with make_app(services(store), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.goes_to("dataset/")
        await browser.press("z")
        await browser.until(lambda: "1,500 objects, 1.5 MB" in browser.text)
        await browser.press("J")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        await browser.press("x")
        more.set()
        await browser.job_is_over(JobState.CANCELLED)
        await browser.until(lambda: "cancelled" in browser.text)


async def test_go_to_lists_names_that_begin_so(make_app: AppMaker) -> None:
    async with make_app(services(FakeStore(KEYS)), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, FakeStore(KEYS), "")
        await browser.press("g")
        await browser.answer(PromptScreen, "oss://127/dataset/imagenet/ILSVRC/Data/tr")
        await browser.until(lambda: "names beginning with tr" in browser.text)
        assert "train/" in browser.text


async def test_the_profile_opens_when_it_is_there(make_app: AppMaker) -> None:
    found = services(FakeStore(KEYS))
    profile, found.profile = found.profile, None
    async with make_app(found, "browse").run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        browser = Browser(pilot)
        await browser.until(lambda: "The sandbox is starting" in browser.text)
        await browser.press("x", "d", "y", "z")
        found.profile = msgspec.structs.replace(profile, name="ready") if profile else None
        await browser.until(lambda: "checkpoints/" in browser.text)


async def test_the_sample_dataset_shows_once_it_has_arrived(make_app: AppMaker) -> None:
    store = FakeStore()
    found = services(store, stages=[PreparationStage("upload", StageState.ACTIVE)])
    async with make_app(found, "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, store, "")
        assert "Preparing the sample dataset: upload" in browser.text
        store.keys["dataset/manifest.json"] = 1
        found.stages = [PreparationStage("upload", StageState.DONE)]
        await browser.until(lambda: "dataset/" in browser.text)
        assert "1 folder" in browser.text


async def test_a_bucket_that_cannot_be_used_any_more_is_left(make_app: AppMaker) -> None:
    store = FakeStore({"a.pt": 1})
    found = services(store)
    app = make_app(found, "browse")
    async with app.run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.until(lambda: "a.pt" in browser.text)
        found.stand(NoCredentials(profile=store.profile))
        await browser.until(lambda: "No credentials for profile sandbox." in browser.text)
        assert "a.pt" not in browser.text
        found.stand(Ready(profile=store.profile))
        await browser.until(lambda: "a.pt" in browser.text)


async def test_u_uploads_a_file_to_the_folder_that_shows(
    bucket: ObjectStore, make_app: AppMaker, tmp_path: Path
) -> None:
    bucket.put(folder_of(bucket) + "here.txt", b"1")
    (tmp_path / "notes.txt").write_text("of this machine")
    async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("u", *str(tmp_path / "missing"), "enter")
        await browser.until(lambda: "Enter a path" in browser.text)
        await browser.press("ctrl+u", *str(tmp_path / "notes.txt"), "enter")
        await browser.until(lambda: "2 objects" in browser.text)
        (tmp_path / "notes.txt").write_text("changed since")
        await browser.press("u")
        await browser.answer(PromptScreen, str(tmp_path / "notes.txt"))
        await browser.until(lambda: "1 file in the bucket would be replaced" in browser.text)
        await browser.press("right", "enter")
        await browser.until(lambda: "what exists was left alone" in browser.notices)
        assert bucket.get(folder_of(bucket) + "notes.txt") == b"of this machine"
        await browser.press("u")
        await browser.answer(PromptScreen, str(tmp_path / "notes.txt"))
        await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await browser.press("right", "right", "enter")
        await browser.until(lambda: bucket.get(folder_of(bucket) + "notes.txt") == b"changed since")
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "leaf").write_text("leaf")
        (tmp_path / "link").symlink_to(tmp_path / "tree")
        await browser.press("u")
        await browser.answer(PromptScreen, str(tmp_path / "link"))
        await browser.until(lambda: "link/leaf" in keys(bucket))


async def test_checkpoints_have_columns_for_run_epoch_step_and_accuracy(make_app: AppMaker) -> None:
    script = Script().steps(80).end_epoch()
    saved = next(event for event in script.events if isinstance(event, events.Checkpoint))
    run = "20250615-150640-a1b2"
    with RunRecord(record_path(run)) as record:
        record.append(saved)
    keys = {f"checkpoints/resnet18-{run}-e01-s000080.pt": 44_000_000, "checkpoints/resnet18-best.pt": 44_000_000}
    async with make_app(services(FakeStore(keys)), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, FakeStore(keys), "")
        await browser.press("C")
        await browser.until(lambda: "resnet18-best.pt" in browser.text)
        await browser.until(lambda: f"{run}  epoch 1     step 80" in browser.text)
        await pilot.resize_terminal(80, 30)
        await browser.until(lambda: f"{run}  epoch 1     step 80  42.0 %" in browser.text)


def put_dcp(store: ObjectStore, scratch: Path, *prefixes: str) -> None:
    """A checkpoint that torch.distributed.checkpoint wrote, in each of the folders."""
    state = {
        "model": torch.nn.Linear(4, 3).state_dict(),
        "epoch": 2,
        "step": 40,
        "run": "r1",
        "metrics": {"top1": 0.75},
    }
    save_sharded(state, checkpoint_id=scratch)
    for path in scratch.iterdir():
        for prefix in prefixes:
            store.put(f"{prefix}/{path.name}", path.read_bytes())


async def test_a_dcp_folder_is_inspected_where_it_stands_and_shows_its_columns(
    bucket: ObjectStore, make_app: AppMaker, tmp_path: Path
) -> None:
    prefix = bucket.profile.checkpoint_prefix
    put_dcp(bucket, tmp_path, f"{prefix}/step-40", f"{prefix}/resnet18-20250615-150640-a1b2-e03-s000080")
    bucket.put(f"{prefix}/empty/notes.txt", b"1")
    bucket.put(f"{prefix}/other/.metadata", b"{}")
    async with make_app(services(bucket), "browse").run_test(size=(120, 40)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.press("C")
        await browser.goes_to("step-40/")
        await browser.until(lambda: "DCP checkpoint" in browser.text)
        for words in (r"weight +3x4 float32", r"run +r1", r"epoch +2\b", r"step +40\b", r"top-1 +75\.0 %"):
            assert re.search(words, browser.text), words
        await browser.until(lambda: re.search(r"step-40/ +epoch 2 +step 40 +75\.0 %", browser.text))
        assert "20250615-150640-a1b2  epoch 3     step 80" in browser.text  # of its name alone
        assert not any(browser.screen.check_action(action, ()) for action in ("best", "train_from"))
        await browser.press("space")
        await browser.goes_to("resnet18-20250615-150640-a1b2-e03-s000080/")
        await browser.press("space", "equals_sign")
        await browser.until(lambda: "Compare checkpoints" in browser.text and "shapes identical" in browser.text)
        assert "download both" not in browser.text
        await browser.press("escape", "escape")
        for plain in ("empty/", "other/"):
            await browser.goes_to(plain)
            await browser.until(lambda: "count its objects and bytes" in browser.text)
        assert not browser.notices


async def test_a_checkpoint_that_the_run_writes_appears_by_itself(make_app: AppMaker) -> None:
    script = Script().steps(80)
    run, store = FakeRun(list(script.events)), MemoryStore({"checkpoints/old.txt": b"1", "other/x": b"1"})
    async with make_app(services(store, run=run), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, store, "checkpoints/")
        listing = browser.screen.model.listing
        written = next(event for event in script.end_epoch().events if isinstance(event, events.Checkpoint))
        store.data[written.key] = b"1"
        run.waiting = [written]
        await browser.until(lambda: browser.screen.model.rows.count == 2)
        assert browser.screen.model.listing is not listing
        browser.screen.open_folder("other/")
        await browser.until(lambda: browser.screen.model.listing.is_complete)
        listing = browser.screen.model.listing
        run.waiting = [msgspec.structs.replace(written, key="checkpoints/next.pt")]
        await browser.until(lambda: browser.screen.console.last_checkpoint == "checkpoints/next.pt")
        browser.screen.tick()
        assert not browser.screen.model.refreshing
        assert browser.screen.model.listing is listing


class TestTwoPanes:
    """The local folder beside the bucket."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "local"
        (folder / "deep").mkdir(parents=True)
        monkeypatch.chdir(folder)
        return folder

    async def test_tab_changes_the_side_whose_keys_work(
        self, bucket: ObjectStore, make_app: AppMaker, folder: Path
    ) -> None:
        (folder / "here.txt").write_text("1")
        bucket.put(folder_of(bucket) + "away.txt", b"2")
        async with make_app(services(bucket), "browse").run_test(size=(80, 24)) as pilot:
            browser = await opened(pilot, bucket)
            assert "Other side" not in browser.text
            await browser.press("t")
            await browser.until(lambda: "here.txt" in browser.text)
            assert "away.txt" not in browser.text  # no room for both
            assert "Upload" in browser.text
            assert "Download" not in browser.text
            await browser.press("space")
            assert browser.screen.local.selected == {"deep"}
            assert len(browser.screen.model.selection) == 0
            await browser.press("home", "enter")
            await browser.until(lambda: "0 folders, 0 files" in browser.text)
            await browser.press("backspace")
            await browser.until(lambda: "here.txt" in browser.text)
            await browser.press("x")  # deletes in the bucket: not from this side
            assert browser.pilot.app.screen is browser.screen
            await browser.press("tab")
            await browser.until(lambda: "away.txt" in browser.text)
            assert "here.txt" not in browser.text
            await pilot.resize_terminal(120, 30)
            await browser.until(lambda: "here.txt" in browser.text)
            assert "away.txt" in browser.text
            await browser.press("t", "t")
            await browser.until(lambda: "here.txt" in browser.text)
            await browser.press("t")
            await browser.until(lambda: "here.txt" not in browser.text)

    async def test_l_opens_a_folder_and_h_its_parent_on_both_sides(
        self, bucket: ObjectStore, make_app: AppMaker, folder: Path
    ) -> None:
        (folder / "deep" / "inner.txt").write_text("1")
        put(bucket, classes__ants__1=b"1")
        async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
            browser = await opened(pilot, bucket)
            base = browser.screen.model.prefix
            await browser.until(lambda: browser.screen.table.cursor_row is not None)
            await browser.press("l")
            await browser.until(lambda: browser.screen.model.prefix == f"{base}classes/")
            await browser.press("h")
            await browser.until(lambda: browser.screen.model.prefix == base)
            await browser.press("t")
            await browser.until(lambda: browser.screen.local.table.rows)
            await browser.press("l")
            await browser.until(lambda: "inner.txt" in browser.text)
            assert browser.screen.model.prefix == base
            await browser.press("h")
            await browser.until(lambda: browser.screen.local.folder == folder and browser.screen.local.table.rows)
            row = browser.screen.local.table.cursor_row
            assert row is not None
            assert row.name == "deep"

    async def test_the_selection_is_copied_to_the_other_side_and_replaces_only_after_a_question(
        self, bucket: ObjectStore, make_app: AppMaker, folder: Path
    ) -> None:
        (folder / "deep" / "a.txt").write_text("deep")
        (folder / "both.txt").write_text("here")
        put(bucket, **{"both.txt": b"away!", "new.txt": b"new"})
        async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
            browser = await opened(pilot, bucket)
            await browser.press("t")
            await browser.until(lambda: browser.screen.local.table.rows)
            await browser.press("a", "u")
            await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
            assert "1 file in the bucket would be replaced" in browser.text
            await browser.press("right", "enter")  # skip them
            await browser.until(lambda: len(browser.screen.console.jobs) == 2)
            await browser.job_is_over()
            assert bucket.get(folder_of(bucket) + "both.txt") == b"away!"
            assert bucket.get(folder_of(bucket) + "deep/a.txt") == b"deep"
            await browser.until(lambda: not browser.screen.model.refreshing)
            await browser.press("tab")
            await browser.goes_to("new.txt")
            await browser.press("d")
            await browser.until((folder / "new.txt").exists)
            await browser.goes_to("both.txt")
            await browser.press("d")
            await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
            await browser.press("right", "right", "enter")
            await browser.until(lambda: (folder / "both.txt").read_text() == "away!")

    async def test_a_sync_shows_its_plan_and_deletes_only_what_was_typed(
        self, bucket: ObjectStore, make_app: AppMaker, folder: Path
    ) -> None:
        for name, text in {"same.txt": "1", "changed.txt": "here", "new.txt": "2"}.items():
            (folder / name).write_text(text)
        put(bucket, **{"same.txt": b"1", "changed.txt": b"away!", "old.txt": b"3"})
        async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
            browser = await opened(pilot, bucket)

            async def planned() -> None:
                await browser.press("n")
                await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
                await browser.press("right", "right", "enter")
                await browser.until(lambda: isinstance(pilot.app.screen, SyncScreen))

            await browser.press("t")
            await planned()
            assert "left alone (d deletes them)" in browser.text
            await browser.press("escape")
            assert bucket.get(folder_of(bucket) + "changed.txt") == b"away!"
            await planned()
            await browser.press("d", "enter")
            await browser.answer(TypedConfirmScreen, "delete 1")
            await browser.until(lambda: not bucket.exists(folder_of(bucket) + "old.txt"))
            await browser.job_is_over()
        names = {found.key.removeprefix(folder_of(bucket)) for found in bucket.list_all(folder_of(bucket))}
        assert names == {"same.txt", "changed.txt", "new.txt"}
        assert bucket.get(folder_of(bucket) + "changed.txt") == b"here"

    async def test_a_folder_that_cannot_be_read_says_so(
        self, bucket: ObjectStore, make_app: AppMaker, folder: Path
    ) -> None:
        async with make_app(services(bucket), "browse").run_test(size=(120, 30)) as pilot:
            browser = await opened(pilot, bucket)
            shutil.rmtree(folder)
            await browser.press("t")
            await browser.until(lambda: "No such file or directory" in " ".join(browser.text.replace("│", " ").split()))

    async def test_read_only_offers_no_upload(self, bucket: ObjectStore, make_app: AppMaker, folder: Path) -> None:
        (folder / "here.txt").write_text("1")
        async with make_app(services(bucket, readonly=True), "browse").run_test(size=(120, 30)) as pilot:
            browser = await opened(pilot, bucket)
            await browser.press("t")
            await browser.until(lambda: "here.txt" in browser.text)
            await browser.press("u")
            assert not browser.screen.console.jobs
            await browser.press("n")
            await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
            assert "Local to bucket" not in browser.text

    async def test_enter_shows_what_a_local_file_contains(
        self, bucket: ObjectStore, make_app: AppMaker, folder: Path
    ) -> None:
        torch.save({"format": "ossconsole-checkpoint", "epoch": 3, "model": {"fc.weight": torch.ones(2, 4)}}, "a.pt")
        (folder / "b.txt").write_text("first line\nsecond line")
        (folder / "c.txt").write_text("1")
        async with make_app(services(bucket), "browse").run_test(size=(80, 24)) as pilot:
            browser = await opened(pilot, bucket)
            await browser.press("t")
            await browser.until(lambda: "c.txt" in browser.text)
            await browser.press("down", "enter")
            await browser.until(lambda: "fc.weight" in browser.text)
            assert isinstance(pilot.app.screen, LocalFileScreen)
            await browser.press("escape", "down", "enter")
            await browser.until(lambda: "second line" in browser.text)
            await browser.press("escape")
            (folder / "c.txt").unlink()
            await browser.press("down", "enter")
            await browser.until(lambda: "No such file or directory" in " ".join(browser.text.replace("│", " ").split()))


async def test_without_a_working_directory_and_with_a_path_that_cannot_be_one(
    make_app: AppMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    async with make_app(services(FakeStore(KEYS)), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, FakeStore(KEYS), "checkpoints/")
        await browser.press("u")
        await browser.answer(PromptScreen, "~nobody-of-this-name/data")
        await browser.until(lambda: "Enter a path" in browser.text)
        await browser.answer(PromptScreen, f"/{'x' * 300}")
        await browser.until(lambda: "File name too long." in browser.text)


async def test_the_size_of_a_selection_is_not_shown_as_that_of_the_folder_under_the_cursor(make_app: AppMaker) -> None:
    store = MemoryStore({"a/1": b"1", "b/1": b"22", "c/1": b"333"})
    async with make_app(services(store), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("home", "space", "space", "z")
        await browser.job_is_over()
        await browser.until(lambda: "2 objects" in browser.notices)
        assert browser.screen.detail is not None
        assert (browser.screen.detail.key, browser.screen.detail.usage) == ("c/", None)


async def test_a_range_begins_at_its_row_also_after_another_order(make_app: AppMaker) -> None:
    keys = {"a": 1, "b": 4, "c": 3, "d": 2}
    async with make_app(services(FakeStore(keys)), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, FakeStore(keys), "")
        await browser.goes_to("b")
        await browser.press("v", "s")  # by size, the largest first: b c d a
        await browser.until(lambda: browser.screen.model.settled)
        await browser.goes_to("c")
        await browser.press("v")
        rows = browser.screen.model.rows
        assert {rows.name(int(row)) for row in browser.screen.model.selection.rows} == {"b", "c"}
        await browser.press("v", "escape")
        assert browser.screen.range_start is None
        assert len(browser.screen.model.selection) == 2
        await browser.press("escape", "asterisk")
        await browser.answer(PromptScreen, "nowhere")
        await browser.until(lambda: "No loaded name matches" in browser.notices)


async def test_what_was_known_of_one_bucket_is_not_shown_of_another(make_app: AppMaker) -> None:
    store = MemoryStore({"data/1": b"1", "data/2": b"22"})
    async with make_app(services(store), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("home", "z")
        await browser.job_is_over()
        await browser.until(lambda: "2 objects, 3 B" in browser.text)
        browser.screen.store = FakeStore({"data/other": 5})  # type: ignore[assignment]
        browser.screen.show_bucket()
        await browser.until(lambda: browser.screen.detail is not None and browser.screen.model.listing.is_complete)
        browser.app.tick()
        assert browser.screen.detail is not None
        assert (browser.screen.detail.key, browser.screen.detail.usage) == ("data/", None)


async def test_a_bucket_selected_before_the_profile_changed_is_not_opened(make_app: AppMaker) -> None:
    held, answered = threading.Event(), threading.Event()

    def wait(_: str) -> None:
        answered.set()
        assert held.wait(WAIT_S)

    store = MemoryStore({"mine": b"1"})
    other = FakeStore({"theirs": 1}, before_page=wait)
    store.for_bucket = lambda _: other  # type: ignore[attr-defined]
    known = services(store)
    async with make_app(known, "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("o")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        await browser.press("down", "enter")
        await browser.until(answered.is_set)
        new: Any = FakeStore({"new": 1})
        known.stores = dict.fromkeys(EndpointKind, new)
        known.profile = msgspec.structs.replace(store.profile, name="new")
        await browser.until(lambda: browser.screen.store is new)
        held.set()
        await browser.until(lambda: not any(worker.group == "dialog" for worker in pilot.app.workers))
        assert browser.screen.store is new


async def test_the_jobs_of_a_sync_continue_while_another_screen_shows(make_app: AppMaker) -> None:
    known = services(FakeStore(KEYS))
    async with make_app(known, "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, FakeStore(KEYS), "")
        screen, ended = browser.screen, threading.Event()
        job = Usage(FakeStore(KEYS), [])  # type: ignore[arg-type]
        screen.run_job(job, lambda _: ended.set())
        await browser.press("4")
        await asyncio.to_thread(job.wait)
        await browser.until(ended.is_set)
        assert browser.app.current_mode == "train"


async def test_a_question_waits_for_its_screen(make_app: AppMaker) -> None:
    held = threading.Event()
    store = MemoryStore({"data/1": b"1"})
    list_buckets = store.list_buckets

    def slowly() -> Any:
        assert held.wait(WAIT_S)
        return list_buckets()

    store.list_buckets = slowly  # type: ignore[method-assign]
    async with make_app(services(store), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("o", "4")
        await browser.until(lambda: browser.app.current_mode == "train")
        held.set()
        await thread_calls_ended(pilot)
        await pilot.pause(0.1)
        assert isinstance(pilot.app.screen, TrainScreen)
        await browser.press("2")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))


async def test_a_list_of_jobs_does_not_end_the_question_that_waits_for_a_count(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "versioning", lambda _: Versioning.NEVER)
    held = threading.Event()
    store = MemoryStore({"data/1": b"1"})
    list_all = store.list_all

    def slowly(prefix: str) -> Any:
        assert held.wait(WAIT_S)
        return list_all(prefix)

    store.list_all = slowly  # type: ignore[method-assign]
    async with make_app(services(store), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("x", "J")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        held.set()
        await browser.until(lambda: not browser.screen.console.jobs[0].alive)
        await browser.press("escape")
        await browser.until(lambda: isinstance(pilot.app.screen, TypedConfirmScreen))


async def test_a_terminal_that_was_too_small_has_its_focus_and_its_details_again(make_app: AppMaker) -> None:
    async with make_app(services(MemoryStore({"a": b"1", "b": b"2"})), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, None, "")
        await pilot.resize_terminal(40, 12)
        await pilot.pause()
        await browser.press("down")
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        await browser.press("end")
        await browser.until(lambda: browser.screen.detail is not None and browser.screen.detail.info is not None)
        assert browser.screen.detail is not None
        assert browser.screen.detail.key == "b"


def test_a_file_that_vanishes_while_its_folder_is_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()

    def vanishes(path: Path) -> bool:
        if path.name == "b":
            path.unlink()
        return False

    monkeypatch.setattr("ossconsole.tui.browse.local.is_partial", vanishes)
    assert [entry.name for entry in read_folder(tmp_path)] == ["a", "c"]


async def test_a_selection_made_while_a_job_is_active_stays(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    monkeypatch.setattr(Copy, "work", lambda _: held.wait(WAIT_S))
    async with make_app(services(FakeStore({"a": 1, "b": 2})), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, None, "")
        await browser.press("home", "space", "c")
        await browser.answer(PromptScreen, "copy-of-a")
        await browser.until(lambda: browser.screen.console.jobs)
        assert not browser.screen.model.selection
        await browser.goes_to("b")
        await browser.press("space")
        held.set()
        await browser.job_is_over()
        await browser.until(lambda: not browser.screen.model.refreshing)
        rows = browser.screen.model.rows
        assert [rows.name(int(row)) for row in browser.screen.model.selection.rows] == ["b"]


async def test_a_folder_keeps_the_names_in_it_however_its_new_name_is_typed(
    bucket: ObjectStore, make_app: AppMaker
) -> None:
    put(bucket, runs__a=b"1", runs__sub__b=b"2", one=b"3", two=b"4")
    folder = folder_of(bucket)
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        await browser.goes_to("runs/")
        await browser.press("m")
        await browser.answer(PromptScreen, bucket.uri(f"{folder}old"))
        await browser.job_is_over()
        await browser.goes_to("one")
        await browser.press("m")
        await browser.answer(PromptScreen, "oss://elsewhere/old")
        await browser.until(lambda: "oss://elsewhere is not the bucket that shows" in browser.text)
        await browser.answer(PromptScreen, f"{folder}old/")
        await browser.until(lambda: keys(bucket) == ["old/a", "old/one", "old/sub/b", "two"])
        await browser.until(lambda: browser.screen.model.rows.find("one") is None)
        await browser.goes_to("old/")
        await browser.press("a", "c")
        await browser.answer(PromptScreen, f"{folder}both")
        await browser.until(lambda: "both/two" in keys(bucket))
        await browser.job_is_over()
        assert keys(bucket)[:4] == ["both/old/a", "both/old/one", "both/old/sub/b", "both/two"]


async def test_failed_jobs_stay_until_they_are_retried_or_removed(
    sandboxed_bucket: Sandboxed, bucket: ObjectStore, make_app: AppMaker
) -> None:
    put(bucket, a=b"1", b=b"2", c=b"3")
    folder = folder_of(bucket)
    refused = FaultPlan(rules=[Rule(action=Error(code="AccessDenied"), operation="DeleteMultipleObjects", times=1)])
    async with make_app(services(bucket), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, bucket)
        jobs = browser.screen.console.jobs
        with sandboxed_bucket.faults(refused):
            await browser.press("a", "x")
            await browser.answer(TypedConfirmScreen, "delete 3")
            await browser.job_is_over(JobState.FAILED)
        await browser.until(lambda: "3 failed. The first: AccessDenied" in browser.notices)
        for number in (2, 3, 4):
            await browser.press("z")
            await browser.until(lambda number=number: browser.notices.count("Size of") == number - 1)  # type: ignore[misc]
        await browser.press("J")
        await browser.until(lambda: "3 failed" in browser.text)
        assert "AccessDenied" not in browser.text  # the toast would cover the list
        await browser.press("end")
        await browser.until(lambda: "3 failed" in cursor_line(pilot))
        put(bucket, new=b"4")
        await browser.press("a")
        await browser.until(lambda: keys(bucket) == ["new"])
        await browser.until(lambda: not any(job.alive or job.failures for job in jobs))
        gone = ObjectSummary(f"{folder}gone", 1, 1)
        browser.screen.run_job(Copy(bucket, [gone], gone.key, f"{folder}copy"))
        await browser.job_is_over(JobState.FAILED)
        await browser.press("J")
        await browser.until(lambda: "1 failed" in cursor_line(pilot))
        await browser.press("enter")
        await browser.until(lambda: "NoSuchKey" in browser.text and isinstance(pilot.app.screen, TextScreen))
        await browser.press("escape")
        await browser.until(lambda: "1 failed" in cursor_line(pilot))
        await browser.press("x")
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen) and "done" in cursor_line(pilot))
        await browser.press("escape")
        await browser.until(lambda: "job failed" not in browser.text)


async def test_a_job_that_ended_as_a_whole_says_why_in_the_list(make_app: AppMaker) -> None:
    store = MemoryStore({"data/1": b"1"})

    def refuse(prefix: str) -> Iterator[ObjectSummary]:
        raise StorageError(f"The temporary credentials have expired: {prefix}")

    store.list_all = refuse  # type: ignore[method-assign]
    async with make_app(services(store), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("z")
        await browser.job_is_over(JobState.FAILED)
        await browser.press("J")
        await browser.until(lambda: "failed" in cursor_line(pilot))
        await browser.press("a")
        await browser.until(lambda: "has nothing to retry" in browser.notices)
        await browser.until(lambda: isinstance(pilot.app.screen, ListScreen))
        await browser.press("enter")
        await browser.until(lambda: "credentials have expired" in browser.text)


async def test_a_bucket_that_could_not_be_opened_says_why_and_opens_later(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "RECONNECT_S", 0.01)
    store, given = MemoryStore({"data/1": b"1"}), services(MemoryStore({}))
    problems: list[Exception] = [ConsoleError("The CA bundle cannot be read."), RuntimeError("unexpected")]
    seen: list[str] = []
    held = threading.Event()

    def open_store(_: EndpointKind) -> MemoryStore:
        if problems:
            raise problems.pop(0)
        assert held.wait(WAIT_S)
        return store

    given.store = open_store  # type: ignore[assignment, method-assign]
    async with make_app(given, "browse").run_test(size=(100, 30)) as pilot:
        await past_opening(pilot)
        browser = Browser(pilot)

        def failed() -> bool:
            seen.append(browser.text)
            return not problems and "see the log" in browser.text

        await browser.until(failed)
        held.set()
        await browser.until(lambda: "data/" in browser.text)


async def test_a_detail_that_was_read_at_last_has_no_error(make_app: AppMaker) -> None:
    store = MemoryStore({})
    async with make_app(services(store), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, store, "")
        store.data["late.txt"] = b"here it is"
        head = store.head

        def refuse(key: str) -> Any:
            raise StorageError(f"AccessDenied: {key}")

        store.head = refuse  # type: ignore[method-assign]
        await browser.press("r")
        await browser.until(lambda: "AccessDenied" in browser.text)
        store.head = head  # type: ignore[method-assign]
        browser.screen.read_detail()
        await browser.until(lambda: "here it is" in browser.text)
        assert "AccessDenied" not in browser.text


async def test_go_to_accepts_a_uri_and_refuses_that_of_another_bucket(make_app: AppMaker) -> None:
    store = MemoryStore({"data/1": b"1"})
    async with make_app(services(store), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("g")
        await browser.answer(PromptScreen, "oss://elsewhere/data/")
        await browser.until(lambda: "oss://elsewhere is not the bucket that shows" in browser.text)
        await browser.answer(PromptScreen, store.uri("data/"))
        await browser.until(lambda: browser.screen.model.prefix == "data/")
        await browser.press("g")
        await browser.answer(PromptScreen, "/")
        await browser.until(lambda: browser.screen.model.prefix == "")


async def test_a_url_for_others_has_a_host_that_answers_them_and_the_time_of_the_key(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sign(_: object, key: str, life_s: int, *, endpoint: str = "") -> str:
        return f"{endpoint or 'inside'}/{key}?{'short' if life_s < 3600 else 'long'}"

    monkeypatch.setattr(commands, "presigned_url", sign)
    store = MemoryStore({"a": b"1"}, endpoint="https://oss-cn-hangzhou-internal.aliyuncs.com")
    end = datetime.now(timezone.utc) + timedelta(minutes=10)
    store.credentials_end = lambda: end  # type: ignore[method-assign, assignment]
    async with make_app(services(store), "browse").run_test(size=(120, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("y")
        await browser.until(lambda: "in the region" in browser.text)
        assert re.search(r"from anywhere +https://oss-cn-hangzhou\.", browser.text)
        assert re.search(r"presigned, (9:5\d|10:00), in the region +inside/a\?short", browser.text)


async def test_on_a_small_terminal_the_sheet_of_images_shows_and_a_long_name_is_edited_at_its_end(
    make_app: AppMaker,
) -> None:
    long = f"{'x' * 200}the end"
    store = MemoryStore({"samples/none.txt": b"no image", long: b"1"})
    async with make_app(services(store), "browse").run_test(size=(80, 24)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.press("p")
        await browser.until(lambda: "This folder contains no images" in browser.text)
        await browser.press("escape")
        await browser.goes_to(long)
        await browser.press("m")
        await browser.until(lambda: isinstance(pilot.app.screen, PromptScreen))
        await browser.until(lambda: re.search(r"xxthe end +│", browser.text))


def test_weights_are_downloaded_with_progress_and_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = MemoryStore({"c.pt": bytes(3 * PART_SIZE)}), tmp_path / "weights.pt"
    job = WeightsDownload(store, ObjectSummary("c.pt", 1, 1), out)  # type: ignore[arg-type]
    get_range = store.get_range

    def cancelled_at_the_last(key: str, start: int, length: int) -> bytes:
        if start == 2 * PART_SIZE:
            job.cancel()
        return get_range(key, start, length)

    monkeypatch.setattr(store, "get_range", cancelled_at_the_last)
    job.start()
    assert job.wait(WAIT_S)
    progress = job.progress()
    assert (job.state, progress.bytes_total, progress.total_known) == (JobState.CANCELLED, 3 * PART_SIZE, True)
    assert progress.bytes_done >= PART_SIZE
    assert not out.exists()


async def test_the_question_of_a_checkpoint_does_not_depend_on_how_soon_d_is_pressed(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_KNOWN_WITHIN_S", WAIT_S)
    store, held = MemoryStore({"a.txt": b"1", "e1.pt": checkpoint(1, 1.0)}), threading.Event()
    get_range = store.get_range

    def late(key: str, start: int, length: int) -> bytes:
        assert held.wait(WAIT_S)
        return get_range(key, start, length)

    store.get_range = late  # type: ignore[method-assign]
    async with make_app(services(store), "browse").run_test(size=(100, 30)) as pilot:
        browser = await opened(pilot, store, "")
        await browser.goes_to("e1.pt")
        await browser.press("d")
        held.set()
        await browser.until(lambda: isinstance(pilot.app.screen, ConfirmScreen))
        assert "Weights only" in browser.text
