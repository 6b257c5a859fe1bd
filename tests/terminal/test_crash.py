from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ossconsole import __version__
from ossconsole.config.credentials import Secret, register_secret
from ossconsole.config.files import make_folder
from ossconsole.terminal import logs as crash
from ossconsole.terminal.logs import crash_line, crashes_dir, report

SENTINEL = "cr4sh-sentinel-77aa"


def refuse(message: str, access_key_secret: str) -> None:
    """Raises with a secret in a local variable and in one exception before."""
    first = KeyError(len(access_key_secret))
    raise ValueError(message) from first


def failure(message: str = "went wrong") -> BaseException:
    try:
        refuse(message, SENTINEL)
    except ValueError as error:
        return error
    raise AssertionError


def test_a_report_has_traceback_and_versions_and_no_local_variable(home: Path) -> None:
    path = report(failure())
    text = path.read_text()
    assert path.parent == home / "state" / "crashes"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert f"ossconsole {__version__}" in text
    assert "ValueError: went wrong" in text
    assert "KeyError" in text
    assert "in refuse" in text
    assert "textual " in text
    assert SENTINEL not in text


def test_a_secret_in_the_message_is_masked() -> None:
    register_secret(Secret(SENTINEL))
    error = failure(f"the server refused {SENTINEL}")
    line = crash_line(error)
    (path,) = crashes_dir().iterdir()
    assert SENTINEL not in line
    assert SENTINEL not in path.read_text()
    assert "the server refused" in path.read_text()


def test_the_line_cannot_disturb_the_terminal() -> None:
    line = crash_line(failure("one\ntwo \x1b[2J\x1b]52;c;aGk=\x07" + "x" * 5000))
    assert line.startswith(r"ossconsole crashed: ValueError: one two \x1b[2J")
    assert line.isprintable()
    assert len(line) < 600


def test_old_reports_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "_KEPT_REPORTS", 3)
    folder = make_folder(crashes_dir())
    for day in range(1, 8):
        (folder / f"crash-2020010{day}-000000-1.txt").touch()
    newest = report(failure())
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["crash-20200106-000000-1.txt", "crash-20200107-000000-1.txt", newest.name]


def test_without_a_place_for_the_report_the_line_still_comes(home: Path) -> None:
    (home / "state" / "crashes").write_text("in the way")
    line = crash_line(failure())
    assert line.startswith("ossconsole crashed: ValueError: went wrong. No report was written: ")


def test_an_exception_whose_text_fails() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert "MuteError" in report(MuteError()).read_text()
    assert "MuteError" in crash_line(MuteError())
