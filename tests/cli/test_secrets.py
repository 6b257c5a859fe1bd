"""The secret of each credential source, looked for in all that the program writes, prints, starts and leaves."""

from __future__ import annotations

import base64
import contextlib
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import click
import msgspec
import psutil
import pytest

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from ossconsole.config.credential_sources import (
    EcsRoleSource,
    aliyun_file,
    connector_file,
    ossutil_file,
    write_connector_file,
)
from ossconsole.config.credentials import Credentials
from ossconsole.config.metadata import METADATA_VARIABLE
from ossconsole.config.profiles import Settings, save_settings, settings_path
from tests.cli.consoles import Console
from tests.sandboxed import Sandboxed, set_keys, small_dataset

pytestmark = pytest.mark.timeout(240)
SIDE, SAMPLES = 32, 16
TRAIN = ("train", "--json", "--max-steps", "2", "--switch-every", "1", "--batch-size", "8", "--workers", "1")


def plant_in_environment(pair: Credentials, patch: pytest.MonkeyPatch) -> None:
    set_keys(patch, pair)
    assert pair.security_token
    patch.setenv("OSS_SESSION_TOKEN", pair.security_token.reveal())


def plant_in_connector_file(pair: Credentials, patch: pytest.MonkeyPatch) -> None:
    write_connector_file(pair)


def plant_in_ossutil_file(pair: Credentials, patch: pytest.MonkeyPatch) -> None:
    assert pair.security_token
    text = f"accessKeyID={pair.access_key_id}\naccessKeySecret={pair.access_key_secret.reveal()}\n"
    private(ossutil_file(), f"[Credentials]\n{text}stsToken={pair.security_token.reveal()}\n")


def plant_in_aliyun_file(pair: Credentials, patch: pytest.MonkeyPatch) -> None:
    assert pair.security_token
    profile = {
        "name": "default",
        "mode": "StsToken",
        "access_key_id": pair.access_key_id,
        "access_key_secret": pair.access_key_secret.reveal(),
        "sts_token": pair.security_token.reveal(),
    }
    private(aliyun_file(), msgspec.json.encode({"current": "default", "profiles": [profile]}).decode())


def private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


PLANTS: dict[str, Callable[[Credentials, pytest.MonkeyPatch], None]] = {
    "environment": plant_in_environment,
    "connector": plant_in_connector_file,
    "ossutil": plant_in_ossutil_file,
    "aliyun": plant_in_aliyun_file,
}


class Planted:
    """A profile of the sandbox whose key is known from one source alone, and the search for its secrets."""

    def __init__(self, home: Path, pair: Credentials) -> None:
        self.home = home
        self.printed = ""
        self._key_id = pair.access_key_id.encode()
        assert pair.security_token
        texts = [pair.access_key_secret.reveal(), pair.security_token.reveal()]
        spellings = [
            *texts,
            *(quote(text, safe="") for text in texts),
            *(base64.b64encode(text.encode()).decode() for text in texts),
        ]
        self._needles = [text.encode() for text in spellings]

    def holds(self, data: bytes | str) -> bool:
        found = data if isinstance(data, bytes) else data.encode()
        return any(needle in found for needle in self._needles)

    def files(self) -> list[Path]:
        """The files that hold a secret, other than those it was planted in."""
        known = {connector_file(), ossutil_file(), aliyun_file()}
        files = [path for path in self.home.rglob("*") if path.is_file() and path not in known]
        assert files
        return [path for path in files if self.holds(path.read_bytes())]

    def logs_with_the_key_id(self) -> list[Path]:
        """Logs that hold the AccessKey ID whole, which is no secret but half of the pair."""
        logs = (self.home / "state" / "logs").iterdir()
        return [path for path in logs if self._key_id in path.read_bytes()]

    def readable_by_others(self) -> list[Path]:
        """Files of the program that somebody else could read."""
        ours = [settings_path().parent, self.home / "state"]
        files = [path for folder in ours for path in folder.rglob("*") if path.is_file()]
        return [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]


@pytest.fixture
def planted(
    sandboxed_bucket: Sandboxed, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Planted:
    source: str = request.param
    profile = msgspec.structs.replace(
        sandboxed_bucket.profile("secrets"), name="mine", simulated=False, credentials=source
    )
    save_settings(Settings().with_profile(profile, activate=True))
    if source == "ecs":
        assert sandboxed_bucket.process.info.metadata_endpoint
        monkeypatch.setenv(METADATA_VARIABLE, sandboxed_bucket.process.info.metadata_endpoint)
        return Planted(home, EcsRoleSource()())
    pair = sandboxed_bucket.control.issue_key(ttl_s=3600)
    PLANTS[source](pair, monkeypatch)
    return Planted(home, pair)


@pytest.fixture(scope="module", autouse=True)
def dataset(sandboxed_bucket: Sandboxed) -> None:
    small_dataset(sandboxed_bucket, "secrets", samples=SAMPLES, side=SIDE)


@contextlib.contextmanager
def watching_processes(planted: Planted, *, needing: str = "spawn_main") -> Iterator[list[str]]:
    """Gives the processes seen with a secret: any in its command line, those that do not need it in the environment."""
    found: list[str] = []
    over = threading.Event()

    def look(process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if planted.holds(command):
                found.append(f"command line of {command[:80]}")
            # One that is about to exit has no command line any more, and the environment of the one that forked it.
            if command and needing not in command and planted.holds("\n".join(process.environ().values())):
                found.append(f"environment of {command[:80]}")

    def watch() -> None:
        while not over.is_set():
            for process in psutil.Process().children(recursive=True):
                look(process)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield found
    over.set()
    watcher.join()


def slow(source: str) -> object:
    return pytest.param(source, marks=pytest.mark.slow)


@pytest.mark.parametrize("planted", [*PLANTS, "ecs"], indirect=True)
def test_output_and_files_do_not_contain_it(planted: Planted, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (("ls", "--json"), ("status", "--json"), ("config", "show", "--json"), ("ls", "no-such/", "--json")):
        run_group(ossconsole, command)
    out, err = capfd.readouterr()
    assert "manifest.json" in out or "secrets/" in out
    assert not planted.holds(out + err)
    assert planted.files() == []
    assert planted.readable_by_others() == []


@pytest.mark.parametrize(
    "planted", ["environment", *map(slow, ("connector", "ossutil", "aliyun", "ecs"))], indirect=True
)
def test_a_run_does_not_leak_it(planted: Planted, capfd: pytest.CaptureFixture[str]) -> None:
    with watching_processes(planted) as found:
        assert run_group(ossconsole, TRAIN) == 0
    out, err = capfd.readouterr()
    assert '"event":"summary"' in out
    assert not planted.holds(out + err)
    assert found == []
    assert list((planted.home / "state" / "runs").iterdir())
    assert list((planted.home / "state" / "logs").glob("connector*"))
    assert planted.logs_with_the_key_id() == []
    assert planted.files() == []
    assert planted.readable_by_others() == []


@pytest.mark.parametrize(
    "planted", ["environment", *map(slow, ("connector", "ossutil", "aliyun", "ecs"))], indirect=True
)
def test_doctor_and_the_console_do_not_show_it(planted: Planted, capfd: pytest.CaptureFixture[str]) -> None:
    with watching_processes(planted, needing="-m ossconsole") as found:
        with contextlib.suppress(SystemExit):
            run_group(ossconsole, ("doctor", "--json"))
        with Console(columns=160) as console:
            console.until_seen("secrets/")
            console.type("1")
            console.until_seen("credentials", "STS.", "•")
            console.type("\x1b[24~")
            console.until_seen("ossconsole.log")
            console.type("\x1b")
            console.until_seen("credentials", gone="ossconsole.log")
            console.quit()
    out, err = capfd.readouterr()
    assert '"checks"' in out
    assert not planted.holds(out + err)
    assert not planted.holds(console.output)
    assert found == []
    assert planted.files() == []
    assert planted.readable_by_others() == []


def test_no_command_accepts_a_secret() -> None:
    """It would be in the shell's history, and in `ps`."""

    def names(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from parameter.opts
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from names(found)

    assert not [name for name in names(ossconsole) if any(word in name for word in ("secret", "token", "password"))]
