"""`ossconsole sync` against a real bucket: its plan, what it asks and refuses, its exit codes, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from ossconsole.sandbox.faults import Error, FaultPlan, Rule, Stall
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.sync import SyncComparison
from tests.cli.conftest import lines
from tests.cli.uploading import TIMEOUT_S
from tests.sandboxed import Sandboxed
from tests.waiting import wait_until

SUMMARY_KEYS = {"event", "copied", "deleted", "unchanged", "failed", "bytes", "seconds", "cancelled"}
FILES = {"same": b"same", "changed": b"here", "deep/new": b"123"}
OBJECTS = {"same": b"same", "changed": b"away!", "deep/extra": b"45"}


class Bucket:
    """A prefix of the sandbox, a folder that differs from it, and the command between them."""

    def __init__(self, store: ObjectStore, prefix: str, folder: Path) -> None:
        self.store = store
        self.prefix = prefix
        self.folder = folder
        self.uri = store.uri(prefix.rstrip("/"))
        for name, data in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for name, data in OBJECTS.items():
            store.put(prefix + name, data)

    @property
    def options(self) -> list[str]:
        profile = self.store.profile
        bucket = ["--bucket", profile.bucket, "--region", profile.region]
        return [*bucket, "--standard-endpoint", profile.standard_endpoint]

    def up(self, *options: str) -> int:
        return run_group(ossconsole, ["sync", str(self.folder), self.uri, *self.options, *options])

    def down(self, *options: str) -> int:
        return run_group(ossconsole, ["sync", self.uri, str(self.folder), *self.options, *options])

    @property
    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    @property
    def objects(self) -> dict[str, bytes]:
        keys = [found.key for found in self.store.list_all(self.prefix)]
        return {key.removeprefix(self.prefix): self.store.get(key) for key in keys}


@pytest.fixture
def bucket(
    sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Bucket:
    info = sandboxed_bucket.process.info
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", info.access_key_id)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", info.access_key_secret.reveal())
    return Bucket(sandboxed_bucket.store(), f"sync/{request.node.name}/", tmp_path / "folder")


def test_a_folder_to_the_bucket_deletes_nothing_by_default(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert bucket.up("--json") == 0
    plan, summary = lines(capsys)
    assert (plan["event"], plan["direction"], plan["delete"]) == ("plan", "upload", False)
    assert [plan[name] for name in ("new", "changed", "unchanged", "extra")] == [1, 1, 1, 1]
    assert [plan[f"{name}_bytes"] for name in ("new", "changed", "unchanged", "extra")] == [3, 4, 4, 2]
    assert set(summary) == SUMMARY_KEYS
    assert [summary[name] for name in ("copied", "deleted", "unchanged", "failed", "bytes")] == [2, 0, 1, 0, 7]
    assert bucket.objects == FILES | {"deep/extra": b"45"}
    assert bucket.up() == 0
    assert "Nothing to do." in capsys.readouterr().out


def test_the_bucket_to_a_folder_deletes_what_is_confirmed(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert bucket.down("--delete", "--json") == 2
    assert "--delete would delete 1 file in" in capsys.readouterr().err
    assert bucket.files == FILES
    assert bucket.down("--delete", "--yes") == 0
    out = capsys.readouterr().out
    assert f"From {bucket.uri}/\nTo   {bucket.folder}\n" in out
    assert "only in the target" in out
    assert "Done: 2 copied, 1 deleted, 1 unchanged, 0 failed" in out
    assert bucket.files == OBJECTS


def test_a_dry_run_shows_every_name_and_changes_nothing(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert bucket.up("--dry-run", "--delete", "--json", "--readonly") == 0
    _, *changes, summary = lines(capsys)
    expected = [("copy", "deep/new"), ("replace", "changed"), ("delete", "deep/extra")]
    assert [(one["action"], one["key"]) for one in changes] == [(word, bucket.prefix + name) for word, name in expected]
    assert (summary["copied"], summary["deleted"]) == (0, 0)
    assert bucket.down("--dry-run") == 0
    out = capsys.readouterr().out
    assert "left alone without --delete" in out
    assert f"copy                   2  {bucket.folder}/deep/extra" in out
    assert (bucket.files, bucket.objects) == (FILES, OBJECTS)


@pytest.mark.parametrize(("answer", "code"), [(False, 1), (True, 0)])
def test_in_a_terminal_it_asks_before_it_replaces(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: bool,
    code: int,
) -> None:
    asked = []

    def confirm(text: str, **_: object) -> bool:
        asked.append(text)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.confirm", confirm)
    assert bucket.up() == code
    assert asked == ["Continue?"]
    assert f"replace                4  {bucket.prefix}changed" in capsys.readouterr().out
    assert (bucket.objects["changed"] == b"here") is answer
    assert bucket.up() == (0 if answer else 1)
    assert len(asked) == (1 if answer else 2)  # nothing to replace any more


def test_an_empty_source_deletes_nothing(bucket: Bucket, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    uri, bucket.uri = bucket.uri, f"{bucket.uri}-mistyped"
    assert bucket.down("--delete", "--yes") == 1
    assert "is empty, so --delete would delete all of" in capsys.readouterr().err
    bucket.uri, bucket.folder = uri, tmp_path
    (tmp_path / "empty").mkdir()
    bucket.folder = tmp_path / "empty"
    assert bucket.up("--delete", "--yes") == 1
    assert bucket.objects == OBJECTS


def test_what_is_not_copied_keeps_the_rest_from_being_deleted(
    bucket: Bucket, sandboxed_bucket: Sandboxed, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Rule(action=Error(code="AccessDenied"), method="PUT", key=f"{bucket.prefix}deep/new")
    with sandboxed_bucket.faults(FaultPlan(rules=(refused,))):
        assert bucket.up("--delete", "--yes", "--json") == 1
    captured = capsys.readouterr()
    assert "Nothing was deleted" in captured.err
    failed = [msgspec.json.decode(line) for line in captured.out.splitlines() if '"failed",' in line]
    assert [(one["path"], one["code"]) for one in failed] == [(f"{bucket.prefix}deep/new", "AccessDenied")]
    assert bucket.objects["deep/extra"] == OBJECTS["deep/extra"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a", "b"], "One of SRC and DST must be a folder"),
        (["oss://127/a", "oss://127/b"], "One of SRC and DST must be a folder"),
        (["/nowhere", "oss://127/b"], "/nowhere does not exist"),
        ([__file__, "oss://127/b"], "For one file use `upload --plain`."),
        (["", "oss://127/b"], "SRC or DST is empty"),
        (["oss://127/b", ""], "SRC or DST is empty"),
        ([".", "oss://"], "oss:// does not name a bucket"),
        ([".", "oss://other/b"], "is in another bucket"),
        (["--readonly", ".", "oss://127/b"], "--readonly disables uploads"),
    ],
)
def test_bad_usage_is_explained(
    bucket: Bucket, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert run_group(ossconsole, ["sync", *arguments, *bucket.options]) == 2
    assert text in capsys.readouterr().err


def test_a_comparison_that_is_cancelled_ends_in_a_summary_too(
    bucket: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SyncComparison, "work", lambda job: (job.cancel(), job.check_cancelled()))
    assert bucket.up("--json") == 130
    (summary,) = lines(capsys)
    assert set(summary) == SUMMARY_KEYS
    assert summary["cancelled"] is True


def test_ctrl_c_leaves_whole_objects_only_and_the_next_one_resumes(
    bucket: Bucket, sandboxed_bucket: Sandboxed, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytes(50_000)
    for number in range(60):
        (bucket.folder / f"{number:02}").write_bytes(content)
    command = [sys.executable, "-m", "ossconsole", "sync", str(bucket.folder), bucket.uri, *bucket.options]
    slow = Rule(action=Stall(seconds=0.1), method="PUT", key=f"{bucket.prefix}*")
    with sandboxed_bucket.faults(FaultPlan(rules=(slow,))):
        process = subprocess.Popen(
            [*command, "--parallelism", "1", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: len(bucket.objects) > 5)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, errors
    summary = msgspec.json.decode(out.splitlines()[-1])
    assert summary["cancelled"] is True
    there = [data for name, data in bucket.objects.items() if name.isdigit()]
    assert 0 < len(there) < 60
    assert set(there) == {content}
    assert bucket.up("--json") == 0
    resumed = lines(capsys)[-1]
    assert resumed["unchanged"] >= len(there)
    assert bucket.objects == bucket.files | {"deep/extra": b"45"}
