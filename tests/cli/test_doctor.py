"""`ossconsole doctor --json` in a process of its own: the failing check is the right one, and nothing else fails."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.metadata import METADATA_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.sample_data import make_sample_images
from ossconsole.sandbox.faults import FaultPlan
from tests.sandboxed import Sandboxed, read_log
from tests.terminal.screen import Terminal

# Machine checks that depend on where the tests run; a GPU box and a laptop differ in them.
_MACHINE = {"torch", "cuda", "nvml", "gpu memory", "userfaultfd", "shared memory", "open files", "disk", "terminal"}


class Report:
    """What one run printed."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.stderr = done.stderr
        self.text = done.stdout
        self.checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    @property
    def failing(self) -> set[str]:
        return {name for name, check in self.checks.items() if check["status"] == "fail" and name not in _MACHINE}

    def detail(self, name: str) -> str:
        return str(self.checks[name]["detail"])


@pytest.fixture(autouse=True)
def no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading torch takes seconds; its check has tests of its own."""
    (tmp_path / "torch.py").write_text("raise ImportError('not in this test')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def doctor(profile: Profile | None, environ: Mapping[str, str], **changes: str) -> Report:
    arguments = [sys.executable, "-m", "ossconsole", "doctor", "--json"]
    if profile is not None:
        values = {
            "bucket": profile.bucket,
            "region": profile.region,
            "standard-endpoint": profile.standard_endpoint,
            "accelerated-endpoint": profile.accelerated_endpoint or "",
            "dataset-prefix": profile.dataset_prefix,
            "checkpoint-prefix": profile.checkpoint_prefix,
        } | {name.replace("_", "-"): value for name, value in changes.items()}
        for name, value in values.items():
            arguments += [f"--{name}", value]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ}
    )
    return Report(done)


def pair(sandbox: Sandboxed, key: str = "") -> dict[str, str]:
    found = {"": sandbox.owner, "wrong secret": sandbox.wrong_secret}.get(key) or sandbox.keys[key]
    credentials = found()
    token = credentials.security_token
    return {
        "OSS_ACCESS_KEY_ID": credentials.access_key_id,
        "OSS_ACCESS_KEY_SECRET": credentials.access_key_secret.reveal(),
        **({"OSS_SESSION_TOKEN": token.reveal()} if token else {}),
    }


def test_on_the_embedded_sandbox_nothing_fails(home: Path) -> None:
    make_sample_images(home / "state" / "sample-pictures", train=10, val=10)  # fewer than it would draw
    report = doctor(None, {})
    assert report.failing == set()
    assert "sandbox" in report.stderr
    for name in ("settings", "credentials", "endpoint standard", "endpoint accelerated", "clock", "bucket", "dataset"):
        assert report.checks[name]["status"] == "ok", report.checks[name]
    assert report.code == (1 if any(check["status"] == "fail" for check in report.checks.values()) else 0)


def test_every_check_has_the_four_keys(sandboxed_bucket: Sandboxed) -> None:
    report = doctor(sandboxed_bucket.profile("doctor"), pair(sandboxed_bucket))
    for check in report.checks.values():
        assert set(check) == {"name", "status", "detail", "remedy"}
        assert check["detail"]
        assert check["status"] in {"ok", "warn", "fail"}
    assert report.failing == set()


@pytest.mark.parametrize(
    ("key", "check", "words"),
    [
        ("wrong secret", "credentials accepted", "SignatureDoesNotMatch"),
        ("expired", "credentials accepted", "SecurityTokenExpired"),
        ("read-only", "permissions", "AccessDenied"),
        ("no-delete", "permissions", "delete"),
    ],
)
def test_a_key_that_is_refused(sandboxed_bucket: Sandboxed, key: str, check: str, words: str) -> None:
    environ = pair(sandboxed_bucket, key)
    report = doctor(sandboxed_bucket.profile("doctor"), environ)
    assert report.failing == {check}
    assert report.code == 1
    assert words in report.detail(check)
    assert "request id" in report.detail(check)
    assert report.checks[check]["remedy"]
    for secret in (environ["OSS_ACCESS_KEY_SECRET"], environ.get("OSS_SESSION_TOKEN")):
        assert secret is None or len(secret) < 8 or secret not in report.text + report.stderr


def test_a_wrong_region(sandboxed_bucket: Sandboxed) -> None:
    report = doctor(sandboxed_bucket.profile("doctor"), pair(sandboxed_bucket), region="cn-elsewhere")
    assert report.failing == {"region"}
    assert "0002-00000226" in report.detail("region")
    assert "request id" in report.detail("region")


def test_a_clock_that_is_off(sandboxed_bucket: Sandboxed) -> None:
    with sandboxed_bucket.faults(FaultPlan(clock_skew_s=1200)):
        report = doctor(sandboxed_bucket.profile("doctor"), pair(sandboxed_bucket))
    assert report.failing == {"clock"}
    assert "1200 s behind OSS" in report.detail("clock")
    assert "RequestTimeTooSkewed" in report.detail("clock")
    assert "request id" in report.detail("clock")
    assert "timedatectl" in report.checks["clock"]["remedy"]


def test_on_an_instance_its_role_is_found_and_its_region_compared(
    sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(METADATA_VARIABLE, sandboxed_bucket.process.info.metadata_endpoint or "")
    report = doctor(sandboxed_bucket.profile("doctor"), {})
    assert report.failing == set()
    assert "ECS RAM role sandbox-role" in report.detail("credentials")
    assert report.checks["instance"]["status"] == "ok"
    elsewhere = doctor(sandboxed_bucket.profile("doctor"), {}, region="cn-elsewhere")
    assert elsewhere.checks["instance"]["status"] == "warn"
    assert "traffic fees" in elsewhere.detail("instance")


def test_a_dead_port(sandboxed_bucket: Sandboxed) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        dead = f"http://0.0.1:{held.getsockname()[1]}"
        report = doctor(sandboxed_bucket.profile("doctor"), pair(sandboxed_bucket), accelerated_endpoint=dead)
    assert report.failing == {"endpoint accelerated"}
    assert "TCP" in report.detail("endpoint accelerated")


def test_an_endpoint_that_is_silent_does_not_hold_the_others_up(sandboxed_bucket: Sandboxed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"http://0.0.1:{silent.getsockname()[1]}"
        report = doctor(sandboxed_bucket.profile("doctor"), pair(sandboxed_bucket), accelerated_endpoint=mute)
    assert report.failing == {"endpoint accelerated"}
    assert report.checks["endpoint standard"]["status"] == "ok"


def test_without_credentials(sandboxed_bucket: Sandboxed) -> None:
    report = doctor(sandboxed_bucket.profile("doctor"), {})
    assert report.failing == {"credentials"}
    assert "OSS_ACCESS_KEY_ID" in report.detail("credentials")


def test_a_broken_settings_file(home: Path) -> None:
    (home / "config" / "profiles.toml").write_text("[profiles.a]\nregio = 'x'\n")
    report = doctor(None, {})
    assert report.failing == {"settings"}
    assert "line 2" in report.detail("settings")


def test_a_broken_connector_config(home: Path, sandboxed_bucket: Sandboxed) -> None:
    (home / "config" / "connector.json").write_text('{"logLevel": 9}')
    report = doctor(sandboxed_bucket.profile("doctor"), pair(sandboxed_bucket))
    assert report.failing == {"connector config"}


def test_with_readonly_nothing_is_written(sandboxed_bucket: Sandboxed) -> None:
    """The option stands before the command, where it is the same."""
    known = len(list(read_log(sandboxed_bucket.process.log_path)))
    profile = sandboxed_bucket.profile("doctor")
    options = ["--bucket", profile.bucket, "--region", profile.region, "--standard-endpoint", profile.standard_endpoint]
    done = subprocess.run(
        [sys.executable, "-m", "ossconsole", "--readonly", *options, "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **pair(sandboxed_bucket)},
    )
    assert Report(done).failing == set()
    operations = {record.operation for record in list(read_log(sandboxed_bucket.process.log_path))[known:]}
    assert operations
    assert all(operation.startswith(("Get", "Head", "List")) for operation in operations), operations


def test_for_people_each_check_is_a_line_with_its_remedy(sandboxed_bucket: Sandboxed) -> None:
    profile = sandboxed_bucket.profile("doctor")
    options = ["--bucket", profile.bucket, "--region", "cn-elsewhere", "--standard-endpoint", profile.standard_endpoint]
    done = subprocess.run(
        [sys.executable, "-m", "ossconsole", "doctor", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **pair(sandboxed_bucket)},
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("✗ fail  region"))
    assert "→ Check the region" in lines[at + 1]


def test_in_a_small_terminal_it_reports_the_required_size(
    sandboxed_bucket: Sandboxed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in pair(sandboxed_bucket).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    profile = sandboxed_bucket.profile("doctor")
    place = ["--bucket", profile.bucket, "--region", profile.region, "--standard-endpoint", profile.standard_endpoint]
    with Terminal("ossconsole", "doctor", *place, columns=100, rows=20) as terminal:
        terminal.finish()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.output.decode())
    assert "100x20, xterm-256color" in shown
    assert "Panels are left out below 80x24." in " ".join(shown.split())
    # Long details are wrapped; only a word without a space may be too long for a line.
    assert [line for line in shown.splitlines() if len(line) > 100 and " " in line[30:].strip()] == []


def test_without_credentials_the_endpoints_are_tried_as_far_as_they_can_be(sandboxed_bucket: Sandboxed) -> None:
    profile = msgspec.structs.replace(sandboxed_bucket.profile("doctor"), accelerated_endpoint="http://0.0.2:9")
    report = doctor(profile, {METADATA_VARIABLE: "http://127.0.0.1:9"})
    assert report.failing == {"credentials", "endpoint accelerated"}
    assert "TCP" in report.detail("endpoint standard")
    assert "no signed request: no credentials" in report.detail("endpoint standard")
    assert "refused" in report.detail("endpoint accelerated")
