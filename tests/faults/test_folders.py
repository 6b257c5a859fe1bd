"""Every command where a folder of ours is unusable: no traceback, the right exit code, and what needs it not works.

The rule: a command that only reads needs none of the folders. One that writes says which folder, why, and what helps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from _pytest.mark.structures import ParameterSet

from ossconsole.config.connector import save_connector_config
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.profiles import Profile, Settings, save_settings
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RunRecord
from tests.cli.consoles import Console
from tests.faults.confined import CONDITIONS, FOREIGN, FULL, IN_THE_WAY, MISSING, READ_ONLY, is_possible
from tests.sandboxed import Sandboxed, set_keys, small_dataset

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(not is_possible(), reason="needs the rights to mount and to give files to another user"),
]
SIDE, SAMPLES = 32, 16
STATE, CONFIG, LOGS = "state", "config", "state/logs"
UNUSABLE = {READ_ONLY, FOREIGN, FULL, IN_THE_WAY}
UNWRITABLE = {READ_ONLY, FOREIGN, IN_THE_WAY}


@dataclass(frozen=True)
class Command:
    """`refused` are the conditions, by folder, in which it cannot do its work; `bucket`: it gets the bucket's flags."""

    arguments: tuple[str, ...]
    refused: dict[str, set[str]]
    bucket: bool = True


Note = Callable[[str, object], None]
NOTHING: dict[str, set[str]] = {}
COMMANDS = {
    "config path": Command(("config", "path"), NOTHING, bucket=False),
    "config show": Command(("config", "show"), {CONFIG: {IN_THE_WAY}}),
    "config validate": Command(("config", "validate"), {CONFIG: {IN_THE_WAY}}, bucket=False),
    "config init": Command(
        ("config", "init", "--name", "new", "--region", "cn-hangzhou", "--bucket", "a-bucket"),
        {CONFIG: UNUSABLE},
        bucket=False,
    ),
    "ls": Command(("ls",), {CONFIG: {IN_THE_WAY}}),
    "status": Command(("status",), {STATE: {IN_THE_WAY}}, bucket=False),
    "export": Command(("export", "--csv", "--output", "{out}/run.csv"), {STATE: {IN_THE_WAY}}, bucket=False),
    "upload": Command(("upload", "{pictures}", "--size", "32"), {STATE: UNUSABLE, CONFIG: {IN_THE_WAY}}),
    "upload --dry-run": Command(("upload", "{pictures}", "--size", "32", "--dry-run"), {CONFIG: {IN_THE_WAY}}),
    "upload --plain": Command(("upload", "{pictures}", "--plain", "--to", "plain"), {CONFIG: {IN_THE_WAY}}),
    "train": Command(
        ("train", "--max-steps", "1", "--batch-size", "8", "--workers", "1"),
        {STATE: UNWRITABLE, LOGS: UNWRITABLE, CONFIG: {IN_THE_WAY}},
    ),
    "bench": Command(
        (
            *("bench", "--endpoint", "standard", "--workers", "1", "--batch-size", "8", "--mode", "loader"),
            *("--no-limits", "--seconds", "0.2", "--rounds", "1"),
        ),
        {STATE: UNWRITABLE, LOGS: UNWRITABLE, CONFIG: {IN_THE_WAY}},
    ),
    "sandbox": Command(
        ("sandbox", "--dir", "{state}/sandbox", "--until-stdin-closes"), {STATE: UNUSABLE}, bucket=False
    ),
}
_QUICK = {
    *((STATE, READ_ONLY, name) for name in ("config path", "ls", "status", "export", "upload", "sandbox")),
    *((CONFIG, READ_ONLY, name) for name in ("config show", "config init", "ls")),
    *((CONFIG, IN_THE_WAY, name) for name in ("config path", "ls")),
    (STATE, FOREIGN, "status"),
    (STATE, FULL, "upload"),
    (STATE, FULL, "train"),
    (LOGS, READ_ONLY, "bench"),
}


def cells(names: tuple[str, ...]) -> list[ParameterSet]:
    return [
        pytest.param(
            *(folder, condition, name),
            id=f"{folder}-{condition}-{name}",
            marks=[] if (folder, condition, name) in _QUICK else [pytest.mark.slow],
        )
        for folder in (STATE, CONFIG, LOGS)
        for condition in CONDITIONS
        for name in names
    ]


@pytest.fixture(scope="module")
def dataset(sandboxed_bucket: Sandboxed) -> Profile:
    """A small dataset in the bucket, and the profile that leads to it."""
    return small_dataset(sandboxed_bucket, "folders", samples=SAMPLES, side=SIDE)


@pytest.fixture
def place(home: Path, dataset: Profile, sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose folders hold what a user's hold: settings, a connector configuration, a run and logs."""
    pair = sandboxed_bucket.owner()
    set_keys(monkeypatch, pair)
    save_settings(Settings())
    save_connector_config({})
    (home / "state" / "runs").mkdir()
    (home / "state" / "logs").mkdir()
    with RunRecord(home / "state" / "runs" / "20260101-000000-abcd.jsonl") as record:
        record.append(events.Run(time=1.0, run="20260101-000000-abcd", version="1", pid=1, host="another"))
        record.append(events.State(time=2.0, state=RunState.FINISHED))
    yield home
    for path in (home, *home.rglob("*")):  # what was given to another user
        os.chown(path, os.geteuid(), os.getegid())


def prepare(condition: str, folder: Path) -> None:
    if condition in {MISSING, IN_THE_WAY}:
        shutil.rmtree(folder)
    if condition == IN_THE_WAY:
        folder.write_text("a file")


def bucket_flags(profile: Profile) -> list[str]:
    return [
        *("--bucket", profile.bucket, "--region", profile.region),
        *("--standard-endpoint", profile.endpoints[EndpointKind.STANDARD]),
        *("--dataset-prefix", profile.dataset_prefix, "--checkpoint-prefix", profile.checkpoint_prefix),
    ]


def run(condition: str, folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`ossconsole ARGUMENTS` where the folder is in that condition."""
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.confined", condition, str(folder), *arguments],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("folder", "condition", "name"), cells(tuple(COMMANDS)))
def test_command(  # noqa: PLR0917 - fixtures
    folder: str,
    condition: str,
    name: str,
    place: Path,
    dataset: Profile,
    pictures: Path,
    tmp_path: Path,
    record_property: Note,
) -> None:
    command = COMMANDS[name]
    prepare(condition, place / folder)
    typed = [part.format(pictures=pictures, out=tmp_path, state=place / "state") for part in command.arguments]
    if command.bucket:
        prefix = "folders/upload" if name == "upload" else dataset.dataset_prefix
        typed += bucket_flags(msgspec.structs.replace(dataset, dataset_prefix=prefix))
    done = run(condition, place / folder, typed)
    record_property("folder cell", (f"{folder}: {condition}", name, done.returncode))
    assert "Traceback" not in done.stdout + done.stderr
    if condition in command.refused.get(folder, set()):
        assert done.returncode in {1, 2}, done
        assert str(place / folder) in done.stderr
        assert done.stderr.count("Error:") == 1
    elif name in {"status", "export"} and (folder, condition) == (STATE, MISSING):
        assert "No run is recorded yet" in done.stderr
    else:
        assert done.returncode == 0, done


@pytest.mark.parametrize(("folder", "condition", "name"), cells(("doctor",)))
def test_doctor(  # noqa: PLR0917 - fixtures
    folder: str, condition: str, name: str, place: Path, dataset: Profile, record_property: Note
) -> None:
    prepare(condition, place / folder)
    done = run(condition, place / folder, [name, *bucket_flags(dataset)])
    said = done.stdout + done.stderr
    record_property("folder cell", (f"{folder}: {condition}", name, 0))
    assert "Traceback" not in said
    assert "The check itself failed" not in said
    assert done.returncode in {0, 1}
    if condition != MISSING:
        assert str(place / folder) in done.stdout


@pytest.mark.parametrize(("folder", "condition", "name"), cells(("console",)))
def test_console(  # noqa: PLR0917 - fixtures
    folder: str, condition: str, name: str, place: Path, dataset: Profile, record_property: Note
) -> None:
    prepare(condition, place / folder)
    refused = condition == IN_THE_WAY if folder == CONFIG else condition in UNWRITABLE
    arguments = [condition, str(place / folder), *bucket_flags(dataset)]
    with Console(*arguments, module="tests.faults.confined") as console:
        if refused:
            assert console.finish() == 2
            assert str(place / folder) in console.screen.replace("\n", "")
        else:
            console.until_seen("folders")
            console.quit()
        record_property("folder cell", (f"{folder}: {condition}", name, 2 if refused else 0))
        assert b"Traceback" not in console.output
