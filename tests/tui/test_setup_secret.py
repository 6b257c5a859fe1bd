"""A secret typed on the Setup screen shows nowhere: not on the screen, in logs, files, `ps`, nor after a crash."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.credential_sources import connector_file, read_connector_file
from ossconsole.config.profiles import Settings, save_settings
from tests.sandboxed import Sandboxed
from tests.terminal.screen import Terminal

SENTINEL = "sentinel7f3a9c51d2"
COLUMNS, ROWS = 100, 30


@pytest.fixture(autouse=True)
def profile_without_a_key(sandboxed_bucket: Sandboxed) -> None:
    """As on a fresh machine: the console opens, and the key is entered there."""
    profile = msgspec.structs.replace(sandboxed_bucket.process.profile(), name="mine", simulated=False)
    save_settings(Settings().with_profile(profile, activate=True))


def enter_key(terminal: Terminal) -> None:
    """From the first screen to a filled-in form."""
    terminal.until_shown("Browse")
    terminal.press(b"1")
    terminal.until_shown("No credentials found")
    terminal.press(b"k")
    terminal.until_shown("AccessKey secret")
    terminal.press(b"LTAI5tTypedByHand")
    terminal.until_shown("LTAI5tTypedByHand")
    terminal.press(b"\t")
    terminal.until_shown("never shown")
    terminal.press(SENTINEL.encode())
    terminal.until_shown("•" * len(SENTINEL))


def files_with_the_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SENTINEL.encode() in path.read_bytes()]


def test_a_typed_secret_is_in_its_file_and_nowhere_else(home: Path) -> None:
    with Terminal("ossconsole", columns=COLUMNS, rows=ROWS) as terminal:
        enter_key(terminal)
        terminal.press(b"\x13")  # ctrl+s
        terminal.until(connector_file().exists)
        processes = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
        terminal.until_shown("LTAI…Hand")
        terminal.press(b"q")
        assert terminal.finish() == 0
    assert SENTINEL.encode() not in terminal.output
    assert SENTINEL not in processes
    assert files_with_the_secret(home) == [connector_file()]
    assert stat.S_IMODE(connector_file().stat().st_mode) == 0o400
    written = read_connector_file(connector_file())
    assert written is not None
    assert written.access_key_secret.reveal() == SENTINEL


def test_a_crash_does_not_print_the_secret(home: Path) -> None:
    with Terminal("tests.tui.setup_child", columns=COLUMNS, rows=ROWS) as terminal:
        enter_key(terminal)
        terminal.press(b"\x13")
        assert terminal.finish() != 0
    assert b"crashed" in terminal.output
    assert b"ZeroDivisionError" in terminal.output
    assert SENTINEL.encode() not in terminal.output
    assert list((home / "state" / "crashes").iterdir())
    assert files_with_the_secret(home) == []
