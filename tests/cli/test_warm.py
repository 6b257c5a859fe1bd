"""`ossconsole warm` as a user runs it: its lines, its exit codes, Ctrl-C and resume."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from ossconsole.dataset.formats import SampleFormat
from tests.cli.conftest import lines
from tests.cli.uploading import TIMEOUT_S
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import settings_for, upload
from tests.sandboxed import Sandboxed, sandboxed, set_keys

SAMPLES = 8


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sandboxed, list[str]]]:
    """A sandbox with a cache and a dataset, and the options that lead to it."""
    with sandboxed(tmp_path_factory.mktemp("warm"), arguments=("--cache-mb", "64")) as running:
        profile = running.profile("warm")
        source = make_pictures(tmp_path_factory.mktemp("source"))
        upload(profile, running.owner, settings_for(source, SampleFormat.IMAGE_JPEG))
        options = ["--bucket", profile.bucket, "--region", profile.region, "--dataset-prefix", profile.dataset_prefix]
        for kind, endpoint in profile.endpoints.items():
            options += [f"--{kind}-endpoint", endpoint]
        yield running, options


@pytest.fixture
def flags(caching: tuple[Sandboxed, list[str]], monkeypatch: pytest.MonkeyPatch, home: Path) -> list[str]:
    running, options = caching
    owner = running.owner()
    set_keys(monkeypatch, owner)
    return options


def test_plan_and_summary_as_json(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["warm", "--dry-run", "--json", *flags]) == 0
    (plan,) = lines(capsys)
    assert (plan["event"], plan["objects"], plan["todo"], plan["fits"], plan["quota_gb"]) == ("plan", 8, 8, True, 50)
    for read, skipped in ((SAMPLES, 0), (0, SAMPLES)):
        assert run_group(ossconsole, ["warm", "--json", *flags]) == 0
        summary = lines(capsys)[-1]
        assert (summary["event"], summary["read"], summary["skipped"], summary["failed"]) == (
            *("summary", read, skipped),
            0,
        )
    assert run_group(ossconsole, ["warm", "--again", "--json", *flags]) == 0
    assert lines(capsys)[-1]["read"] == SAMPLES


def test_plan_and_summary_as_text(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["warm", "--prefix", "warm/data/train", *flags]) == 0
    text = capsys.readouterr().out
    assert "oss://127/warm/data/train/, listed: 6 objects" in text
    assert "It fits: the accelerator in cn-sandbox-a has 50 GB." in text
    assert "Done: 6 read, 0 skipped, 0 failed" in text


def test_without_an_accelerated_endpoint_there_is_a_remedy(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    at = flags.index("--accelerated-endpoint")
    assert run_group(ossconsole, ["warm", *flags[:at], *flags[at + 2 :]]) == 2
    assert "has no accelerated endpoint" in capsys.readouterr().err


def test_ctrl_c_ends_it_and_the_next_one_resumes(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # So slow that it cannot end by itself.
    command = [sys.executable, "-m", "ossconsole", "warm", "--json", "--bandwidth", "0.001", "--parallelism", "1"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = []
    for line in process.stdout:
        found.append(msgspec.json.decode(line))
        if found[-1]["event"] == "progress" and found[-1]["items_done"] and not process.poll():
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, errors
    assert "run the same command again to resume" in errors
    summary = msgspec.json.decode(rest.splitlines()[-1])
    assert summary["cancelled"] is True
    read = summary["read"]
    assert 0 < read < SAMPLES
    assert run_group(ossconsole, ["warm", "--json", *flags]) == 0
    resumed = lines(capsys)[-1]
    assert (resumed["read"], resumed["skipped"]) == (SAMPLES - read, read)
