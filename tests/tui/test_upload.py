"""The Upload screen: the plan comes first, then the upload with its knobs, then how it ended."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from textual.widgets import Input, Select

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.labels import LabelFiles
from ossconsole.dataset.manifest import Unused
from ossconsole.dataset.upload.job import UploadSettings, UploadSummary
from ossconsole.dataset.upload.plan import UploadPlan
from ossconsole.dataset.upload.progress import Phase, SamplePreview
from ossconsole.storage.jobs.job import Failure
from ossconsole.tui.console import Ready, Starting
from ossconsole.tui.kit import memory
from ossconsole.tui.kit.dialogs import PromptScreen
from ossconsole.tui.kit.glyphs import BRAILLE
from ossconsole.tui.upload.panels import PanelArea, Throughput, form_lines
from ossconsole.tui.upload.picker import SourcePicker
from ossconsole.tui.upload.pictures import SampleStrip, _pixels
from tests.tui.conftest import AppMaker
from tests.tui.fakes import SIMULATED, START, FakeServices, FakeUpload, upload_progress
from tests.tui.screens import settle, shown

PLAN = UploadPlan(
    layout="train/ and val/",
    files=398,
    to_send=390,
    unchanged=6,
    ignored=1,
    lost=1,
    samples={"train": 240, "val": 156},
    classes=("ants", "bees"),
    bytes_to_send=10_582_000,
    stored_bytes=10_744_800,
    bytes_estimated=True,
    prepare_s=4.2,
    cny_per_month=0.001,
    notes=(Failure("train/ants/torn.jpg", "a symbolic link to nothing"),),
    unused=(Unused("file", 1, "unsupported file extension", ("train/ants/imageNotFound.gif",)),),
)
SUMMARY = UploadSummary(
    uploaded=395,
    skipped=1,
    failed=2,
    bytes=10_717_900,
    seconds=6.0,
    samples_per_s=65.8,
    ignored=1,
    manifest="oss://127/dataset/sample/manifest.json",
    failures=(Failure("train/ants/broken.jpg", "image file is truncated"), Failure("train/bees/[x].jpg", "empty")),
    unused=(Unused("file", 1, "unsupported file extension", ("train/ants/imageNotFound.gif",)),),
)


def running(**changes: object) -> FakeServices:
    upload = FakeUpload(upload_progress(**changes))
    return FakeServices(upload=upload, own_upload=upload)


def ended(phase: Phase = Phase.DONE, **changes: object) -> FakeServices:
    progress = upload_progress(phase=phase, done=398, total=398, uploaded=395, eta_s=None, bottleneck=None, **changes)
    upload = FakeUpload(progress, SUMMARY, alive=False)
    return FakeServices(upload=upload, own_upload=upload)


async def test_the_plan_comes_first_and_then_starts(make_app: AppMaker) -> None:
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        await pilot.press("ctrl+s")
        await settle(pilot)
        text = shown(app)
        for words in (
            "240 train, 156 val, in 2 classes",
            "ants, bees",
            "390 samples, about 10.6 MB as image-jpeg at 256 px",
            "imageNotFound.gif",
        ):
            assert words in text, words
        assert "estimated" in text
        assert services.uploads == []
        await pilot.press("ctrl+s")
        await settle(pilot)
    assert services.uploads == services.planned == [UploadSettings(source=Path("/data/pictures"))]


async def test_an_upload_starts_when_its_form_cannot_be_kept(
    make_app: AppMaker, lose_state: Callable[[], None]
) -> None:
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        lose_state()
        await pilot.press("ctrl+s")
        await settle(pilot)
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert len(services.uploads) == 1
        assert any("Not remembered" in notice.message for notice in app._notifications)


async def test_the_selected_settings_are_used_and_remembered(make_app: AppMaker) -> None:
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        app.screen.query_one("#format", Select).value = "tensor-f32"
        app.screen.query_one("#size", Select).value = "64"
        await settle(pilot)
        await pilot.press("ctrl+s")
        await settle(pilot)
        await pilot.press("ctrl+s")
        await settle(pilot)
    wanted = UploadSettings(source=Path("/data/pictures"), format=SampleFormat.TENSOR_F32, size=64)
    assert services.uploads == [wanted]
    again = make_app(FakeServices(), "upload")
    async with again.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert again.screen.query_one("#source", Input).value == "/data/pictures"
        assert again.screen.query_one("#size", Select).value == "64"


async def test_advanced_settings_are_checked_shown_and_used(make_app: AppMaker) -> None:
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        app.screen.set_focus(None)
        await pilot.press("a")
        await settle(pilot)
        fields = {name: app.screen.query_one(f"#field-{name}", Input) for name in ("val_labels", "val_split", "names")}
        for name, value in (("val_labels", "labels.json"), ("val_split", "1"), ("names", "klingon")):
            fields[name].value = value
        for name, value in (("val_split", "0.2"), ("names", "cp932")):
            await pilot.press("ctrl+s")
            await settle(pilot)
            assert app.screen.focused is fields[name]  # refused
            fields[name].value = value
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "val labels labels.json, 0.2 held out, names in cp932" in shown(app)
        await pilot.press("ctrl+s")
        await settle(pilot)
    labels = LabelFiles(val_labels="labels.json")
    assert services.planned == [
        UploadSettings(source=Path("/data/pictures"), labels=labels, val_split=0.2, names="cp932")
    ]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("image-jpeg", {"size": 256, "quality": 90}),
        ("originals", {"originals": True}),
        ("image-u8", {"format": SampleFormat.IMAGE_U8, "size": 224}),
        ("image-u8 uncropped", {"format": SampleFormat.IMAGE_U8, "size": 224, "keep_ratio": True}),
        ("tensor-f32", {"format": SampleFormat.TENSOR_F32, "size": 224}),
    ],
)
async def test_every_format_of_the_list_has_a_plan(make_app: AppMaker, name: str, settings: dict[str, Any]) -> None:
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        app.screen.query_one("#format", Select).value = name
        await settle(pilot)
        assert app.screen.query_one("#size", Select).disabled == (name == "originals")
        await pilot.press("ctrl+s")
        await settle(pilot)
    (planned,) = services.planned
    assert planned == UploadSettings(source=Path("/data/pictures"), **settings)
    planned.preprocessing.check()


async def test_a_change_after_the_plan_requires_a_new_plan(make_app: AppMaker) -> None:
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/one"
        await pilot.press("ctrl+s")
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/two"
        await settle(pilot)
        await pilot.press("ctrl+s")
        await settle(pilot)
    assert [str(settings.source) for settings in services.planned] == ["/one", "/two"]
    assert services.uploads == []


async def test_an_invalid_source_is_reported_with_its_remedy(make_app: AppMaker) -> None:
    services = FakeServices(plan=ConsoleError("~nobody-here/x does not exist.", remedy="Enter a folder."))
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 30), notifications=True) as pilot:
        await settle(pilot)
        await pilot.press("ctrl+s")
        assert app.screen.focused is app.screen.query_one("#source")
        app.screen.query_one("#source", Input).value = "~nobody-here/x"
        await pilot.press("enter")
        await settle(pilot)
        assert "~nobody-here/x does not exist." in shown(app)
        assert "Enter a folder." in " ".join(shown(app).replace("▌", " ").split())
    assert services.uploads == []


async def test_progress_shows_counts_rates_and_the_bottleneck(make_app: AppMaker) -> None:
    app = make_app(running(), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
    for words in (
        *(
            "uploading",
            "25 %",
            "8.1",
            "1.2",
            "0:37",
            "of 400",
            "prepare",
            "5 retries",
            "3 of 16 in parallel, no limit",
        ),
        *(
            "90 uploaded   7 unchanged   1 ignored   2 failed",
            "train/ants/0013035.jpg",
            "truncated",
            "/data/pictures",
        ),
    ):
        assert words in text, words


async def test_classes_have_bars(make_app: AppMaker) -> None:
    classes = (("ants", 30), ("bees", 60), *((f"wasps {number:02}", 1) for number in range(20)))
    app = make_app(running(classes=classes, class_count=1000), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
    assert "truncated" in text  # the failures keep their rows
    assert "994 more" in text
    (row,) = [line for line in text.splitlines() if "ants" in line and "bees" in line and "process" not in line]
    ants, bees = row[:40], row[40:]
    assert 0 < 2 * ants.count("━") == bees.count("━")


async def test_the_last_pictures_are_a_strip_where_there_is_room(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, now = running(), START
    upload = services.own_upload
    assert upload is not None
    picture = SamplePreview("a", 8, 8, simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90))
    app = make_app(services, "upload")
    monkeypatch.setattr(app, "_clock", lambda: now)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        strip = app.screen.query_one(SampleStrip)
        for key, after, count in (("a", 0.0, 1), ("b", 0.5, 1), ("c", 2.5, 2), ("c", 9.0, 2)):
            upload.sample = msgspec.structs.replace(picture, key=key)
            now = START + after
            await settle(pilot)
            assert len(strip._shown) == count
        await pilot.resize_terminal(80, 24)
        await settle(pilot)
        assert not strip.size.height


async def test_while_counting_there_is_no_percentage(make_app: AppMaker) -> None:
    app = make_app(running(total_known=False, eta_s=None), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
    assert "counting" in text
    assert "400+" in text
    assert "%" not in text


async def test_knobs(make_app: AppMaker) -> None:
    services = running()
    upload = services.upload
    assert upload is not None
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("p", "plus", "minus")
        assert "p Pause" in shown(app)
        upload.shown = upload_progress(paused=True, parallelism=2)
        await settle(pilot)
        assert "p Continue" in shown(app)
        await pilot.press("p", "plus", "minus", "b")
        assert isinstance(app.screen, PromptScreen)
        await pilot.press("x", "enter")
        await settle(pilot)
        assert isinstance(app.screen, PromptScreen)
        assert "is not a number" in shown(app)
        app.screen.query_one(Input).value = "2.5"
        await pilot.press("enter", "b")
        app.screen.query_one(Input).value = "0"
        await pilot.press("enter", "x")
        await settle(pilot)
    assert upload.asked == [
        *("pause", ("parallelism", 20), ("parallelism", 12), "resume", ("parallelism", 3), ("parallelism", 1)),
        *(("bandwidth", 2.5e6), ("bandwidth", None), "cancel"),
    ]


async def test_an_upload_elsewhere_is_steered_as_one_of_this_process(make_app: AppMaker) -> None:
    upload = FakeUpload(upload_progress(), is_remote=True)
    app = make_app(FakeServices(upload=upload), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("p", "plus", "b")
        await settle(pilot)
        await pilot.press(*"2.5", "enter")
        await settle(pilot)
    assert upload.asked == ["pause", ("parallelism", 20), ("bandwidth", 2.5e6)]


async def test_after_an_upload_elsewhere_no_retry_is_promised(make_app: AppMaker) -> None:
    upload = FakeUpload(upload_progress(phase=Phase.CANCELLED), is_remote=True, alive=False)
    app = make_app(FakeServices(upload=upload), "upload")
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        assert "r retry" not in shown(app)
        assert "n, then /data/pictures as the source, uploads what is missing" in shown(app)


async def test_the_end_lists_failures_and_retries_them_as_one_action(make_app: AppMaker) -> None:
    services = ended()
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(app)
        for words in (
            "! done",
            "395 uploaded",
            "train/ants/broken.jpg",
            "[x].jpg",
            "manifest.json",
            "r retry what is missing",
        ):
            assert words in text, words
        await pilot.press("r")
        await settle(pilot)
    assert services.uploads == [UploadSettings(source=Path("/data/pictures"))]


async def test_every_file_with_a_problem_is_a_key_away(make_app: AppMaker) -> None:
    """At 80x24 the plan and the result name the first ones only."""
    names = tuple(f"train/ants/{'long-' * 12}{number}.jpg" for number in range(30))
    summary = msgspec.structs.replace(
        SUMMARY,
        failures=tuple(Failure(name, "its data are damaged: a part of the image is missing") for name in names),
        failed=1200,
        cautions=(Unused("class", 1, "alike but for case", ("Ants and ants",)),),
    )
    upload = FakeUpload(upload_progress(phase=Phase.DONE, failed=1200), ended=summary, alive=False)
    app = make_app(FakeServices(upload=upload), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "f all files with problems" in shown(app)
        assert "alike but for case" in shown(app)
        await pilot.press("f")
        await settle(pilot)
        lines = app.screen._painter(70, 20)  # type: ignore[attr-defined]
        text = "".join(line.text.strip() for line in lines).replace(" ", "")
        assert all(name in text for name in names)
        assert "and1,170more" in text
        assert "Antsandants" in text
        await pilot.press("f")
        await settle(pilot)
        assert "Files with problems" not in shown(app)


async def test_where_an_upload_goes_is_on_the_screen(make_app: AppMaker) -> None:
    """It may be one of another process, or to another prefix than the profile's."""
    for services in (running(), FakeServices(upload=FakeUpload(upload_progress(), is_remote=True))):
        async with (app := make_app(services, "upload")).run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            assert "target        oss://127/dataset/sample" in shown(app)
    beside = FakeServices(plan=msgspec.structs.replace(PLAN, removed=12_345))
    async with (app := make_app(beside, "upload")).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "12,345 samples of the dataset, which stay in it" in shown(app)


@pytest.mark.parametrize("side", [1000, 1001])
def test_a_large_original_that_is_no_jpeg_is_not_decoded_between_two_keys(side: int) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (1000, side)).save(stream, "PNG")
    picture = SamplePreview("train/a.png", side, 1000, stream.getvalue())
    assert (_pixels(picture, SampleFormat.IMAGE_JPEG, 24, 12) is not None) is (side == 1000)


async def test_a_throttled_upload_says_so_in_full_beside_the_sample(make_app: AppMaker) -> None:
    waiting = "OSS is throttling while writing oss://127/dataset/sample/train/ants/0013035.jpg; retry in 6 s"
    app = make_app(FakeServices(upload=FakeUpload(upload_progress(waiting=waiting))), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "retry in 6 s" in shown(app)


async def test_what_is_checked_without_being_sent_has_its_rate(make_app: AppMaker) -> None:
    upload = FakeUpload(upload_progress(samples_per_s=0.0, files_per_s=512.0))
    async with (app := make_app(FakeServices(upload=upload), "upload")).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "512 checked" in shown(app)


async def test_a_result_with_failures_is_marked_as_such(make_app: AppMaker) -> None:
    for failed, mark in ((0, "✓"), (2, "!")):
        app = make_app(ended(failed=failed), "upload")
        async with app.run_test(size=(80, 24)) as pilot:
            await settle(pilot)
            assert f" {mark} done" in shown(app)


async def test_the_request_id_of_a_failure_is_whole(make_app: AppMaker) -> None:
    async with make_app(running(), "upload").run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "request id 674F3C6A4D3E4A3130A1B2C3" in shown(pilot.app)


async def test_the_error_that_stopped_it_shows(make_app: AppMaker) -> None:
    error = "No answer from the standard endpoint http://0.0.1:9000. Check its address, its port and the network."
    app = make_app(ended(Phase.FAILED, error=error), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert error in " ".join(shown(app).split())


async def test_at_the_smallest_size_all_fields_and_figures_show(make_app: AppMaker) -> None:
    """The image leaves its columns to the figures."""
    async with make_app(running(), "upload").run_test(size=(60, 18)) as pilot:
        await settle(pilot)
        for words in ("time left", "limited by", "1 ignored   2 failed", "3 of 16 in parallel, no limit"):
            assert words in shown(pilot.app)
    async with make_app(FakeServices(), "upload").run_test(size=(60, 18)) as pilot:
        await settle(pilot)
        line = next(line for line in shown(pilot.app).splitlines() if "Format" in line)
        assert [word for word in line.split() if word != "▼"] == [
            *("Format", "image-jpeg", "Size", "default", "Stored", "objects")
        ]


async def test_after_the_end_another_upload_can_be_prepared(make_app: AppMaker) -> None:
    services = ended()
    services.plan = PLAN
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        app.screen.query_one("#source", Input).value = "/other"
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "240 train" in shown(app)
        await pilot.press("escape", "escape")
        await settle(pilot)
        assert "395 uploaded" in shown(app)


async def test_the_picker_gives_a_recent_source_or_one_of_the_tree(make_app: AppMaker, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures.zip").touch()
    (tmp_path / "notes.txt").touch()
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = str(tmp_path)
        await pilot.press("o")
        await settle(pilot)
        assert isinstance(app.screen, SourcePicker)
        text = shown(app)
        assert "pictures.zip" in text
        assert "notes.txt" not in text
        await pilot.press("down", "ctrl+s")
        await settle(pilot)
        assert app.screen.query_one("#source", Input).value == str(tmp_path / "pictures")
        await pilot.press("o", "escape")
        await settle(pilot)
        assert app.screen.query_one("#source", Input).value == str(tmp_path / "pictures")


async def test_in_the_picker_a_slash_begins_a_path(make_app: AppMaker, tmp_path: Path) -> None:
    app = make_app(FakeServices(plan=PLAN), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("o")
        await settle(pilot)
        await pilot.press("slash", "d", "x", "enter")
        await settle(pilot)
        assert app.screen.query_one("#source", Input).value == "/dx"


async def test_the_picker_offers_recent_sources(make_app: AppMaker) -> None:
    services = FakeServices(plan=PLAN)
    assert services.profile is not None
    memory.remember("upload", services.profile.name, {"recent": ["/data/newest", "/data/older"]})
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert app.screen.query_one("#source", Input).value == "/data/newest"
        await pilot.press("o")
        await settle(pilot)
        app.screen.query_one("#recent").focus()
        await pilot.press("end", "enter")
        await settle(pilot)
        assert app.screen.query_one("#source", Input).value == "/data/older"


async def test_the_last_source_is_there_also_when_the_profile_is_known_later(make_app: AppMaker) -> None:
    memory.remember("upload", SIMULATED.name, {"recent": ["/data/newest"], "prefix": "known"})
    services = FakeServices(standing=Starting())
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#prefix", Input).value = "typed"
        services.stand(Ready(profile=SIMULATED))
        await settle(pilot)
        assert app.screen.query_one("#source", Input).value == "/data/newest"
        assert app.screen.query_one("#prefix", Input).value == "typed"


async def test_a_readonly_console_starts_nothing(make_app: AppMaker) -> None:
    services = FakeServices(plan=PLAN, readonly=True)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data"
        await pilot.press("ctrl+s", "ctrl+s")
        await settle(pilot)
    assert services.planned == services.uploads == []


async def test_mode_keys_work_immediately_and_escape_leaves_the_input(make_app: AppMaker) -> None:
    app = make_app(FakeServices(), "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).focus()
        await pilot.press("4", "escape", "4")
        await settle(pilot)
        assert app.current_mode == "train"


@pytest.mark.parametrize("size", [(60, 18), (200, 60)])
async def test_every_state_fits_every_size(make_app: AppMaker, size: tuple[int, int]) -> None:
    many = tuple(f"train/class/{number}.jpg" for number in range(64))
    for services in (FakeServices(), running(workers=many), ended(Phase.CANCELLED)):
        app = make_app(services, "upload")
        async with app.run_test(size=size) as pilot:
            await settle(pilot)
            assert shown(app).strip()


def test_the_throughput_is_drawn_over_the_time_of_the_upload() -> None:
    rates = Throughput()
    area = PanelArea(60, 30, BRAILLE)
    for second in range(1, 61):
        rates.add(START + second, upload_progress(seconds=float(second), bytes_per_s=2e6 if second < 30 else 8e6))
    lines = [line.text for line in rates.lines(area)]
    assert "MB/s" in lines[0]
    assert lines[1].lstrip().startswith("10")
    assert lines[-1].split() == ["0:00", "1:00"]
    assert lines[1][40:].strip() or lines[2][40:].strip(), "the second half is high"
    assert not lines[2][8:30].strip(), "the first half is low"
    rates.add(START + 200, upload_progress(seconds=1.0))
    assert rates.lines(area) == [], "another upload begins anew"


async def test_why_a_source_cannot_be_planned_stays_until_the_form_changes(make_app: AppMaker) -> None:
    services = FakeServices(plan=ConsoleError("/data has neither train/ nor val/.", remedy="Select its parent."))
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data"
        await pilot.pause()
        await pilot.press("s")
        await settle(pilot)
        await settle(pilot)
        app.clear_notifications()
        assert "/data has neither train/ nor val/." in shown(app)
        app.screen.query_one("#source", Input).value = "/data/x"
        await settle(pilot)
        assert "neither train/" not in shown(app)


@pytest.mark.parametrize(("ready", "style"), [(True, "primary"), (False, "dim")])
def test_the_keys_of_the_form_are_dim_where_they_do_nothing(ready: bool, style: str) -> None:
    """As in the footer."""
    lines = form_lines(PanelArea(80, 20, BRAILLE), "oss://bucket/dataset", "", ready=ready)
    assert [line.pieces[0] for line in lines[:3]] == [(f" {key}  ", style) for key in "soa"]


@pytest.mark.parametrize("text", ["~nobody-of-this-name/pictures", "x" * 300])
async def test_a_source_that_cannot_be_a_path_ends_nothing(make_app: AppMaker, text: str) -> None:
    services = FakeServices(plan=ConsoleError(f"{text} does not exist."))
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = text
        await pilot.press("o")
        await pilot.pause()
        app.screen.query_one("#picked", Input).value = text
        await pilot.press("ctrl+s", "s")
        await settle(pilot)
        assert services.planned == [UploadSettings(source=Path(text))]
        assert "does not exist" in shown(app)


async def test_another_profile_has_its_own_form_and_no_plan_of_the_one_before(make_app: AppMaker) -> None:
    memory.remember("upload", "other", {"recent": ["/data/other"], "prefix": "other-data"})
    services = FakeServices(plan=PLAN)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert "390 samples" in shown(app)
        services.profile = msgspec.structs.replace(SIMULATED, name="other", bucket="other")
        await settle(pilot)
        assert "390 samples" not in shown(app)
        await pilot.press("s")
        await settle(pilot)
    assert services.uploads == []
    assert services.planned[-1] == UploadSettings(source=Path("/data/other"), prefix="other-data")


async def test_a_scan_that_fails_unexpectedly_is_over(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> UploadPlan:
        raise RuntimeError

    services = FakeServices()
    monkeypatch.setattr(services, "plan_upload", fail)
    app = make_app(services, "upload")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.screen.query_one("#source", Input).value = "/data/pictures"
        await pilot.press("s")
        await settle(pilot)
        assert "Scanning" not in shown(app)
