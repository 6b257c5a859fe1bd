"""A secret typed on the Setup screen shows nowhere: not on the screen, in logs, files, `ps`, nor after a crash."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pyte

from ossconsole.config.credential_files import connector_file, read_connector_file
from tests.terminal.screen import Terminal

SENTINEL = "sentinel7f3a9c51d2"
COLUMNS, ROWS = 100, 30


def screen(terminal: Terminal) -> str:
    """What the terminal shows now."""
    emulated = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(emulated).feed(terminal.output)
    return "\n".join(emulated.display)


def enter_key(terminal: Terminal) -> None:
    """From the first screen to a filled-in form."""
    terminal.until(lambda: "Browse" in screen(terminal))
    os.write(terminal.master, b"1")
    terminal.until(lambda: "credentials" in screen(terminal))
    os.write(terminal.master, b"k")
    terminal.until(lambda: "AccessKey secret" in screen(terminal))
    os.write(terminal.master, b"LTAI5tTypedByHand")
    terminal.until(lambda: "LTAI5tTypedByHand" in screen(terminal))
    os.write(terminal.master, b"\t")
    terminal.until(lambda: "never shown" in screen(terminal))
    os.write(terminal.master, SENTINEL.encode())
    terminal.until(lambda: "•" * len(SENTINEL) in screen(terminal))


def files_with_the_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SENTINEL.encode() in path.read_bytes()]


def test_a_typed_secret_is_in_its_file_and_nowhere_else(home: Path) -> None:
    with Terminal("ossconsole", columns=COLUMNS, rows=ROWS) as terminal:
        enter_key(terminal)
        os.write(terminal.master, b"\x13")  # ctrl+s
        terminal.until(connector_file().exists)
        processes = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
        terminal.until(lambda: "Written to" in screen(terminal))
        os.write(terminal.master, b"q")
        assert terminal.finish() == 0
    assert SENTINEL.encode() not in terminal.output
    assert SENTINEL not in processes
    assert files_with_the_secret(home) == [connector_file()]
    assert stat.S_IMODE(connector_file().stat().st_mode) == 0o400
    written = read_connector_file(connector_file())
    assert written is not None
    assert written.access_key_secret.reveal() == SENTINEL


def test_a_crash_with_the_secret_in_hand_does_not_tell_it(home: Path) -> None:
    with Terminal("tests.tui.setup_child", columns=COLUMNS, rows=ROWS) as terminal:
        enter_key(terminal)
        os.write(terminal.master, b"\x13")
        assert terminal.finish() != 0
    assert b"crashed" in terminal.output
    assert b"ZeroDivisionError" in terminal.output
    assert SENTINEL.encode() not in terminal.output
    assert list((home / "state" / "crashes").iterdir())
    assert files_with_the_secret(home) == []
