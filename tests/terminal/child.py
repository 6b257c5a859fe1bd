"""What runs in the pseudo-terminal: `python -m tests.terminal.child SCENARIO LOG`."""

# ruff: noqa: T201 - printing is what is tested

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tty
from pathlib import Path
from typing import Any

from ossconsole.config.errors import ConsoleError
from ossconsole.terminal.logs import crash_line
from ossconsole.terminal.signals import ExitSignals
from ossconsole.terminal.tty import owned_terminal

ENTER = "\x1b[?1049h\x1b[?1000h\x1b[?1003h\x1b[?1006h\x1b[?2004h\x1b[?25l\x1b[?1004h\x1b[>1u"
SENTINEL = "s3cret-sentinel-5f1c"


def prints(log: Path) -> int:
    """Native and Python prints inside, native prints after."""
    with owned_terminal(log):
        os.write(1, b"native-one\n")
        os.write(2, b"native-two\n")
        subprocess.run(["/bin/sh", "-c", "echo child-out; echo child-err >&2"], check=True)
        print("drawn-stdout")
        print("drawn-stderr", file=sys.stderr)
        assert sys.__stderr__ is not None
        print("drawn-original", file=sys.__stderr__)
        size = shutil.get_terminal_size()
        print(f"size {size.columns}x{size.lines}")
    os.write(1, b"native-after\n")
    print("printed-after")
    return 0


def draws_and_raises(log: Path) -> int:
    """A crash with the screen taken and nobody to put it back."""

    def fail(access_key_secret: str) -> None:
        raise ValueError(f"failed with {len(access_key_secret)} characters")

    try:
        with owned_terminal(log):
            tty.setraw(0)
            print(ENTER + "drawing", end="", flush=True)
            fail(SENTINEL)
    except ValueError as error:
        print(crash_line(error))
    return 1


def draws_and_leaves(log: Path) -> int:
    """An App that cleans up after itself: nothing is left to undo."""
    with owned_terminal(log):
        print(ENTER + "drawing", end="", flush=True)
        print("\x1b[<u\x1b[?1004l\x1b[?25h\x1b[?2004l\x1b[?1006l\x1b[?1003l\x1b[?1000l\x1b[?1049l", end="", flush=True)
    print("left")
    return 0


def refused(log: Path) -> int:
    try:
        with owned_terminal(log):
            return 0
    except ConsoleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code


def loops(log: Path) -> int:
    """An event loop that ends when it is asked to."""

    async def run(signals: ExitSignals) -> int:
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        signals.attach(ended.set_result, asyncio.get_running_loop())
        print(ENTER + "ready", end="", flush=True)
        return await ended

    with owned_terminal(log) as terminal, ExitSignals(terminal) as signals:
        tty.setraw(0)
        code = asyncio.run(run(signals))
    print(f"cause: {signals.cause}")
    return code


def unattached(log: Path, number: str = "") -> int:
    """Work before the App runs, such as an import. With a number another thread gets that signal."""

    def receive() -> None:
        signal.pthread_kill(threading.get_ident(), int(number))

    with owned_terminal(log) as terminal, ExitSignals(terminal):
        if number:
            threading.Timer(0.3, receive).start()
        print("ready", flush=True)
        while True:
            time.sleep(60)


def unwinds(log: Path) -> int:
    """What has been asked to end is asked again while it puts things away."""
    with owned_terminal(log) as terminal, ExitSignals(terminal):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            print("put away", flush=True)
    return 0


def ignores(log: Path) -> int:
    """An App that never ends although it was asked."""

    async def run(signals: ExitSignals) -> None:
        signals.attach(lambda _: os.write(1, b"asked\n"), asyncio.get_running_loop())
        print(ENTER + "ready", end="", flush=True)
        await asyncio.sleep(3600)

    with owned_terminal(log) as terminal, ExitSignals(terminal, grace_s=0.1) as signals:
        tty.setraw(0)
        asyncio.run(run(signals))
    return 0


def goes_on(log: Path) -> int:
    """The terminal goes, the work stays: everything printed from then on is in the log."""

    async def run(signals: ExitSignals) -> int:
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        signals.attach(ended.set_result, asyncio.get_running_loop())
        print("ready", flush=True)
        return await ended

    with owned_terminal(log) as terminal, ExitSignals(terminal) as signals:
        code = asyncio.run(run(signals))
        asked: list[int] = []
        signals.attach(asked.append)
        print("into the void", flush=True)
    print(f"headless after {code} {signals.cause}", flush=True)
    os.write(2, b"native headless\n")
    return 0


def app(log: Path, kind: str = "") -> int:
    """A real Textual App, which ends by its own `exit`."""
    with owned_terminal(log) as terminal, ExitSignals(terminal, grace_s=1.0) as signals:
        from textual.app import App

        class Probe(App[None]):
            def on_mount(self) -> None:
                signals.attach(lambda code: self.exit(return_code=code), asyncio.get_running_loop())
                if kind == "crash":
                    self.call_later(self.fail)
                if kind == "spawn":
                    threading.Thread(target=self.spawn, daemon=True).start()
                if kind == "flood":
                    self.set_interval(0.01, self.flood)
                self.call_after_refresh(os.write, 1, b"mounted\n")

            def fail(self) -> None:
                raise RuntimeError("a widget failed")

            def flood(self) -> None:
                assert self._driver is not None
                self._driver.write("x" * 4096)

            def spawn(self) -> None:
                context = multiprocessing.get_context("spawn")
                child = context.Process(target=print, args=("printed by a worker",), kwargs={"flush": True})
                child.start()
                child.join(30)
                killed = context.Process(target=time.sleep, args=(600,))
                killed.start()
                killed.kill()
                killed.join(30)
                self.call_from_thread(self.exit, return_code=10 + abs(killed.exitcode or 0) + (child.exitcode or 0))

        probe: Any = Probe()
        probe.run()
        code = probe.return_code or 0
    return int(code)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        prints,
        draws_and_raises,
        draws_and_leaves,
        refused,
        loops,
        unattached,
        unwinds,
        ignores,
        goes_on,
        app,
    )
}

if __name__ == "__main__":
    signal.alarm(120)
    sys.exit(SCENARIOS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:]))
