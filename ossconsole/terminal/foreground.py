"""Runs the console in a child of the process that the shell waits for, so that it can continue without the terminal.

The parent only waits, forwards signals, and restores the terminal when the child was killed.
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
_DETACHED = signal.SIGUSR1
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Resets every mode that a full-screen program may have set; a terminal ignores those it does not have.
_RESET = (
    b"\x18\x1b[<u\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?1015l\x1b[?1016l\x1b[?2004l\x1b[?2026l"
    b"\x1b[?2048l\x1b[?1049l\x1b[?7h\x1b[?25h\x1b[0m"
)


class Foreground:
    """The parent process, as the child sees it; created by `run_in_child`."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid = pid
        self._pipe = pipe

    def detach(self, log: Path, code: int) -> None:
        """Continues without the terminal, with output going to `log`; the parent exits with `code`.

        Call it after the terminal was restored. Raises ConsoleError where the log cannot be opened.
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
        with contextlib.suppress(PermissionError):  # it is a session leader already
            os.setsid()
        if os.getppid() == self._pid:
            os.write(self._pipe, bytes([code]))
            os.kill(self._pid, _DETACHED)
        os.close(self._pipe)


def run_in_child(killed: Callable[[int], str]) -> Foreground:
    """Forks, and returns in the child only; this process waits for it and exits with its code.

    `killed` returns the line to print for the number of the signal that killed the child. When this process is killed,
    the child gets SIGHUP. Call it on the main thread, before any other thread is started.
    """
    modes = termios.tcgetattr(0)
    watched = {signal.SIGCHLD, _DETACHED, *_FORWARDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        _wait_for_child(child, reader, watched, modes, killed)
    os.close(reader)
    _die_with_parent(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGHUP)
    return Foreground(parent, writer)


def _wait_for_child(
    child: int, reader: int, watched: set[signal.Signals], modes: list[Any], killed: Callable[[int], str]
) -> NoReturn:
    while True:
        number = signal.sigwait(watched)
        if number == _DETACHED:
            os._exit(os.read(reader, 1)[0])
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if not pid:
            continue
        if os.WIFSTOPPED(status):
            # The shell waits for this process: it stops too, and both continue together.
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
        elif os.WIFEXITED(status):
            os._exit(os.WEXITSTATUS(status))
        elif os.WIFSIGNALED(status):
            _restore_terminal(modes)
            with contextlib.suppress(OSError):
                os.write(2, f"{killed(os.WTERMSIG(status))}\n".encode())
            os._exit(128 + os.WTERMSIG(status))


def _restore_terminal(modes: list[Any]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    with contextlib.suppress(OSError, termios.error):
        os.write(1, _RESET)
        termios.tcsetattr(0, termios.TCSANOW, modes)


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
