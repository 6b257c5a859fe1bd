"""Snapshots of the Browse screen, pane by pane and dialog by dialog; 80x24 and 120x40."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from textual.pilot import Pilot
from textual.widgets import Input
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.formats import SampleFormat, encode
from ossconsole.dataset.manifest import Manifest, Sample
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.actions import ObjectDetails, ObjectVersion, Versioning
from ossconsole.storage.jobs.download import Download
from ossconsole.storage.jobs.job import ProgressTracker
from ossconsole.storage.jobs.sync import Direction, SyncDifference, SyncEntry, SyncPlan
from ossconsole.storage.listing import ListingState
from ossconsole.storage.multipart import UnfinishedUpload
from ossconsole.tui.browse.checkpoints import CheckpointCompareScreen
from ossconsole.tui.browse.local import LocalEntry, LocalFileScreen
from ossconsole.tui.browse.screen import BrowseScreen
from ossconsole.tui.browse.transfers import SyncScreen
from ossconsole.tui.kit.dialogs import ImageScreen, ListScreen, PromptScreen, TextScreen, TypedConfirmScreen
from ossconsole.tui.kit.glyphs import ASCII
from ossconsole.tui.kit.table import VirtualTable
from tests.torch_files import torch_bytes
from tests.tui.browse_store import MemoryStore
from tests.tui.conftest import AppMaker
from tests.tui.fakes import SIMULATED, START, FakeServices
from tests.tui.screens import past_opening, settle
from tests.tui.snapshots import pictured
from tests.tui.test_browse import Browser

pytestmark = pictured
SIZES = ((80, 24), (120, 40))
Compare = Callable[..., bool]
DATA = SIMULATED.dataset_prefix


def checkpoint() -> bytes:
    torch.manual_seed(1)
    model = {"conv1.weight": torch.ones(64, 3, 7, 7), "fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    return torch_bytes(
        {
            "format": "ossconsole-checkpoint",
            "model": model,
            "optimizer": {"state": {0: torch.zeros(5)}, "param_groups": [{"lr": 0.05, "momentum": 0.9}]},
            "model_name": "resnet18",
            "epoch": 3,
            "step": 240,
            "seed": 7,
            "classes": ["ants", "bees"],
            "sample_format": "image-u8",
            "image_size": 64,
            "metrics": {"train_loss": 0.4213, "val_loss": 0.5, "top1": 0.873, "top5": 0.99},
            "versions": {"torch": "2.15.0"},
            "run": "20250615-150640-a1b2",
        }
    )


def sharded(key: str) -> dict[str, bytes]:
    """The index of a DCP checkpoint and the file beside it, as torch writes them."""
    values = {"epoch": 3, "step": 240, "run": "20250615-150640-a1b2", "metrics.top1": 0.873}
    packed = {name: torch_bytes(value) for name, value in values.items()}
    places, at = {}, 0
    for name, data in packed.items():
        places[MetadataIndex(name)] = _StorageInfo("__0_0.distcp", at, len(data))
        at += len(data)
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        name: TensorStorageMetadata(TensorProperties(), torch.Size(shape), [])
        for name, shape in (("model.fc.weight", (10, 512)), ("model.fc.bias", (10,)), ("optimizer.state.0", (10, 512)))
    }
    index = Metadata({**tensors, **{name: BytesStorageMetadata() for name in values}}, storage_data=places)
    return {f"{key}/.metadata": pickle.dumps(index), f"{key}/__0_0.distcp": b"".join(packed.values())}


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def hostile() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle.dumps({"model": {"w": Hostile()}}, 2))
    return sink.getvalue()


def bucket() -> MemoryStore:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (3, 64, 1))
    ramp[1] = ramp[0].T
    samples = tuple(
        Sample(f"train/{name}/{n}.u8", at, 64, 64) for at, name in enumerate(("ants", "bees")) for n in range(3)
    )
    manifest = Manifest(
        format=SampleFormat.IMAGE_U8,
        size=64,
        classes=("ants", "bees"),
        preparation={"by": "ossconsole 0.1.0", "keep_ratio": False},
        splits={"train": samples, "val": (Sample("val/ants/9.u8", 0, 64, 64),)},
    )
    data = {
        "checkpoints/hostile.pt": hostile(),
        "checkpoints/resnet18.pt": checkpoint(),
        f"{DATA}/manifest.json": msgspec.json.encode(manifest),
        "notes.json": b'{"dataset": "ants and bees", "pictures": [244, 153], "\\u001b[31m": true}',
        "labels.tsv": b"file\tlabel\nILSVRC2012_val_00000001.JPEG\t65\nb.JPEG\t970\n",
        "weights.dat": bytes(range(256)) * 20,
        "wrong.u8": b"x" * 1000,
        "names/[bold]markup.txt": b"1",
        "names/esc\x1b[31m.txt": b"1",
        "names/right\u202eto left.txt": b"1",
        "names/" + "n" * 900: b"1",
        "names/a//b": b"1",
        "names/日本語.txt": b"1",
    }
    stored = [sample for split in manifest.splits.values() for sample in split]
    data |= {f"{DATA}/{sample.key}": encode(SampleFormat.IMAGE_U8, ramp) for sample in stored}
    return MemoryStore(data, classes={"weights.dat": "IA"})


async def opened(pilot: Pilot[Any], folder: str, name: str = "") -> Browser:
    await past_opening(pilot)
    browser = Browser(pilot)
    await browser.until(lambda: browser.screen.store is not None)
    browser.screen.open_folder(folder)
    await browser.until(lambda: browser.screen.model.listing.is_complete)
    if folder.startswith(DATA):
        await browser.until(lambda: browser.screen.index is not None)
    if name:
        await browser.goes_to(name)
        if pilot.app.size.width < 110:
            await browser.press("w")
        await browser.until(lambda: browser.screen.detail and browser.screen.detail.content)
    return browser


async def nothing(browser: Browser) -> None:
    """The screen as it opens."""


async def selected(browser: Browser) -> None:
    await browser.press("space", "space", "s", "slash", "n", "enter")


async def sheet(browser: Browser) -> None:
    await browser.press("p")
    await browser.until(lambda: browser.screen.detail and browser.screen.detail.images)


async def findings(browser: Browser) -> None:
    assert isinstance(browser.screen.store, MemoryStore)
    del browser.screen.store.data[f"{DATA}/train/ants/1.u8"]
    browser.screen.store.data[f"{DATA}/train/ants/extra.u8"] = b"1"
    browser.screen.store.data[f"{DATA}/train/bees/0.u8"] = b"short"
    await browser.press("f")
    await browser.until(lambda: browser.screen.detail and browser.screen.detail.findings)
    browser.screen.console.jobs.clear()
    await browser.press("end")
    browser.screen.redraw()


async def full(browser: Browser) -> None:
    await browser.press("enter")
    await browser.until(lambda: browser.screen.detail and browser.screen.detail.full)


async def deleting(browser: Browser) -> None:
    await browser.press("a", "x")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, TypedConfirmScreen))
    browser.screen.tick()  # the count has ended, and leaves: no tick comes below a dialog


async def downloading(browser: Browser) -> None:
    await browser.press("d")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, PromptScreen))


async def bookmarks(browser: Browser) -> None:
    await browser.press("b", "apostrophe")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, ListScreen))


async def working(browser: Browser) -> None:
    """Two jobs: one half-way, one that lost an object."""
    for done, failed in ((700_000_000, False), (1_000, True)):
        clock = iter((0.0, 7.0))
        job = Download(browser.screen.store, [], "", Path("/data/down"))  # type: ignore[arg-type]
        job.tracker = ProgressTracker(lambda clock=clock: next(clock, 7.0))  # type: ignore[misc]
        job.tracker.add_total(40, 1_400_000_000)
        job.tracker.totals_known()
        job.tracker.advance("a", done)
        if failed:
            job.fail("b", StorageError("gone"))
        browser.screen.console.jobs.append(job)
    browser.app.tick()  # before a dialog opens: below one, no tick draws the bar with the jobs


async def jobs(browser: Browser) -> None:
    await working(browser)
    await browser.press("J")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, ListScreen))


async def dcp_folder(browser: Browser) -> None:
    assert isinstance(browser.screen.store, MemoryStore)
    browser.screen.store.data |= sharded("sharded/step-240")
    browser.screen.open_folder("sharded/")
    await browser.goes_to("step-240/")
    await browser.until(lambda: "DCP checkpoint" in browser.text or "step 240" in browser.text)


async def comparing(browser: Browser) -> None:
    assert isinstance(browser.screen.store, MemoryStore)
    other = {"format": "ossconsole-checkpoint", "epoch": 4, "model": {"fc.weight": torch.ones(12, 512)}}
    browser.screen.store.data["pair/a.pt"], browser.screen.store.data["pair/b.pt"] = checkpoint(), torch_bytes(other)
    browser.screen.open_folder("pair/")
    await browser.until(lambda: browser.screen.model.rows.count == 2)
    await browser.press("a", "equals_sign")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, CheckpointCompareScreen))


async def picture(browser: Browser) -> None:
    await browser.press("i")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, ImageScreen))


async def uploads(browser: Browser) -> None:
    await browser.press("U")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, ListScreen))


async def buckets(browser: Browser) -> None:
    await browser.press("o")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, ListScreen))


async def address(browser: Browser) -> None:
    await browser.goes_to("notes.json")
    await browser.press("y")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, ListScreen))
    await browser.press("enter")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, TextScreen))


async def failed(browser: Browser) -> None:
    error = "AccessDenied while listing oss://127/names/: no right (HTTP 403, EC 0003-00000001, request id 0A1B)."
    browser.screen.model.listing.error = StorageError(error, remedy="Give this key the permission in RAM.")
    browser.screen.model.listing.state = ListingState.FAILED
    browser.screen.tick()


async def two_panes(browser: Browser) -> None:
    await browser.press("t")
    await browser.until(lambda: "notes.txt" in browser.text)
    await browser.press("down", "space")


async def local_file(browser: Browser) -> None:
    await two_panes(browser)
    await browser.press("down", "enter")
    await browser.until(lambda: isinstance(browser.pilot.app.screen, LocalFileScreen))


async def bucket_side(browser: Browser) -> None:
    await two_panes(browser)
    await browser.press("tab", "space")
    await browser.until(lambda: "selected" in browser.text)


async def sync_plan(browser: Browser) -> None:
    kinds = (
        [SyncDifference.NEW] * 14 + [SyncDifference.CHANGED] * 2 + [SyncDifference.SAME] * 3 + [SyncDifference.EXTRA]
    )
    entries = tuple(
        SyncEntry(f"names/photo-{number:02}.jpg", Path(f"/data/photo-{number:02}.jpg"), 27_000 + number, kind)
        for number, kind in enumerate(kinds)
    )
    plan = SyncPlan(Direction.UPLOAD, Path("/data/pictures"), "names/", entries, others=1)
    screen = SyncScreen(plan, "oss://127/names/")
    browser.pilot.app.push_screen(screen)
    await browser.until(lambda: browser.pilot.app.screen is screen)


PICTURES: dict[str, tuple[str, str, Callable[[Browser], Any]]] = {
    "bucket": ("", "", nothing),
    "names": ("names/", "", nothing),
    "selected": ("", "", selected),
    "checkpoint": ("checkpoints/", "resnet18.pt", nothing),
    "dcp-folder": ("", "", dcp_folder),
    "hostile": ("checkpoints/", "hostile.pt", nothing),
    "sample": (f"{DATA}/train/ants/", "0.u8", nothing),
    "sheet": (f"{DATA}/train/", "", sheet),
    "manifest": (f"{DATA}/", "manifest.json", nothing),
    "findings": (f"{DATA}/", "manifest.json", findings),
    "json": ("", "notes.json", nothing),
    "table": ("", "labels.tsv", nothing),
    "bytes": ("", "weights.dat", nothing),
    "wrong-size": ("", "wrong.u8", nothing),
    "full": ("", "notes.json", full),
    "deleting": ("names/", "", deleting),
    "downloading": ("names/", "", downloading),
    "bookmarks": ("names/", "", bookmarks),
    "working": ("", "", working),
    "jobs": ("", "", jobs),
    "compare": ("", "", comparing),
    "picture": (f"{DATA}/train/ants/", "0.u8", picture),
    "uploads": ("", "", uploads),
    "buckets": ("", "", buckets),
    "address": ("", "", address),
    "failed": ("names/", "", failed),
    "two-panes": ("", "", two_panes),
    "two-panes-bucket": ("", "", bucket_side),
    "local-file": ("", "", local_file),
    "sync": ("names/", "", sync_plan),
}


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(
    snap_compare: Compare, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    store = bucket()
    folder, row, then = PICTURES[name]

    def details(_: Any, key: str) -> ObjectDetails:
        versions = [
            ObjectVersion("CAEQARiBgID8", is_latest=True, modified=int(START), size=66),
            ObjectVersion("CAEQARiBgIC1", is_latest=False, modified=int(START) - 60, size=0, is_marker=True),
            ObjectVersion("null", is_latest=False, modified=int(START) - 3600, size=64),
        ]
        return ObjectDetails(
            info=store.head(key), acl="private", tags=None, versions=versions, unavailable={"tags": "AccessDenied"}
        )

    async def prepare(pilot: Pilot[Any]) -> None:
        browser = await opened(pilot, folder, row)
        await then(browser)
        await settle(pilot)  # the row under the cursor is read, and what it says is painted
        for field in pilot.app.screen.query(Input):
            field.cursor_blink = False
        await pilot.pause()

    monkeypatch.setattr("ossconsole.tui.browse.detail.object_details", details)
    monkeypatch.setattr("ossconsole.tui.browse.commands.versioning", lambda _: Versioning.ENABLED)
    unfinished = [UnfinishedUpload("big/one.tar", "0004B9", int(START), 12, 100 << 20)]
    monkeypatch.setattr("ossconsole.tui.browse.jobs.list_uploads", lambda *_: unfinished)
    monkeypatch.setattr("ossconsole.tui.browse.commands.presigned_url", lambda *_: "http://127.0.0.1:9000/signed")
    monkeypatch.setattr("ossconsole.tui.browse.screen._READ_DELAY_S", 0.01)
    monkeypatch.setattr("ossconsole.tui.browse.commands.Path.cwd", lambda: Path("/data"))
    files = [LocalEntry("pictures", 0, START, True), LocalEntry("notes.txt", 2_310, START, False)]
    monkeypatch.setattr("ossconsole.tui.browse.local.read_folder", lambda _: files)
    notes = "".join(f"epoch {number}: top-1 {50 + number} %\n" for number in range(110))
    on_disk = MemoryStore({"/data/notes.txt": notes.encode()})
    monkeypatch.setattr("ossconsole.tui.browse.local.LocalFiles", lambda: on_disk)
    services = FakeServices(stores=dict.fromkeys(EndpointKind, store))  # type: ignore[arg-type]
    assert snap_compare(make_app(services, "browse"), terminal_size=size, run_before=prepare)


def test_without_colours_and_unicode(snap_compare: Compare, make_app: AppMaker) -> None:
    async def prepare(pilot: Pilot[Any]) -> None:
        await opened(pilot, f"{DATA}/train/ants/", "0.u8")

    services = FakeServices(stores=dict.fromkeys(EndpointKind, bucket()))  # type: ignore[arg-type]
    app = make_app(services, "browse", glyph_set=ASCII)
    assert snap_compare(app, terminal_size=(120, 40), run_before=prepare)


def test_before_the_bucket_is_known(snap_compare: Compare, make_app: AppMaker) -> None:
    async def prepare(pilot: Pilot[Any]) -> None:
        await past_opening(pilot)
        assert isinstance(pilot.app.screen, BrowseScreen)

    assert snap_compare(make_app(FakeServices(profile=None), "browse"), terminal_size=(80, 24), run_before=prepare)


async def test_the_list_of_jobs_follows_them(make_app: AppMaker) -> None:
    services = FakeServices(stores=dict.fromkeys(EndpointKind, bucket()))  # type: ignore[arg-type]
    async with make_app(services, "browse").run_test(size=(120, 40)) as pilot:
        browser = await opened(pilot, "", "")
        await jobs(browser)
        assert " 50 % " in browser.text
        await browser.press("down")
        browser.screen.console.jobs[0].tracker.advance("c", 350_000_000)
        await browser.until(lambda: " 75 %" in browser.text)
        listed = pilot.app.screen
        assert isinstance(listed, ListScreen)
        assert listed.query_one(VirtualTable).cursor == 1
