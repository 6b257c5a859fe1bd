"""Child processes of a run: they end with it, and one that hangs does not block the run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from ossconsole.config.errors import ConsoleError
from ossconsole.training.checkpoints.store import CheckpointWriter, _receive
from ossconsole.training.child import SPAWN
from ossconsole.training.loading.connector import ConnectorSettings
from tests.terminal.screen import DEADLINE_S

BUCKET_ONLY: Any = type("Profile", (), {"bucket": "bucket"})()

# A process that starts a child and tells its number: the trainer, as far as its children can tell.
TRAINER = """
import sys, time
from pathlib import Path
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.checkpoints.store import CheckpointWriter

settings = ConnectorSettings(None, None, Path("none"), Path(sys.argv[1]))
if sys.argv[2] == "writer":
    working = CheckpointWriter(settings)
    working._started()
    child = working._process
else:
    from ossconsole.training.bench.limits import _serve
    from ossconsole.training.child import SPAWN
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=_serve, args=(theirs, time.sleep, settings.native_log, 3600, 1.0))
    child.start()
print(child.pid, flush=True)
time.sleep(3600)
"""


def test_a_child_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    script, current = tmp_path / "script.py", tmp_path / "current"
    script.write_text(
        "from multiprocessing.connection import Connection\n"
        "from ossconsole.config.credentials import start_resource_tracker\n"
        "from ossconsole.training.child import spawn\n"
        "start_resource_tracker()\n"
        "child, _ = spawn('child', Connection.close)\n"
        "child.join()\n"
        "raise SystemExit(child.exitcode)"
    )
    current.mkdir()
    for name in ("signal", "random", "socket", "grp"):  # multiprocessing imports some of them at its start
        (current / f"{name}.py").write_text("raise RuntimeError('imported from the current folder')")
    done = subprocess.run([sys.executable, script], cwd=current, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            child.kill()
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def wait_until_gone(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(DEADLINE_S)


@pytest.mark.parametrize("kind", ["writer", "limit"])
def test_the_children_of_a_killed_trainer_end_in_any_state(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "native.log"
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(log), kind], stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    with ended(trainer):
        child = int(trainer.stdout.readline())
        until = time.monotonic() + DEADLINE_S
        while not log.exists():  # the last thing before its work
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(child, signal.SIGSTOP)  # it can't notice anything any more, as in the connector's endless retries
        trainer.kill()
        wait_until_gone(child)


def test_a_child_whose_parent_is_gone_already_ends(tmp_path: Path) -> None:
    code = "import pathlib, ossconsole.training.child as child; child.become_child(pathlib.Path({!r}), parent=1)"
    done = subprocess.run([sys.executable, "-c", code.format(str(tmp_path / "log"))], check=False, timeout=DEADLINE_S)
    assert done.returncode == 1


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[CheckpointWriter, Connection]:
    """A writer whose process is the test, which has the other end of its pipe."""
    nobody: Any = None
    made = CheckpointWriter(ConnectorSettings(BUCKET_ONLY, nobody, tmp_path, tmp_path / "log"))
    ours, theirs = SPAWN.Pipe()
    monkeypatch.setattr(made, "_started", lambda: ours)
    return made, theirs


def test_a_writer_that_never_reads_is_given_up_in_time(writer: tuple[CheckpointWriter, Connection]) -> None:
    with pytest.raises(ConsoleError, match=r"was not written within 0.2 s"):
        writer[0].write("checkpoints/one.pt", bytes(8 << 20), 0.2, lambda _written: None)


def test_the_writer_gets_the_bytes_whole(writer: tuple[CheckpointWriter, Connection]) -> None:
    data = os.urandom(5 << 20)
    made, end = writer
    end.send("")  # the answer, which waits in the pipe
    made.write("checkpoints/one.pt", data, 5.0, lambda _written: None)
    key, received = _receive(end)
    assert (key, received[:]) == ("checkpoints/one.pt", data)
