"""`ossconsole run`: starts a training script so that it outlives the terminal, with its output kept."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from ossconsole.cli.output import say
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import logs_dir, open_private
from ossconsole.config.spawning import module_command
from ossconsole.config.text import counted, signal_name

_POLL_S = 0.2
_FIRST_WAIT_S, _MAX_WAIT_S = 1.0, 60.0
_DETACHED = 128 + signal.SIGINT
_NOT_STARTED = 126  # as shells have it


@click.command(
    context_settings={"allow_interspersed_args": False}, short_help="Start a script that outlives this terminal."
)
@click.option("--restarts", type=click.IntRange(min=0), default=0, help="Restart it up to N times when it fails.")
@click.option("--detach", is_flag=True, help="Return immediately, instead of printing its output until it ends.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], restarts: int, detach: bool) -> int:
    """Start a script that outlives this terminal: ossconsole run -- python train.py

    Its output is kept in a file. A script that uses `ossconsole.watch` is shown by `ossconsole`, which can pause and
    stop it. Ctrl-C and a lost terminal end the printing only, not the script.
    """
    if shutil.which(command[0]) is None:
        raise SettingsError(
            f"The program {command[0]!r} does not exist, or is not executable.",
            remedy="Give its path after `--`; a script needs `chmod +x`, or its interpreter before it.",
        )
    log = logs_dir() / f"run-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}.log"
    output = open_private(log)
    try:
        supervisor = subprocess.Popen(  # noqa: S603 - the user's own command
            module_command("ossconsole.cli.run", str(restarts), *command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    finally:
        os.close(output)
    say(f"Started {shlex.join(command)} as process {supervisor.pid}; its output is in {log}.", err=True)
    if detach:
        return 0
    try:
        return _follow(supervisor, log)
    except KeyboardInterrupt:
        say(f"The script continues. To end it: kill {supervisor.pid}", err=True)
        return _DETACHED


def _follow(supervisor: subprocess.Popen[bytes], log: Path) -> int:
    """Prints what the script prints, until it ends; returns its exit code."""
    with log.open("rb") as file:
        while True:
            ended = supervisor.poll()  # before the last read, which then has all of its output
            while part := file.read(1 << 16):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            if ended is not None:
                return ended if ended >= 0 else 128 - ended
            time.sleep(_POLL_S)


def supervise() -> None:
    """The process that outlives the terminal: runs the command of `sys.argv`, and restarts it when it fails.

    It passes SIGTERM and SIGINT on, and does not restart after them. It exits with the code of the command, with
    126 where that cannot be started.
    """
    restarts, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requested: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def end(number: int, _frame: object) -> None:
        requested.append(number)
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            child = subprocess.Popen(command)  # noqa: S603 - the user's own command
        except OSError as error:
            say(f"{command[0]!r} cannot be started: {error.strerror}.", err=True)
            sys.exit(_NOT_STARTED)
        if requested:  # while it was started
            child.send_signal(requested[0])
        code = child.wait()
        if code == 0 or requested or not restarts:
            sys.exit(code if code >= 0 else 128 - code)
        restarts -= 1
        ended = f"ended with exit code {code}" if code > 0 else f"was killed by {signal_name(-code)}"
        say(f"The script {ended}. Restarting it in {wait_s:.0f} s; {counted(restarts, 'restart')} left.", err=True)
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if requested:
                sys.exit(128 + requested[0])
            time.sleep(_POLL_S)
        wait_s = min(_MAX_WAIT_S, 2 * wait_s)


if __name__ == "__main__":
    supervise()
