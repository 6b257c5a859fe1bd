"""Setup in the real console, on real servers: the test passes, and the whole console changes its profile."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.credential_sources import write_connector_file
from ossconsole.config.profiles import Settings, load_settings, save_settings
from tests.sandboxed import read_log, sandboxed
from tests.terminal.screen import Terminal

DOWN, ENTER = b"\x1b[B", b"\r"


def test_the_embedded_sandbox_passes_the_test() -> None:
    with Terminal("ossconsole", columns=120, rows=40) as terminal:
        terminal.until_shown("Browse")
        terminal.press(b"1")
        terminal.until_shown("no expiry")
        terminal.press(b"c")
        terminal.until_shown("✓ multipart")
        terminal.until_shown("127_data-acc")
        shown = terminal.cells
        terminal.send(signal.SIGTERM)
        terminal.finish()
    assert "✗" not in shown
    assert "Test (simulated)" in shown


@pytest.mark.slow
def test_another_profile_is_used_without_a_restart(tmp_path: Path) -> None:
    with sandboxed(tmp_path / "first") as first, sandboxed(tmp_path / "second") as second:
        settings = Settings()
        for name, server in (("first", first), ("second", second)):
            profile = msgspec.structs.replace(server.process.profile(), name=name, credentials="connector")
            settings = settings.with_profile(msgspec.structs.replace(profile, simulated=False))
        save_settings(settings.activated("first"))
        write_connector_file(first.process.credentials())
        second.store().put("dataset/sample/train/a/1.u8", bytes(1000))
        with Terminal("ossconsole", columns=120, rows=40) as terminal:
            terminal.until_shown("Browse")
            terminal.press(b"1")
            terminal.until_shown("Profile first")
            terminal.until_shown("no expiry")
            write_connector_file(second.process.credentials())
            terminal.press(b"p")
            terminal.until_shown("second               oss://127 in cn-sandbox")
            terminal.press(DOWN)
            terminal.press(ENTER)
            terminal.until_shown("Profile second")
            terminal.until_shown("no expiry")
            terminal.press(b"c")
            terminal.until_shown("✓ multipart")
            terminal.until_shown("second read")
            terminal.press(b"q")
            assert terminal.finish() == 0
        operations = {record.operation for record in read_log(second.process.log_path)}
    assert {"HeadObject", "ListObjects", "PutObject", "CompleteMultipartUpload", "DeleteObject"} <= operations
    assert load_settings().active == "second"
