"""The console runs in a child of the process that the shell waits for, so that it can leave the terminal and live on.

The one in front does nothing but wait, pass signals on, and put the terminal back when the child was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ossconsole.config.files import open_private

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LET_GO = signal.SIGUSR1
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Everything that a full-screen program may have switched on; on a terminal without it each is ignored.
_RESET = (
    b"\x18\x1b[<u\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?1015l\x1b[?1016l\x1b[?2004l\x1b[?2026l"
    b"\x1b[?2048l\x1b[?1049l\x1b[?7h\x1b[?25h\x1b[0m"
)


class Foreground:
    """The process in front, seen from the child; made by `stay_in_front`."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid = pid
        self._pipe = pipe

    def let_go(self, log: Path, code: int) -> None:
        """Goes on without the terminal, prints going to `log`; the process in front exits with `code`.

        Call it after the terminal was put back. Raises ConsoleError where the log cannot be opened.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = open_private(log)
        for fd in (1, 2):
            os.dup2(descriptor, fd)
        os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        _die_with_parent(0)
        with contextlib.suppress(PermissionError):  # it leads a session already
            os.setsid()
        if os.getppid() == self._pid:
            os.write(self._pipe, bytes([code]))
            os.kill(self._pid, _LET_GO)
        os.close(self._pipe)


def stay_in_front(killed: Callable[[int], str]) -> Foreground:
    """Returns in a child process only; this one waits for it, and exits with its code.

    `killed` gives the line to print when a signal, whose number it gets, has killed the child. When this process is
    killed, the child gets SIGHUP. Call it on the main thread, before any other thread was started.
    """
    modes = termios.tcgetattr(0)
    watched = {signal.SIGCHLD, _LET_GO, *_PASSED_ON}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    sys.stderr.flush()
    front = os.getpid()
    told, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        _wait_in_front(child, told, watched, modes, killed)
    os.close(told)
    _die_with_parent(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.getppid() != front:
        os.kill(os.getpid(), signal.SIGHUP)
    return Foreground(front, tell)


def _wait_in_front(
    child: int, told: int, watched: set[signal.Signals], modes: list[Any], killed: Callable[[int], str]
) -> NoReturn:
    while True:
        number = signal.sigwait(watched)
        if number == _LET_GO:
            os._exit(os.read(told, 1)[0])
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if not pid:
            continue
        if os.WIFSTOPPED(status):
            # The shell waits for this process: it stops likewise, and both go on together.
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
        elif os.WIFEXITED(status):
            os._exit(os.WEXITSTATUS(status))
        elif os.WIFSIGNALED(status):
            _put_back(modes)
            with contextlib.suppress(OSError):
                os.write(2, f"{killed(os.WTERMSIG(status))}\n".encode())
            os._exit(128 + os.WTERMSIG(status))


def _put_back(modes: list[Any]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    with contextlib.suppress(OSError, termios.error):
        os.write(1, _RESET)
        termios.tcsetattr(0, termios.TCSANOW, modes)


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
