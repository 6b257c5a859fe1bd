"""What the console costs: first paint, bytes per update, key to repaint, CPU for drawing; all seen from a real pty.

python -m tests.benchmarks.bench_tui                     over a made-up run, beside a bare Textual app of the same size
python -m tests.benchmarks.bench_tui -- ossconsole demo  while a real run trains; first paint is the demo's
python -m tests.benchmarks.bench_tui --paint "harlequin --locale C"   first paint, in turn with that of another program
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import shlex
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pyte

CONSOLE = ["ossconsole"]
SIMULATED = [sys.executable, "-m", "tests.benchmarks.simulated_console"]
BASELINE = [sys.executable, "-m", "tests.benchmarks.textual_baseline"]
KEYS = {
    "in place": (("y", b", log"), ("y", b""), ("u", b", raw"), ("u", b"")),
    "a dialog": (("?", b" Keys "), ("q", b"data wait")),
}
"""With the bytes that show their effect: the title of the loss; the help opens and closes over the whole screen."""
TICK_S = 0.25
PAINTED_CELLS = 120
"""A first paint is when this many cells are not blank."""


class Terminal:
    """A program in a pseudo-terminal, with what it drew."""

    def __init__(self, command: Sequence[str], size: tuple[int, int], environment: dict[str, str]) -> None:
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._unseen = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        known = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            list(command), stdin=slave, stdout=slave, stderr=slave, env=known, start_new_session=True
        )
        os.close(slave)
        self.bytes = 0
        self.newest = b""
        self.arrived = 0.0

    def read(self, seconds: float) -> bool:
        """Take in what comes within `seconds`; True where anything did."""
        if not select.select([self._master], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:
            return False
        self.arrived = time.perf_counter()
        self.newest += data
        self.bytes += len(data)
        self._unseen += data
        return True

    def wait(self, seen: Callable[[str], bool], timeout_s: float) -> float:
        """Seconds until the screen satisfies `seen`. Raises TimeoutError with the screen."""
        start = time.perf_counter()
        while time.perf_counter() - start < timeout_s:
            if seen(self.text):
                return time.perf_counter() - start
            if not self.read(0.05) and self.process.poll() is not None:
                break
        raise TimeoutError(f"not seen within {timeout_s} s:\n{self.text}")

    @property
    def text(self) -> str:
        """What a terminal shows; emulated only when asked for, as the user's works on another machine."""
        self._stream.feed(self._unseen)
        self._unseen = b""
        return "\n".join(self._screen.display)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def cpu_s(self) -> float:
        """CPU seconds of the main thread, which is the one that draws, and of Textual's writer."""
        drawer = self._drawer()
        tasks = Path(f"/proc/{drawer.pid}/task")
        names = {int(path.name): (path / "comm").read_text().strip() for path in tasks.iterdir()}
        drawing = [drawer.pid, *(tid for tid, name in names.items() if name.startswith("textual"))]
        return sum(thread.user_time + thread.system_time for thread in drawer.threads() if thread.id in drawing)

    def _drawer(self) -> psutil.Process:
        """The process that draws: `ossconsole` does it in a fork, the one started only waits for it."""
        first = psutil.Process(self.process.pid)
        return next((child for child in first.children() if child.cmdline() == first.cmdline()), first)

    def close(self) -> None:
        """Ends the program and what it started."""
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            deadline = time.perf_counter() + 20
            while self.process.poll() is None and time.perf_counter() < deadline:
                self.read(0.1)
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        os.close(self._master)


def painted(text: str) -> bool:
    return sum(not character.isspace() for character in text) >= PAINTED_CELLS


def first_paints(commands: Sequence[Sequence[str]], rounds: int, environment: dict[str, str]) -> list[list[float]]:
    """Seconds from the start of the process to a painted screen, of each command; the commands take turns."""
    times: list[list[float]] = [[] for _ in commands]
    for number in range(rounds):
        for command, found in list(zip(commands, times, strict=True))[:: 1 if number % 2 else -1]:
            terminal = Terminal(command, (80, 24), environment)
            try:
                terminal.wait(painted, 60)
                found.append(time.perf_counter() - terminal.began)
            finally:
                terminal.close()
    return times


def traffic(terminal: Terminal, seconds: float) -> tuple[list[int], float]:
    """Bytes in each quarter of a second, and the share of one core that drawing took."""
    counts, cpu, start = [], terminal.cpu_s(), time.perf_counter()
    end = start + seconds
    while time.perf_counter() < end:
        before, slot = terminal.bytes, time.perf_counter() + TICK_S
        while (left := slot - time.perf_counter()) > 0:
            terminal.read(left)
        counts.append(terminal.bytes - before)
    return counts, (terminal.cpu_s() - cpu) / (time.perf_counter() - start)


def key_latencies(terminals: Sequence[Terminal], keys: Sequence[tuple[str, bytes]], presses: int) -> list[list[float]]:
    """Seconds from a key to the bytes that show its effect, for each program; `keys` are pressed in turn.

    The programs take turns, so that a busy moment of the machine meets all of them. A key without an effect to look for
    is not timed.
    """
    times: list[list[float]] = [[] for _ in terminals]
    for number in range(presses):
        key, effect = keys[number % len(keys)]
        for terminal, found in zip(terminals, times, strict=True):
            pause = time.perf_counter() + 0.3 + 0.017 * (number % 13)  # at all phases of the regular updates
            while (left := pause - time.perf_counter()) > 0:
                for each in terminals:
                    each.read(min(left, 0.01))
            seconds = _press(terminal, key, effect)
            if effect:
                found.append(seconds)
    return times


def _press(terminal: Terminal, key: str, effect: bytes) -> float:
    """Seconds until the effect arrives; an empty one is not waited for."""
    terminal.newest = b""
    start = time.perf_counter()
    terminal.press(key)
    while effect not in terminal.newest:
        if time.perf_counter() - start > 10:
            raise TimeoutError(f"{key!r} had no effect:\n{terminal.text}")
        terminal.read(0.5)
    return terminal.arrived - start


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to watch")
    parser.add_argument("--rounds", type=int, default=5, help="first paints to time")
    parser.add_argument("--size", default="80x24")
    parser.add_argument("--paint", default="", help="only time the first paint, beside that of this command")
    parser.add_argument("command", nargs="*", help="instead of the made-up run")
    options = parser.parse_args()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # what was ended at its first paint may still write
        environment = {"OSSCONSOLE_STATE_DIR": f"{folder}/state", "OSSCONSOLE_CONFIG_DIR": f"{folder}/config"}
        if options.paint:
            _compare_paints(shlex.split(options.paint), options.rounds, environment)
            return
        _say_paint("first paint", first_paints([options.command or SIMULATED], options.rounds, environment)[0])
        size = tuple(map(int, options.size.split("x")))
        terminals = []
        try:
            for title, command in (("", options.command or SIMULATED), (" of a bare Textual app", BASELINE)):
                terminals.append(Terminal(command, (size[0], size[1]), environment))
                _watch(terminals[-1], options.seconds, title)
            for name, keys in KEYS.items():
                _compare_keys(name, key_latencies(terminals, keys, 60))
        finally:
            for terminal in terminals:
                terminal.close()


def _compare_keys(name: str, times: Sequence[Sequence[float]]) -> None:
    for title, found in zip(("", " of a bare Textual app"), times, strict=True):
        p50, p95 = (quantile(found, share) * 1000 for share in (0.5, 0.95))
        say(f"key to repaint{title}, {name}  p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    console, bare = (quantile(found, 0.95) for found in times)
    say(f"ratio of the p95, {name}  {console / bare:.2f}")


def _compare_paints(other: Sequence[str], rounds: int, environment: dict[str, str]) -> None:
    console, theirs = first_paints([CONSOLE, other], rounds, environment)
    _say_paint("first paint of ossconsole", console)
    _say_paint(f"first paint of {other[0]}", theirs)
    say(f"ratio of the medians  {statistics.median(console) / statistics.median(theirs):.2f}")


def _say_paint(title: str, times: list[float]) -> None:
    say(f"{title}  median {statistics.median(times):.2f} s, best {min(times):.2f} s of {len(times)}")


def _watch(terminal: Terminal, seconds: float, title: str) -> None:
    """Prints bytes and processor time."""
    terminal.wait(lambda text: re.search(r"step [1-9]", text) is not None, 120)
    warm_up = time.perf_counter() + 5
    while time.perf_counter() < warm_up:
        terminal.read(0.1)
    counts, cpu = traffic(terminal, seconds)
    say(
        f"bytes per update at 4 Hz{title}  mean {statistics.mean(counts):.0f}, p95 {quantile(counts, 0.95):.0f}, "
        f"most {max(counts)}"
    )
    say(f"CPU for drawing{title}  {cpu * 100:.1f} % of one core (the screen's own threads; a run trains in others)")


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
