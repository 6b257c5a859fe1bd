"""`ls` against a real bucket: lines, JSON, limits, and what it says when it cannot."""

from __future__ import annotations

import msgspec
import pytest

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from tests.cli.conftest import lines
from tests.sandboxed import Sandboxed, set_keys


@pytest.fixture
def bucket(sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that lead to a bucket with something in it."""
    store = sandboxed_bucket.store()
    for key, data in (("ls/a", b"1"), ("ls/b\x1b[31m", b"22"), ("ls/dir/c", b"333")):
        store.put(key, data)
    store.close()
    info = sandboxed_bucket.process.info
    set_keys(monkeypatch, info)
    endpoint = info.endpoints["standard"]
    return ["--bucket", info.bucket, "--region", info.region, "--standard-endpoint", endpoint]


def test_folders_and_objects_as_json(bucket: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["ls", "ls/", "--json", *bucket]) == 0
    folder, first, second, summary = lines(capsys)
    assert folder == {"type": "folder", "key": "ls/dir/"}
    assert (first["type"], first["key"], first["size"], first["storage_class"]) == ("object", "ls/a", 1, "Standard")
    assert second["key"] == "ls/b\x1b[31m"
    assert summary == {"event": "summary", "folders": 1, "objects": 2, "bytes": 3, "truncated": False}


def test_a_folder_is_listed_with_or_without_its_slash(bucket: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["ls", "ls/dir", "--json", *bucket]) == 0
    assert [entry.get("key") for entry in lines(capsys)] == ["ls/dir/c", None]
    assert run_group(ossconsole, ["ls", "/ls/dir", "--json", *bucket]) == 0
    assert [entry.get("key") for entry in lines(capsys)] == ["ls/dir/c", None]
    assert run_group(ossconsole, ["ls", "ls/di", "--json", *bucket]) == 0  # what keys begin with
    assert [entry.get("key") for entry in lines(capsys)] == ["ls/dir/", None]
    assert run_group(ossconsole, ["ls", "ls/a", "--json", *bucket]) == 0
    assert [entry.get("key") for entry in lines(capsys)] == ["ls/a", None]


def test_recursive_limited_and_by_uri(bucket: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["ls", "oss://127/ls/", "-r", "--limit", "2", "--json", *bucket]) == 0
    *found, summary = lines(capsys)
    assert [entry["key"] for entry in found] == ["ls/a", "ls/b\x1b[31m"]
    assert summary["truncated"] is True
    assert run_group(ossconsole, ["ls", "ls/", "-r", "--json", *bucket]) == 0
    assert lines(capsys)[-1]["objects"] == 3


def test_lines_for_people_hold_nothing_that_acts_on_a_terminal(
    bucket: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_group(ossconsole, ["ls", "ls/", *bucket]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out
    assert "ls/b\\x1b[31m" in shown.out
    assert "2 objects, 3 bytes, 1 folder" in shown.err


def test_another_bucket_and_a_wrong_secret(
    bucket: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_group(ossconsole, ["ls", "oss://other/x", *bucket]) == 2
    assert "--bucket other" in capsys.readouterr().err
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "wrong")
    assert run_group(ossconsole, ["ls", "--json", *bucket]) == 1
    shown = capsys.readouterr()
    assert "SignatureDoesNotMatch" in shown.err
    assert msgspec.json.decode(shown.out.splitlines()[-1])["event"] == "error"
