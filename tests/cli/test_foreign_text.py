"""What others wrote (replies, names, files, exceptions) reaches the terminal as text, through every command."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oss2 import exceptions

import ossconsole.cli
from ossconsole.cli import doctor, output
from ossconsole.cli.app import ossconsole as group
from ossconsole.cli.output import run_group
from ossconsole.config.checks import fail, ok, warn
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import config_dir
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import translate
from ossconsole.telemetry import events
from ossconsole.telemetry.events import to_log_line
from ossconsole.telemetry.runs import RunRecord, record_path
from tests.foreign import FOREIGN, WORST, acting
from tests.sandboxed import Sandboxed, set_keys

SOME = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(SOME, max_examples=4)
FLAGS = ("--bucket=127", "--region=cn-hangzhou", "--standard-endpoint=http://0.0.1:9", "--plain-http=allowed")
ACCELERATED = ["--accelerated-endpoint=http://0.0.2:9"]


def printed(*arguments: str) -> tuple[str, str]:
    """What the command prints to stdout and stderr, run in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        run_group(group, arguments)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in streams)
    return out, err


def check(*arguments: str) -> None:
    """Neither stream does anything to a terminal; with --json stdout is JSON."""
    out, err = printed(*arguments)
    assert not acting(out), arguments
    assert not acting(err), arguments
    if "--json" in arguments:
        for line in out.splitlines():
            json.loads(line)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", "LTAI-of-a-test")
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "a-secret-of-a-test")


# Where foreign text enters


@given(FOREIGN, FOREIGN, FOREIGN, FOREIGN)
def test_errors_made_of_replies(code: str, text: str, key: str, endpoint: str) -> None:
    ec = request_id = code
    reply = {"Code": code, "Message": text, "EC": ec, "RequestId": request_id}
    found = [
        translate(exceptions.ServerError(403, {"x-oss-request-id": request_id}, text, reply), key, endpoint),
        translate(exceptions.RequestError(OSError(5, text)), key, endpoint),
        translate(exceptions.InconsistentError(text, request_id), key, endpoint),
        translate(exceptions.ClientError(text), key, endpoint),
        ConsoleError(text, remedy=code),
    ]
    for error in found:
        assert not acting(str(error) + error.message + error.remedy)
        assert "\n" not in str(error)


@given(FOREIGN, FOREIGN)
def test_checks(detail: str, remedy: str) -> None:
    for found in (ok("name", detail), warn("name", detail, remedy), fail("name", detail, remedy)):
        assert not acting(found.detail + found.remedy)


@given(FOREIGN, FOREIGN)
def test_the_event_log(text: str, more: str) -> None:
    for event in (
        events.Run(time=0, run=text, version=more, settings={}, pid=1, host=text),
        events.Switch(time=0, endpoint=EndpointKind.STANDARD, reason=text, step=1),
        events.Checkpoint(time=0, step=1, key=text, bytes=1, seconds=1.0, stable_key=text),
        events.InfoEvent(time=0, message=text, step=1),
        events.WarningEvent(time=0, message=text, remedy=more, step=1),
        events.ErrorEvent(time=0, message=text, remedy=more, step=1),
    ):
        line = to_log_line(event)
        assert line is not None
        assert not acting(line.text)


# What commands print


@given(st.text())
def test_one_line_is_printed_as_one_line(text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stream):
        output.say(text)
    stream.flush()
    shown = stream.buffer.getvalue().decode()
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()


@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.none()))
def test_json_is_read_back_as_it_was(value: dict[str, object]) -> None:
    line = output.json_line(value)
    assert line.isprintable()
    assert json.loads(line) == value


def test_commands_print_through_these_two_alone() -> None:
    """Else the next command forgets the guard."""
    for path in Path(ossconsole.cli.__file__).parent.rglob("*.py"):
        if path.name == "output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}, (
                    path
                )


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Every request is refused by a server that fills its reply with the given text."""
    said = [""]

    def call(store: ObjectStore, action: str, _request: object) -> NoReturn:
        reply = {"Code": said[0], "Message": said[0], "EC": said[0], "RequestId": said[0]}
        raise translate(exceptions.ServerError(403, {}, said[0], reply), action, store._label)

    monkeypatch.setattr(ObjectStore, "call", call)
    monkeypatch.setattr(doctor, "machine_jobs", lambda _profile: [])
    return lambda text: said.__setitem__(0, text)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    for name in ("train/ants/1.png", "val/ants/2.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(path)
    return tmp_path / "pictures"


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["for people", "json"])
@pytest.mark.parametrize(
    "command", ["ls", "train", "upload", "upload --dry-run", "upload --plain --to x/", "bench", "warm"]
)
def test_a_servers_text(
    command: str, form: tuple[str, ...], refusing: Callable[[str], None], pictures: Path, tmp_path: Path
) -> None:
    name, *options = command.split()
    source = [str(pictures)] if name == "upload" else ACCELERATED if name == "warm" else []

    @FEW
    @given(FOREIGN)
    def tried(text: str) -> None:
        refusing(text)
        check(name, *source, *options, *form, *FLAGS, f"--checkpoint-prefix={tmp_path.name}")

    tried()


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["for people", "json"])
def test_a_servers_text_in_the_doctors_checks(form: tuple[str, ...], refusing: Callable[[str], None]) -> None:
    refusing(WORST)
    with contextlib.suppress(SystemExit):
        check("doctor", *form, *FLAGS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["{}"],
        ["ls", "--{}"],
        ["ls", "oss://{}/x"],
        ["ls", "--profile", "{}"],
        ["ls", "--standard-endpoint", "{}"],
        ["train", "--epochs", "{}"],
        ["train", "--weights", "{}", "--bucket", "{}"],
        ["upload", "{}", "--plain", "--to", "x/"],
        ["upload", "{}", "--dry-run"],
        ["bench", "--dataset", "{}", "--json"],
        ["warm", "--prefix", "{}"],
        ["status", "{}"],
        ["export", "{}", "--csv"],
        ["config", "init", "--name", "{}", "--region", "{}", "--bucket", "{}"],
        ["sandbox", "--dir", "{}", "--port", "x"],
    ],
    ids=" ".join,
)
def test_what_was_typed(arguments: Sequence[str], refusing: Callable[[str], None]) -> None:
    flags = (*FLAGS, *ACCELERATED) if arguments[0] == "warm" else FLAGS if arguments[0] in {"upload", "bench"} else ()

    @FEW
    @given(FOREIGN)
    def tried(text: str) -> None:
        refusing("")
        check(*(argument.format(text) for argument in arguments), *flags)

    tried()


def test_profiles_of_any_name(refusing: Callable[[str], None]) -> None:
    path = config_dir() / "profiles.toml"
    path.parent.mkdir(parents=True, exist_ok=True)

    @SOME
    @given(st.text(st.sampled_from("\x1b\x9b\u202e\x07]52;a"), min_size=1, max_size=20), FOREIGN)
    def tried(name: str, other: str) -> None:
        refusing(other)
        quoted = json.dumps(name)
        values = {
            "region": "cn-hangzhou",
            "bucket": "127",
            "standard_endpoint": "http://0.0.1:9",
            "dataset_prefix": name,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path.write_text("\n".join([f"active = {quoted}", f"[profiles.{quoted}]", *lines]))
        for arguments in (["ls"], ["ls", "--json"], ["config", "show"], ["config", "validate"], ["ls", "--profile=x"]):
            check(*arguments)

    tried()


def test_files_of_any_name(refusing: Callable[[str], None], tmp_path: Path) -> None:
    @FEW
    @given(FOREIGN, st.integers(0))
    def tried(text: str, number: int) -> None:
        name = text.replace("/", "").encode()[:80].decode(errors="ignore")
        folder = tmp_path / str(number % 1000)
        inside = folder / "train" / f"c{name}"
        inside.mkdir(parents=True, exist_ok=True)
        for each in (f"{name}.jpg", f"{name}.txt", "\udcff.png"):
            (inside / each).write_bytes(b"no picture")
        refusing("")
        for form in ([], ["--json"]):
            check("upload", str(folder), "--dry-run", *form, *FLAGS)

    tried()


def test_uploads_of_files_of_any_name(
    sandboxed_bucket: Sandboxed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, profile = sandboxed_bucket.owner(), sandboxed_bucket.profile("foreign-text")
    set_keys(monkeypatch, owner)
    flags = ("--bucket", profile.bucket, "--region", profile.region, "--standard-endpoint", profile.standard_endpoint)
    inside = tmp_path / "train" / "ants"
    inside.mkdir(parents=True)
    for name in (f"{WORST}.jpg".replace("/", ""), "plain.jpg"):
        (inside / name).write_bytes(b"no picture")
    for form in ([], ["--json"]):
        check("upload", str(tmp_path), "--workers", "1", *form, *flags, "--dataset-prefix", f"ft{WORST}")
        check("upload", str(tmp_path), "--plain", "--to", "foreign-text/", *form, *flags)
        check("ls", "foreign-text/", "-r", *form, *flags)


def test_a_run_record_of_anybody(home: Path) -> None:
    record = RunRecord(record_path("r1"))
    record.append(events.Run(time=0, run="r1", version=WORST, settings={}, pid=1, host=WORST, bucket=WORST))
    record.append(events.Checkpoint(time=1, step=1, key=WORST, bytes=1, seconds=1.0, stable_key=WORST))
    record.append(events.ErrorEvent(time=2, message=WORST, remedy=WORST, step=1))
    record.close()
    check("status")
    check("status", "--json")


def test_usage_errors_and_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Exception] = [click.UsageError(WORST), click.BadParameter(WORST), ConsoleError(WORST)]

    @click.command()
    @click.option("--json", is_flag=True)
    def command(json: bool) -> NoReturn:
        raise raised[0]

    monkeypatch.setattr(group, "get_command", lambda *_: command)
    while raised:
        check("x", "--json")
        raised.pop(0)


def test_what_python_prints_itself() -> None:
    code = (
        "import logging, threading, warnings\n"
        "from ossconsole.cli import output\n"
        "output.guard_stderr()\n"
        f"text = {WORST!r}\n"
        "logging.getLogger('library').warning('said %s', text)\n"
        "warnings.warn(text)\n"
        "def broken(): raise ValueError(text)\n"
        "thread = threading.Thread(target=broken); thread.start(); thread.join()\n"
        "broken()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count(r"\x1b]52;c;") >= 4
    assert not acting(done.stderr)
