"""The real command on slow links and in odd terminals, each in a pseudo-terminal."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.consoles import Console, wait_until

pytestmark = pytest.mark.timeout(300)
BYTES_PER_S = 20_000
HELD_S, KEYS_PER_S = 3.0, 30.0
MODES = {"1": "Profile", "2": "oss://", "3": "Source", "4": "No run yet"}


def hold(console: Console, key: bytes) -> int:
    """Holds a key while the link carries BYTES_PER_S, until all is shown; the bytes that were sent to the terminal."""
    began = last = quiet = time.monotonic()
    before, pressed, room = len(console.output), 0, 0.0
    while time.monotonic() - quiet < 1.0 or pressed < HELD_S * KEYS_PER_S:
        now = time.monotonic()
        while pressed < min(HELD_S, now - began) * KEYS_PER_S:
            os.write(console.master, key)
            pressed, quiet = pressed + 1, now
        room, last = min(2_000.0, room + (now - last) * BYTES_PER_S), now
        if room >= 100 and select.select([console.master], [], [], 0.005)[0]:
            data = os.read(console.master, int(room))
            console.output += data
            room, quiet = room - len(data), time.monotonic()
        else:
            time.sleep(0.005)
    return len(console.output) - before


@pytest.mark.slow
@pytest.mark.usefixtures("state")
def test_a_held_key_stops_when_it_is_let_go_on_a_slow_link() -> None:
    """What the link cannot carry while the key is held would still be shown, row by row, after it was let go."""
    carried = HELD_S * BYTES_PER_S
    with Console(columns=80, rows=24) as console:
        console.browse()
        console.type("g")
        console.until_seen("Go to")
        console.type("dataset/sample/train/c0/\r")
        console.until_seen("112 objects")
        for key in (b"j", b"k", b"\x1b[6~", b"\x1b[5~"):
            assert hold(console, key) < carried * 1.25, key
        console.type("?")
        console.until_seen("esc close")
        for key in (b"j", b"k"):
            assert hold(console, key) < carried * 1.25, key
        console.type("\x1b")
        console.until_seen("112 objects", gone="esc close")
        console.quit()


@pytest.mark.slow
@pytest.mark.usefixtures("state")
def test_keys_that_a_long_way_has_bunched_are_all_taken_and_late_answers_are_no_keys() -> None:
    """With round trips of 300 ms, keys come in packets, and what the terminal answers comes among them."""
    with Console(columns=80, rows=24) as console:
        console.browse()
        os.write(console.master, b"gdataset/sample/train/c0/\r")
        console.until_seen("112 objects")
        os.write(console.master, b"/0\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\1\x1b[0n\x1b[?1;2c0")
        console.until_seen("filter '010'")
        os.write(console.master, b"\x1b4")
        console.until_seen("No run yet")
        console.quit()
        assert console.lines == []


@pytest.mark.slow
@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("size", [(60, 18), (250, 80)], ids=str)
def test_every_mode_shows_its_next_step_in_the_smallest_and_the_largest_terminal(size: tuple[int, int]) -> None:
    columns, rows = size
    with Console(columns=columns, rows=rows) as console:
        console.browse()
        for key, words in MODES.items():
            console.type(key)
            console.until_seen(words, "4 Train", "? ")
        console.quit()


@pytest.mark.slow
@pytest.mark.parametrize("term", ["xterm", "vt100", "linux", "screen", "xterm-mono", "tmux-256colop"])
@pytest.mark.usefixtures("state")
def test_a_terminal_that_answers_no_query_waits_for_nothing(term: str) -> None:
    with Console(columns=80, rows=24, term=term) as console:
        console.browse()
        console.type("4")
        console.until_seen("No run yet")
        console.quit()


class Tmux:
    """A tmux server of its own."""

    def __init__(self, folder: Path) -> None:
        self._command = ["tmux", "-f", "/dev/null", "-S", str(folder / "tmux")]

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run([*self._command, "kill-server"], check=False, capture_output=True)

    def ask(self, *words: str) -> str:
        return subprocess.run([*self._command, *words], check=True, capture_output=True, text=True).stdout

    def until_seen(self, text: str) -> None:
        wait_until(lambda: text in self.ask("capture-pane", "-p"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
@pytest.mark.parametrize("clipboard", ["on", "external", "off"])
def test_an_address_is_copied_or_shown_in_tmux_with_any_clipboard(state: Path, tmp_path: Path, clipboard: str) -> None:
    command = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.quote(sys.executable)} -m ossconsole; echo left"
    with Tmux(tmp_path) as tmux:
        variables = [
            word
            for name, value in os.environ.items()
            if name.startswith(("OSSCONSOLE_", "HOME", "PYTHONPATH"))
            for word in ("-e", f"{name}={value}")
        ]
        tmux.ask("new-session", "-d", "-x", "100", "-y", "30", *variables, "sh")
        tmux.ask("set", "-g", "set-clipboard", clipboard)
        tmux.ask("send-keys", command, "Enter")
        tmux.until_seen("Connect a bucket")
        tmux.ask("send-keys", "2")
        tmux.until_seen("dataset/")
        tmux.ask("send-keys", "y")
        tmux.until_seen("Copy an address")
        tmux.ask("send-keys", "Enter")
        tmux.until_seen("clipboard")
        assert "oss://127/" in tmux.ask("capture-pane", "-p")
        if clipboard == "on":
            wait_until(lambda: tmux.ask("show-buffer").startswith("oss://127/"))
        tmux.ask("send-keys", "Escape")
        tmux.until_seen("Browse")
        tmux.ask("send-keys", "q")
        tmux.until_seen("left")
        assert state.exists()
