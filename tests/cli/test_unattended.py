"""Work without a user who watches it: output that fails, signals, and `ossconsole run`."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ossconsole.cli import unattended
from ossconsole.cli.unattended import Printing, stopping_on_signals
from ossconsole.config.profiles import OnHangup
from ossconsole.config.spawning import module_command
from ossconsole.telemetry.events import Event, InfoEvent

DEADLINE_S = 60


class Work:
    """Something that signals stop."""

    def __init__(self) -> None:
        self.interactive = True
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1


def info(number: int) -> InfoEvent:
    return InfoEvent(time=1.0, message=str(number))


def test_a_full_disk_below_the_output_does_not_end_the_run() -> None:
    shown: list[Event] = []
    warnings: list[str] = []
    full = True

    def show(event: Event) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        shown.append(event)

    def warn(message: str, _remedy: str) -> None:
        warnings.append(message)
        printing(info(0))  # the warning is an event of the run

    printing = Printing(show)
    printing.warn = warn
    printing(info(1))
    printing(info(2))
    full = False
    printing(info(3))
    assert warnings == ["The output is incomplete: No space left on device."]
    assert shown == [info(3)]


def test_a_signal_stops_the_work_although_its_message_has_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """`2>&1 | tee LOG`: Ctrl-C ends tee too."""

    def say(_text: str, *, err: bool) -> None:
        raise BrokenPipeError(errno.EPIPE, f"stderr: {err}")

    monkeypatch.setattr(unattended, "say", say)
    work = Work()
    with stopping_on_signals(work, OnHangup.CONTINUE) as received:
        os.kill(os.getpid(), signal.SIGTERM)
    assert (received, work.stopped) == ([signal.SIGTERM], 1)


def supervised(tmp_path: Path, *command: str) -> subprocess.Popen[bytes]:
    (tmp_path / "shlex.py").write_text("raise RuntimeError('imported from the current folder')")
    with (tmp_path / "log").open("wb") as log:
        return subprocess.Popen(
            module_command("ossconsole.cli.run", "3", *command), stdout=log, stderr=log, cwd=tmp_path
        )


def test_a_script_that_is_ended_between_two_restarts_is_not_started_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    supervisor = supervised(tmp_path, "sh", "-c", "echo started; exit 3")
    deadline = time.monotonic() + DEADLINE_S
    while log.read_text().count("Restarting it in 1 s") < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert log.read_text().count("started") == 1


def test_a_program_that_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\0not a program")
    broken.chmod(0o700)
    assert supervised(tmp_path, str(broken)).wait(DEADLINE_S) == 126
    assert (tmp_path / "log").read_text() == f"{str(broken)!r} cannot be started: Exec format error.\n"
