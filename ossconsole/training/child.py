"""Child processes of a run: spawned, killed with their parent, and without output on the terminal."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType

from ossconsole.config.errors import SettingsError
from ossconsole.config.files import open_private
from ossconsole.config.spawning import safe_path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

SPAWN = multiprocessing.get_context("spawn")
"""Children are spawned: neither the connector nor CUDA survives a fork."""


def spawn(
    name: str, target: Callable[..., None], *args: object, has_children: bool = False
) -> tuple[SpawnProcess, Connection]:
    """Starts `target(pipe, *args)` in a child; returns it and the other end of the pipe. Raises OSError.

    One that `has_children` of its own must be killed before this process exits: multiprocessing waits for it.
    """
    ours, theirs = SPAWN.Pipe()
    with theirs, _hidden_main(), safe_path():
        process = SPAWN.Process(target=target, args=(theirs, *args), name=name, daemon=not has_children)
        process.start()
    return process, ours


_hiding = threading.Lock()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keeps a child from importing the main module, as its target is in a module of its own.

    A training script without `if __name__ == "__main__"` would otherwise run once more in each reader process.
    """
    with _hiding:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def become_child(native_log: Path, *, parent: int | None = None) -> None:
    """Sets up this process as a child of process `parent`, by default the parent in multiprocessing.

    The kernel kills it when the thread that started it ends: the connector holds the GIL and may retry without end, so
    nothing else can end an orphan reliably. Ctrl-C and SIGHUP, which reach the whole process group, are ignored: the
    parent decides what ends. Output of native code goes to `native_log` (0600).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    known = parent_process()
    if os.getppid() != (parent if parent is not None else known.pid if known else None):
        os._exit(1)  # the parent ended before the call of prctl
    _redirect_output(native_log)


def _redirect_output(log: Path) -> None:
    """Redirects standard output and error; to /dev/null when the log cannot be opened, such as on a full disk.

    The connector prints before it opens its own log, and creates that log with the mode that the umask allows.
    """
    os.umask(0o077)
    try:
        descriptor = open_private(log)
    except (SettingsError, OSError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
