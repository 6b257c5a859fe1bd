"""How every process that works for a run begins: it ends with the run, whatever happens to that, and keeps quiet."""

from __future__ import annotations

import ctypes
import os
import signal
from multiprocessing import parent_process
from pathlib import Path

from ossconsole.config.errors import SettingsError
from ossconsole.config.files import open_private

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def become_child(native_log: Path, *, parent: int | None = None) -> None:
    """Makes this process one that works for the process `parent`, by default the one that multiprocessing knows.

    The kernel kills it when the thread that started it ends: the connector holds the GIL, and may retry without end, so
    nothing else can end an orphan for certain. Ctrl-C and a lost SSH session, which reach the whole process group, are
    left to the parent, which decides what ends when. What native code prints goes to `native_log` (0600).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    known = parent_process()
    if os.getppid() != (parent if parent is not None else known.pid if known else None):
        os._exit(1)  # the parent ended before this process could ask to end with it
    _send_prints_to(native_log)


def _send_prints_to(log: Path) -> None:
    """Standard output and error: the connector prints before it opens its own log, and gives that one whatever mode
    the process leaves it. Without a log, such as on a full disk, nobody sees them.
    """
    os.umask(0o077)
    try:
        descriptor = open_private(log)
    except (SettingsError, OSError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
