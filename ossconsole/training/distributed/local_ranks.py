"""The other processes of a run on this machine, started and ended by the one that leads. No torch here."""

from __future__ import annotations

import base64
import os
import pickle
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import make_folder, state_dir, unwritable
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.rank import Place
from ossconsole.training.distributed.rank_process import READY, Orders

_START_TIMEOUT_S = 300.0  # importing torch from a cold disk takes a minute
_END_TIMEOUT_S = 10.0


class Followers:
    """The processes with ranks 1 to `processes` - 1. Leaving the context ends those that have not ended by themselves.

    They get what they need through a pipe: nothing secret is in their arguments.
    """

    def __init__(self, context: RunContext, processes: int) -> None:
        # Where the processes meet: a file that only this user can reach, so no port has to be free.
        _remove_folders_of_the_dead()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=make_folder(state_dir())))
        except OSError as error:
            raise unwritable(state_dir(), error) from error
        # All on this machine: nothing needs to listen beyond it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        places = [
            Place(rank, processes, rank, processes, rendezvous=(self._folder / "rendezvous").as_uri())
            for rank in range(processes)
        ]
        self.leader = places[0]
        self._processes = [_start(context, place) for place in places[1:]]

    def __enter__(self) -> Followers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + (_END_TIMEOUT_S if error is None else 0.0)
        for process in self._processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None  # noqa: S101
            process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait_until_ready(self) -> None:
        """Waits until all have loaded what they need. Raises ConsoleError when one ended, or took too long."""
        until = time.monotonic() + _START_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            for rank, process in enumerate(self._processes, start=1):
                assert process.stdout is not None  # noqa: S101
                selector.register(process.stdout, selectors.EVENT_READ, (rank, process))
            while selector.get_map():
                found = selector.select(max(0.0, until - time.monotonic()))
                if not found:
                    raise ConsoleError(
                        f"Not all processes of the run were ready within {_START_TIMEOUT_S:g} s.",
                        remedy="The log has what they print.",
                    )
                for key, _ in found:
                    _check_ready(*key.data)
                    selector.unregister(key.fileobj)


def _remove_folders_of_the_dead() -> None:
    """A process that was killed leaves the folder in which its run met."""
    for path in state_dir().glob("run-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def _check_ready(rank: int, process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None  # noqa: S101
    line = process.stdout.readline().decode(errors="replace").strip()
    if line != READY:
        raise ConsoleError(
            f"Process {rank} of the run ended before it began: {line or 'it told no reason'}",
            remedy="The log has what it printed.",
        )


def _start(context: RunContext, place: Place) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "ossconsole.training.distributed.rank_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    orders = Orders(os.getpid(), context.id, context.profile, context.credentials, context.settings, place)
    assert process.stdin is not None  # noqa: S101
    process.stdin.write(base64.b64encode(pickle.dumps(orders)))
    process.stdin.close()
    return process
