"""One sandbox for all who use a folder."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ossconsole.config.credentials import Secret
from ossconsole.config.errors import SettingsError
from ossconsole.sandbox import shared
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.process import INFO_NAME, LOCK_NAME, SandboxError, SandboxInfo, SandboxProcess
from ossconsole.sandbox.shared import SharedSandbox, Users, slowed_down
from tests.sandbox.conftest import make_bucket
from tests.waiting import wait_until

HOLD = (
    "import sys; from pathlib import Path\n"
    "from ossconsole.sandbox.shared import SharedSandbox\n"
    "shared = SharedSandbox.open(Path(sys.argv[1])); print(shared.info.path_style_endpoint, flush=True)\n"
    "sys.stdin.read(); shared.close()"
)


SLOW_DOWN = (
    "import sys; from pathlib import Path\n"
    "from ossconsole.sandbox.shared import SharedSandbox, slowed_down\n"
    "with SharedSandbox.open(Path(sys.argv[1])) as sandbox, slowed_down(sandbox, 7.0):\n"
    "    print('slow', flush=True); sys.stdin.read()"
)


def hold(directory: Path, program: str = HOLD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def endpoint_of(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def servers(directory: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "sandbox" in command and str(directory) in command and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_the_second_finds_the_first_and_the_last_ends_it(tmp_path: Path) -> None:
    first = SharedSandbox.open(tmp_path)
    second = SharedSandbox.open(tmp_path)
    assert second.info == first.info
    assert len(servers(tmp_path)) == 1
    first.close()
    make_bucket(second.info).put_object("still", b"here")
    second.close()
    wait_until(lambda: not servers(tmp_path))
    assert not (tmp_path / INFO_NAME).exists()
    with SharedSandbox.open(tmp_path) as third:
        assert make_bucket(third.info).get_object("still").read() == b"here"


def test_it_survives_its_starter_and_ends_with_its_last_user(tmp_path: Path) -> None:
    starter = hold(tmp_path)
    endpoint = endpoint_of(starter)
    guest = hold(tmp_path)
    assert endpoint_of(guest) == endpoint
    starter.kill()
    starter.wait(20)
    with SharedSandbox.open(tmp_path) as here:
        assert here.info.path_style_endpoint == endpoint
        guest.kill()
        guest.wait(20)
        make_bucket(here.info).put_object("a", b"1")
    wait_until(lambda: not servers(tmp_path))
    for holder in (starter, guest):
        for stream in (holder.stdin, holder.stdout):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_a_slow_down_ends_with_the_process_that_made_it(tmp_path: Path, end: signal.Signals | None) -> None:
    with SharedSandbox.open(tmp_path) as other:
        control = SandboxControl(other.info)
        slowing = hold(tmp_path, SLOW_DOWN)
        assert endpoint_of(slowing) == "slow"
        assert control.status().slowed_to == 7.0
        with pytest.raises(SandboxError, match="Another process"), slowed_down(other, 5.0):
            pass
        assert control.status().slowed_to == 7.0
        if end is not None:
            slowing.send_signal(end)
        slowing.communicate(timeout=20)
        wait_until(lambda: control.status().slowed_to is None)
        assert other.slowed_words() == ""
        with slowed_down(other, 5.0):
            assert "5 objects/s" in other.slowed_words()


def test_many_simultaneous_users_get_one_server(tmp_path: Path) -> None:
    opened: list[SharedSandbox] = []
    threads = [threading.Thread(target=lambda: opened.append(SharedSandbox.open(tmp_path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({one.info.path_style_endpoint for one in opened}) == 1
    assert len(opened) == 6
    for one in opened:
        one.close()
    wait_until(lambda: not servers(tmp_path))


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It shares the lock of its parent, such as the workers of a DataLoader: nobody could join until it ended."""
    users = Users(tmp_path)
    assert users.join()
    waiting, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        os.read(waiting, 1)
        os._exit(0)
    assert users.leave()
    users.close()
    later = Users(tmp_path)
    joined = later.join()
    os.close(end)
    os.close(waiting)
    os.waitpid(child, 0)
    later.close()
    assert joined


def test_a_server_started_by_the_user_is_used_and_not_ended(tmp_path: Path) -> None:
    with SandboxProcess.start(tmp_path, unshaped=True) as alone:
        with SharedSandbox.open(tmp_path) as guest:
            assert guest.info == alone.info
        assert alone.running


def test_the_files_of_a_killed_server_are_not_a_server(tmp_path: Path) -> None:
    with SandboxProcess.start(tmp_path, unshaped=True) as killed:
        os.kill(killed.pid, signal.SIGKILL)
        wait_until(lambda: not killed.running)
        assert (tmp_path / INFO_NAME).exists()
        with SharedSandbox.open(tmp_path) as fresh:
            assert fresh.info.access_key_id == killed.info.access_key_id
            assert stat.S_IMODE((tmp_path / INFO_NAME).stat().st_mode) == 0o600


def test_a_server_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_running", lambda _: None)
    with SandboxProcess.start(tmp_path, unshaped=True), pytest.raises(SandboxError) as refused:
        SharedSandbox.open(tmp_path, timeout_s=0.5)
    assert "does not answer" in refused.value.message
    assert LOCK_NAME in refused.value.remedy


class Reported:
    """What a shared sandbox tells of its process."""

    def __init__(self, sandbox: SharedSandbox) -> None:
        self.messages: list[str] = []
        self.remedies: list[str] = []
        sandbox.notify = self

    def __call__(self, message: str, remedy: str) -> None:
        self.messages.append(message)
        self.remedies.append(remedy)


def test_a_killed_server_is_named_and_comes_back_where_it_was(tmp_path: Path) -> None:
    with SharedSandbox.open(tmp_path) as starter, SharedSandbox.open(tmp_path) as guest:
        reported = [Reported(starter), Reported(guest)]
        make_bucket(starter.info).put_object("kept", b"on disk")
        before = starter.info
        os.kill(before.pid, signal.SIGKILL)
        wait_until(lambda: all(len(one.messages) == 2 for one in reported))
        assert reported[0].messages[0] == f"The embedded sandbox (pid {before.pid}) ended: killed by SIGKILL."
        assert f"(pid {before.pid}) ended" in reported[1].messages[0]
        assert "restarted" in reported[1].remedies[0]
        (server,) = [server.pid for server in servers(tmp_path)]
        assert starter.info.pid == guest.info.pid == server
        assert [one.messages[1] for one in reported] == [f"The embedded sandbox is running again (pid {server})."] * 2
        assert starter.info.endpoints == before.endpoints
        assert make_bucket(before).get_object("kept").read() == b"on disk"
    wait_until(lambda: not servers(tmp_path))


def test_a_new_user_restarts_it_on_the_port_of_the_others(tmp_path: Path) -> None:
    with SandboxProcess.start(tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: not first.running)
        with SharedSandbox.open(tmp_path) as second:
            assert second.info.endpoints == first.info.endpoints


def test_a_server_started_by_the_user_is_named_and_not_restarted(tmp_path: Path) -> None:
    with SandboxProcess.start(tmp_path, unshaped=True) as alone, SharedSandbox.open(tmp_path) as guest:
        reported = Reported(guest)
        alone.stop()
        wait_until(lambda: bool(reported.messages))
        assert reported.messages == [f"The embedded sandbox (pid {alone.pid}) ended: its process no longer exists."]
        assert f"ossconsole sandbox --dir {tmp_path} --port {alone.info.port}" in reported.remedies[0]
        with SandboxProcess.start(tmp_path, port=alone.info.port, unshaped=True) as again:
            wait_until(lambda: len(reported.messages) == 2)
            assert f"(pid {again.pid})" in reported.messages[1]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedSandbox]:
    """A shared sandbox without a process, whose watch starts with the first change of `shared`."""
    monkeypatch.setattr(shared, "_WATCH_S", 0.01)
    monkeypatch.setattr(shared, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(shared, "_served", lambda _: True)
    info = SandboxInfo(
        bucket="127",
        region="cn-sandbox",
        endpoints={},
        path_style_endpoint="http://127.0.0.1:1",
        access_key_id="",
        access_key_secret=Secret(""),
        shared=True,
    )
    with SharedSandbox(info, tmp_path, Users(tmp_path), None) as sandbox:
        yield sandbox


def test_a_folder_that_cannot_be_opened_is_reported(watched: SharedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watching thread ended with a traceback on the screen."""
    reported = Reported(watched)
    monkeypatch.setattr(shared, "_served", Mock(side_effect=SettingsError("too many open files", remedy="Close some.")))
    wait_until(lambda: bool(reported.messages))
    assert reported.messages == ["The embedded sandbox is no longer watched: too many open files Close some."]


def test_a_restart_that_the_folder_refuses_is_tried_again(
    watched: SharedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = Reported(watched)
    refused = SettingsError("its log cannot be written")
    monkeypatch.setattr(shared, "_start", Mock(side_effect=chain([refused, refused], repeat((watched.info, None)))))
    monkeypatch.setattr(shared, "_served", lambda _: False)
    wait_until(lambda: len(reported.messages) >= 3)
    assert reported.messages[1] == "its log cannot be written"
    assert "running again" in reported.messages[2]


def test_a_port_in_use_by_another_program_is_reported(tmp_path: Path) -> None:
    with SharedSandbox.open(tmp_path) as sandbox:
        reported = Reported(sandbox)
        port = sandbox.info.port
        os.kill(sandbox.info.pid, signal.SIGKILL)
        with listening(port):  # sooner than a process can start
            wait_until(lambda: len(reported.messages) == 2)
            assert "ended before it was ready" in reported.messages[1]
            assert f"port {port}" in reported.remedies[1]
        wait_until(lambda: len(reported.messages) == 3)
        assert "is running again" in reported.messages[2]


def listening(port: int) -> socket.socket:
    """A server on the port, as soon as it is free."""
    for attempt in Retrying(stop=stop_after_delay(10), wait=wait_fixed(0.001), retry=retry_if_exception_type(OSError)):
        with attempt:
            return socket.create_server(("127.0.0.1", port))
    raise AssertionError
