"""The new user's hour over a real sshd on loopback: launch, demo, switch, checkpoints, a dropped line.

python -m tests.benchmarks.ssh_hour --screens FOLDER

It needs `sshd`, `ssh` and `ssh-keygen` (Debian: openssh-server, openssh-client). sshd runs as this user, with own keys,
on a free port of 127.0.0.1. Each screen is stored as text; the script fails where an expected word does not show.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.bench_tui import Terminal
from tests.cli.consoles import cleared

COLUMNS, ROWS = 80, 24
_PRIVILEGE_FOLDER = Path("/run/sshd")  # which sshd wants as root
_START_S = 10.0
_KEY = re.compile(r"\x1b\[[A-Z]|[\s\S]")


class NotShownError(Exception):
    """An expected word did not show in time."""


class Session(Terminal):
    """An SSH session; each screen that a step waited for is stored."""

    def __init__(self, command: list[str], folder: Path, first: int = 1) -> None:
        super().__init__(command, (COLUMNS, ROWS), {})
        self._folder = folder
        self.number = first

    def step(self, name: str, keys: str, *words: str, within: float = 60.0, settle: float = 0.7) -> None:
        """Types the keys, waits until every word shows, and stores the screen. Raises NotShownError."""
        began = time.monotonic()
        self.type(keys)
        while missing := [word for word in words if word not in self.text]:
            self.read(0.1)
            if time.monotonic() - began > within:
                self._store(name)
                raise NotShownError(f"{name}: {missing} not on the screen:\n{self.text}")
        took, end = time.monotonic() - began, time.monotonic() + settle
        while time.monotonic() < end:
            self.read(0.1)
        self._store(name)
        print(f"{self.number:2} {took:6.1f} s  {name}", flush=True)  # noqa: T201
        self.number += 1

    def type(self, keys: str) -> None:
        """Sends the keys one by one, as fingers do."""
        for key in _KEY.findall(keys):
            self.press(key)
            self.read(0.3 if key == "\x1b" else 0.05)

    def drop(self) -> None:
        """The client dies, as when a laptop is closed."""
        self.process.kill()
        self.process.wait()

    def _store(self, name: str) -> None:
        path = self._folder / f"{self.number:02}-{name.replace(' ', '-')}.txt"
        lines = [line.rstrip() for line in self.text.splitlines()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[list[str]]:
    """An sshd; gives the command that connects to it with a terminal."""
    programs = {
        name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("sshd", "ssh", "ssh-keygen")
    }
    if missing := [name for name, path in programs.items() if path is None]:
        sys.exit(f"{', '.join(missing)} not found. On Debian: apt install openssh-server openssh-client.")
    for name in ("host", "user"):
        subprocess.run(
            [str(programs["ssh-keygen"]), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "yes",
        "PrintMotd": "no",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:
        _PRIVILEGE_FOLDER.mkdir(exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        running = subprocess.Popen(
            [str(programs["sshd"]), "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log
        )
        try:
            _wait_for(port, folder / "sshd.log")
            options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "EscapeChar=none"]
            flags = [word for option in options for word in ("-o", option)]
            target = ["-i", str(folder / "user"), "-p", str(port), f"{getpass.getuser()}@127.0.0.1"]
            yield [str(programs["ssh"]), "-tt", *flags, *target]
        finally:
            running.terminate()
            running.wait()


def _wait_for(port: int, log: Path) -> None:
    end = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > end:
            sys.exit(f"sshd does not answer: {log.read_text()}")
        time.sleep(0.1)


def shell(folder: Path) -> str:
    """The remote command: a shell whose `ossconsole` is this one, with a home of its own."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    variables = {
        "HOME": home,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OSSCONSOLE_STATE_DIR": home / "state",
        "OSSCONSOLE_CONFIG_DIR": home / "config",
        "PS1": "gpu$ ",
        "LANG": "C.UTF-8",
    }
    words = [f"{name}={value}" for name, value in variables.items()]
    return shlex.join(["cd", str(home)]) + " && " + shlex.join(["env", *words, "/bin/sh", "-i"])


def hour(connect: list[str], folder: Path, screens: Path) -> None:
    """Plays the hour. Raises NotShownError."""
    command = [*connect, shell(folder)]
    first = Session(command, screens)
    first.step("shell", "", "gpu$")
    first.step("welcome", "ossconsole\r", "Try the demo", "Connect a bucket", "Continue a run")
    first.step("help of the welcome", "?", "Welcome", "esc close")
    first.step("the demo is prepared", "\x1bd", "Preparing the sandbox", within=60)
    first.step("the run starts", "", "run 20", "starts", within=300)
    first.step("the first steps", "", "compute", within=300)
    first.step("another mode", "2", "dataset/", within=120)
    first.step("back to the run", "0", "compute")
    first.step("the cache is full", "", "has filled the accelerator", within=600)
    first.step("a switch", "", "switched to accelerated", within=600)
    first.step("paused", " ", "aused", within=120)
    first.step("resumed", " ", "unning", within=120)
    first.step("all measurements", "b", "esc close")
    first.step("all events", "\x1bi", "esc close")
    first.step("checkpoints", "\x1b2C", "resnet18", within=240)
    first.step("a checkpoint", "\x1b[F\r", "ossconsole checkpoint", within=60)
    first.step("two panes", "\x1bt", "this machine")
    first.step("setup", "t1", "simulated")
    first.step("upload", "3", "another upload")
    first.step("another upload", "n", "A source is one of")
    first.drop()
    second = Session(command, screens, first.number)
    second.step("shell again", "", "gpu$")
    second.step("found again", "ossconsole\r", "4 Train", "loss", within=120)
    second.step("stop is asked for", "s", "Stop")
    second.step("stopped", "\x1b[C\r", "Stopped", within=240)
    second.step("quit", "q", "gpu$", within=60)
    second.step("status", "clear; ossconsole status\r", "stopped", within=120)
    second.step("checkpoints listed", "clear; ossconsole ls checkpoints/ --profile sandbox\r", "resnet18", within=120)
    second.drop()


def main() -> None:
    """Plays the hour and says where the screens are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screens", type=Path, default=Path("ssh-hour"), help="the folder of the stored screens")
    screens: Path = parser.parse_args().screens
    screens.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that sshd ends, too
    with TemporaryDirectory() as name, server(Path(name)) as connect:
        try:
            with cleared(Path(name) / "home" / "state"):
                hour(connect, Path(name), screens)
        except NotShownError as error:
            sys.exit(str(error))
    print(f"The screens are in {screens}.")  # noqa: T201


if __name__ == "__main__":
    main()
