"""`ossconsole upload`: its contract, its exit codes, and that it can be killed at any moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ossconsole.cli.follow import log_progress
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import read_manifest
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.dataset.upload.prepare import PreprocessConfig
from ossconsole.sandbox.faults import Error, FaultPlan, Rule
from tests.cli.uploading import Uploader, finish
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import bucket, settings_for, wanted
from tests.sandboxed import Sandboxed
from tests.waiting import wait_until

SUMMARY_KEYS = {"event", "uploaded", "skipped", "failed", "bytes", "seconds", "samples_per_s"}


@pytest.fixture
def uploader(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest) -> Iterator[Uploader]:
    store = sandboxed_bucket.store()
    yield Uploader(sandboxed_bucket, sandboxed_bucket.profile(f"{request.module.__name__}/{request.node.name}"), store)
    store.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "source")


def recipe(source: Path) -> PreprocessConfig:
    """Of the command's default format."""
    return settings_for(source, SampleFormat.IMAGE_JPEG).preprocessing


def test_the_last_line_is_the_summary(uploader: Uploader, source: Path) -> None:
    (source / "train/ants/x.gif").write_bytes(b"GIF89a")
    done = uploader.run(str(source), "--format", "image-u8", "--json")
    assert done.code == 0, done.err
    summary = done.summary
    assert set(summary) == SUMMARY_KEYS
    assert (summary["event"], summary["uploaded"], summary["skipped"], summary["failed"]) == ("summary", 8, 1, 0)
    assert summary["bytes"] == 8 * 3 * 16 * 16
    assert summary["samples_per_s"] > 0
    assert [line["path"] for line in done.lines if line["event"] == "skipped"] == ["train/ants/x.gif"]


def test_a_broken_picture_makes_the_exit_code_1_and_the_rest_arrives(uploader: Uploader, source: Path) -> None:
    (source / "train/ants/broken.jpg").write_bytes(b"no")
    done = uploader.run(str(source), "--json")
    assert done.code == 1
    assert done.summary["uploaded"] == 8
    assert [(line["path"], line["reason"]) for line in done.lines if line["event"] == "failed"] == [
        ("train/ants/broken.jpg", "not a readable image")
    ]


def test_the_summary_as_text(uploader: Uploader, source: Path) -> None:
    (source / "train/ants/\x1b]0;evil\x07.gif").write_bytes(b"GIF89a")
    done = uploader.run(str(source))
    assert done.code == 0, done.err
    assert "8 uploaded, 1 skipped (0 unchanged, 1 not used), 0 failed" in done.out
    assert "\x1b" not in done.out + done.err


def test_a_dry_run_sends_nothing(uploader: Uploader, source: Path) -> None:
    done = uploader.run(str(source), "--dry-run", "--json")
    assert done.code == 0, done.err
    plan, summary = done.lines
    assert (plan["event"], plan["to_send"], plan["classes"]) == ("plan", 8, ["ants", "bees"])
    assert set(summary) == SUMMARY_KEYS
    assert summary["uploaded"] == 0
    assert uploader.objects() == 0
    shown = uploader.run(str(source), "--dry-run", "--bandwidth=0.0001").out
    assert "8 files: 6 train, 2 val in 2 classes" in shown
    assert "kB (estimated) as image-jpeg at 16 px" in shown
    assert "less than CNY 0.01" in shown
    assert "s at the limit of 0.0001 MB/s" in shown


def test_originals_are_the_files(uploader: Uploader, source: Path) -> None:
    plan = uploader.run(str(source), "--originals", "--dry-run", "--json", size="").lines[0]
    files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.jpg")}
    assert (plan["bytes_to_send"], plan["bytes_estimated"]) == (sum(map(len, files.values())), False)
    done = uploader.run(str(source), "--originals", "--json", size="")
    assert done.code == 0, done.err
    assert bucket(uploader.store, uploader.profile.dataset_prefix) == files
    other = uploader.run(str(source), size="")
    assert other.code == 2
    assert "holds a dataset of image-jpeg of various sizes, not of image-jpeg at 256 px" in other.err
    assert "--format image-jpeg --originals" in other.err


def test_each_format_has_its_own_default_size(uploader: Uploader, source: Path) -> None:
    for arguments, size in (((), 256), (("--format", "image-u8"), 224), (("--quality", "50", "--size", "20"), 20)):
        folder = f"{uploader.profile.dataset_prefix}/{size}"
        done = uploader.run(str(source), *arguments, "--dataset-prefix", folder, "--json", size="")
        assert done.code == 0, done.err
        assert read_manifest(uploader.store, folder).size == size


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["/nowhere"], 1, "/nowhere does not exist"),
        ([], 2, "SRC"),
        (["SOURCE", "--size", "3"], 2, "--size 3"),
        (["SOURCE", "--format", "jpeg"], 2, "jpeg"),
        (["SOURCE", "--plain"], 2, "--to"),
        (["SOURCE", "--to", "x"], 2, "--plain"),
        (["SOURCE", "--keep-ratio", "--format", "tensor-f32"], 2, "--keep-ratio"),
        (["SOURCE", "--keep-ratio"], 2, "image-jpeg always keeps the ratio"),
        (["SOURCE", "--originals"], 2, "--size and --quality do not apply"),  # the tests' --size
        (["SOURCE", "--originals", "--format", "image-u8"], 2, "--originals is for image-jpeg only"),
        (["SOURCE", "--quality", "80", "--format", "tensor-f32"], 2, "--quality is for image-jpeg only"),
        (["SOURCE", "--quality", "101"], 2, "101"),
    ],
)
def test_bad_usage_is_explained(uploader: Uploader, source: Path, arguments: list[str], code: int, text: str) -> None:
    done = uploader.run(*[str(source) if word == "SOURCE" else word for word in arguments])
    assert done.code == code
    assert text in done.err
    assert "Traceback" not in done.err


def test_a_wrong_secret_is_reported_and_not_shown(uploader: Uploader, source: Path) -> None:
    done = uploader.run(str(source), "--json", OSS_ACCESS_KEY_SECRET="s3cr3t-sentinel")
    assert done.code == 1
    assert "SignatureDoesNotMatch" in done.err
    assert done.summary["event"] == "error"
    assert "s3cr3t-sentinel" not in done.out + done.err


def test_what_an_upload_did_before_an_error_is_told(uploader: Uploader, source: Path) -> None:
    (source / "train/ants/broken.jpg").write_bytes(b"no")
    prefix = uploader.profile.dataset_prefix
    refused = Rule(action=Error(code="InvalidAccessKeyId"), method="PUT", key=f"{prefix}/manifest.json")
    with uploader.sandboxed.faults(FaultPlan(rules=[refused])):
        done = uploader.run(str(source), "--json")
        assert done.code == 1
        details, summary, error = done.lines[-3:]
        assert (details["event"], details["stopped"]) == ("details", True)
        assert (summary["uploaded"], summary["failed"], error["event"]) == (8, 1, "error")
        shown = uploader.run(str(source))
    assert "Stopped: 0 uploaded, 8 skipped (8 unchanged" in shown.out
    assert "broken.jpg: not a readable image" in shown.out
    assert "InvalidAccessKeyId" in shown.err


def test_a_log_has_a_line_of_progress_now_and_then(
    sandboxed_bucket: Sandboxed,
    uploader: Uploader,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = create_upload(uploader.profile, sandboxed_bucket.owner, settings_for(source))
    monkeypatch.setattr("ossconsole.cli.follow.LOG_EVERY_S", 0.0)
    monkeypatch.setattr("ossconsole.cli.follow.POLL_S", 0.001)
    job.pause()
    job.start()
    wait_until(lambda: bool(job.understood))
    lines: list[str] = []

    def line() -> str:
        lines.append("uploading")
        job.resume()
        return lines[-1]

    log_progress(job, line)
    assert lines
    assert capsys.readouterr().err.splitlines() == lines


def test_a_signal_ends_it_and_the_next_run_resumes(uploader: Uploader, tmp_path: Path) -> None:
    source = make_pictures(tmp_path / "source", train=150)
    uploaded = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = uploader.start(str(source), "--json", "--bandwidth", "0.05")
        aim = uploader.objects() + 5
        wait_until(lambda aim=aim: uploader.objects() > aim)  # type: ignore[misc]
        process.send_signal(number)
        done = finish(process)
        assert done.code == code
        assert done.summary["event"] == "summary"
        assert done.summary["skipped"] >= uploaded
        uploaded += done.summary["uploaded"]
    rest = uploader.run(str(source), "--json")
    assert rest.code == 0
    assert (rest.summary["uploaded"], rest.summary["skipped"]) == (152 - uploaded, uploaded)
    assert bucket(uploader.store, uploader.profile.dataset_prefix) == wanted(source, recipe(source))


def test_plain_sends_a_folder_as_it_is(uploader: Uploader, source: Path) -> None:
    done = uploader.run(str(source), "--plain", "--to", f"{uploader.profile.dataset_prefix}/plain", "--json")
    assert done.code == 0, done.err
    assert set(done.summary) == SUMMARY_KEYS
    assert (done.summary["uploaded"], done.summary["failed"]) == (8, 0)
    sent = bucket(uploader.store, f"{uploader.profile.dataset_prefix}/plain")
    assert sent == {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.jpg")}
    assert "8 skipped" in uploader.run(str(source), "--plain", "--to", f"{uploader.profile.dataset_prefix}/plain").out


def test_shards(uploader: Uploader, source: Path) -> None:
    done = uploader.run(str(source), "--shards", "4", "--json")
    assert done.code == 0, done.err
    assert set(done.summary) == SUMMARY_KEYS
    assert (done.summary["uploaded"], done.summary["skipped"]) == (8, 0)
    assert "8 skipped" in uploader.run(str(source), "--shards", "4").out
