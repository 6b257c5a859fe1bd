"""The sandbox as a process: ready line, refusals to start, its end, and what it logs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from ossconsole.config.credentials import Secret
from ossconsole.config.endpoints import EndpointKind, sdk_endpoint
from ossconsole.config.errors import SettingsError
from ossconsole.sandbox import process, server
from ossconsole.sandbox.blobs import INLINE_BYTES
from ossconsole.sandbox.process import SandboxError, SandboxInfo, SandboxProcess
from ossconsole.sandbox.response import RequestRecord
from ossconsole.sandbox.server import RequestLog
from tests.sandbox.conftest import make_bucket
from tests.sandbox.wire import Signer, call, send
from tests.sandboxed import read_log
from tests.waiting import wait_until


def test_ready_line_and_profile(sandbox: SandboxProcess) -> None:
    info = sandbox.info
    port = info.path_style_endpoint.removeprefix("http://127.0.0.1:")
    assert info.endpoints == {"standard": f"http://0.0.1:{port}", "accelerated": f"http://0.0.2:{port}"}
    profile = sandbox.profile()
    assert profile.simulated
    assert sdk_endpoint(profile.bucket, profile.endpoints[EndpointKind.ACCELERATED]) == f"http://127.0.0.2:{port}"
    assert sandbox.credentials().source == "sandbox"
    assert info.access_key_secret.reveal() not in repr(info) + repr(sandbox.credentials())
    assert SandboxInfo.decode(info.encode()) == info
    assert json.loads(info.encode())["access_key_secret"] == info.access_key_secret.reveal()


def test_only_loopback_listens(sandbox: SandboxProcess) -> None:
    listening = [entry.laddr.ip for entry in psutil.Process(sandbox.pid).net_connections() if entry.status == "LISTEN"]
    assert sorted(listening) == ["127.0.0.1", "127.0.0.2"]


def test_every_file_is_private_in_a_folder_that_others_may_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "blobs").mkdir(mode=0o755)
    for name in ("index.sqlite", "blobs.sqlite"):
        (tmp_path / name).touch(mode=0o644)
    with SandboxProcess.start(tmp_path, unshaped=True) as running:
        for size in (10, INLINE_BYTES + 1):
            call(running.info, "PUT", f"object-{size}", body=b"x" * size)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {"index.sqlite-wal", "blobs.sqlite-wal", "running.json", "keys.json"} <= {path.name for path in files}
        assert [path.name for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_secret_reaches_neither_command_line_nor_log(sandbox: SandboxProcess) -> None:
    info = sandbox.info
    path = f"/127/x?{Signer.of(info).presigned('GET', '/127/x', 60)}"
    signature = path.rpartition("=")[2]
    send(info.path_style_endpoint, "GET", path)
    process = psutil.Process(sandbox.pid)
    exposed = " ".join(process.cmdline()) + str(process.environ()) + sandbox.log_path.read_text()
    assert info.access_key_secret.reveal() not in exposed
    assert signature not in exposed


def test_environment_of_the_child_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "sentinel-of-the-real-account")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "sentinel-of-the-real-account")
    with SandboxProcess.start(tmp_path) as running:
        assert "sentinel" not in str(psutil.Process(running.pid).environ())


def test_request_log(sandbox: SandboxProcess) -> None:
    bucket = make_bucket(sandbox.info, accelerated=True)
    result = bucket.put_object("logged é", b"12345")
    call(sandbox.info, "GET", "logged/no")
    records = {record.request_id: record for record in read_log(sandbox.log_path)}
    record = records[result.request_id]
    assert (record.endpoint, record.method, record.operation) == ("accelerated", "PUT", "PutObject")
    assert (record.bucket, record.key, record.status, record.code) == ("127", "logged é", 200, "")
    assert record.user_agent.startswith("aliyun-sdk-python/")
    missed = next(record for record in records.values() if record.key == "logged/no")
    assert (missed.status, missed.code) == (404, "NoSuchKey")


def test_a_log_that_cannot_begin_a_new_file_continues_in_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor was closed and still written to, when it could have been that of an object."""
    record = RequestRecord(time=1.0, endpoint="standard", method="GET", user_agent="", request_id="1")
    monkeypatch.setattr(server, "_MAX_BYTES", 1)
    log = RequestLog(tmp_path / "log")
    with monkeypatch.context() as patched:
        patched.setattr(server, "open_private", Mock(side_effect=SettingsError("too many open files")))
        log.write(record)
        log.write(record)
    assert len(list(read_log(tmp_path / "log.1"))) == 2
    log.write(record)
    log.write(record)
    log.close()
    assert len(list(read_log(tmp_path / "log.1"))) == 1


def test_port_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SandboxError) as caught:
            SandboxProcess.start(tmp_path, port=port)
    assert f"cannot listen on port {port}" in str(caught.value)


def test_one_sandbox_per_folder(sandbox: SandboxProcess) -> None:
    with pytest.raises(SandboxError, match="Another sandbox is running on"):
        SandboxProcess.start(sandbox.directory)
    assert sandbox.running


@pytest.mark.parametrize("text", ["{", "[]", "[[1]]"])
def test_a_damaged_key_file_is_set_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    with SandboxProcess.start(tmp_path) as running:
        assert running.info.access_key_id
    (kept,) = tmp_path.glob("keys.json.damaged-*")
    assert kept.read_text() == text
    assert kept.name in running.log_path.read_text()


@pytest.mark.parametrize("name", ["index.sqlite", "blobs.sqlite"])
def test_damaged_objects_are_set_aside_together(tmp_path: Path, name: str) -> None:
    with SandboxProcess.start(tmp_path, unshaped=True) as running:
        call(running.info, "PUT", "key", body=b"x" * (INLINE_BYTES + 1))
    if name.endswith(".sqlite"):  # a sandbox that was killed for being slow to end leaves its log, which would mend it
        with closing(sqlite3.connect(tmp_path / name)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(tmp_path / name, 5000)
    with SandboxProcess.start(tmp_path, unshaped=True) as running:
        assert call(running.info, "GET", "key").status == 404
    kept = [next(tmp_path.glob(f"{whole}.damaged-*[0-9]")) for whole in ("index.sqlite", "blobs.sqlite", "blobs")]
    assert list(kept[2].iterdir())
    assert all(path.name in running.log_path.read_text() for path in kept)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be created"):
        SandboxProcess.start(tmp_path / "file" / "below")


def test_a_start_that_fails_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log ends with old lines then: the new ones have no room."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=0))
    assert process._log_remedy(tmp_path).startswith("The disk is full. Free space on its disk")


def test_stop_twice(tmp_path: Path) -> None:
    running = SandboxProcess.start(tmp_path)
    running.stop()
    assert not running.running
    running.stop()
    with pytest.raises(ConnectionRefusedError):
        send(running.info.path_style_endpoint, "GET", "/")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    running = SandboxProcess.start(tmp_path)
    os.kill(running.pid, number)
    assert running._process.wait(10) == 0
    running.stop()
    assert "Traceback" not in running.log_path.read_text()


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from ossconsole.sandbox.process import SandboxProcess\n"
        "print(SandboxProcess.start(Path(sys.argv[1])).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_files_of_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secrets.py").write_text("raise RuntimeError('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    with SandboxProcess.start(tmp_path / "sandbox") as process:
        assert psutil.Process(process.pid).is_running()


def test_ctrl_c_ends_a_sandbox_in_a_terminal(tmp_path: Path) -> None:
    """Run from a shell it needs no open stdin, and Ctrl-C ends it with no traceback."""
    command = [sys.executable, "-m", "ossconsole", "sandbox", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        info = SandboxInfo.decode(process.stdout.readline())
        assert isinstance(info.access_key_secret, Secret)
        assert call(info, "GET").status == 200
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
        assert (process.returncode, stderr) == (0, b"")
