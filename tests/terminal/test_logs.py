from __future__ import annotations

import logging
import logging.handlers
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.config import credentials
from ossconsole.config.credentials import MASK, Credentials, Secret, register_secret
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import make_folder
from ossconsole.config.renewal import RenewedSource
from ossconsole.terminal import logs
from ossconsole.terminal.logs import log_path, printable, redact, set_up_logging, tail

SECRET = "sEcr3t/with+signs=and-more"
LOG = logging.getLogger("ossconsole.test")


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's logging as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    logging.captureWarnings(capture=False)
    for handler in list(root.handlers):
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def logged() -> str:
    return log_path().read_text(encoding="utf-8")


def test_everything_goes_to_a_private_file_and_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().addHandler(logging.StreamHandler())
    old = os.umask(0)
    try:
        path = set_up_logging()
    finally:
        os.umask(old)
    LOG.info("a line with %s", "arguments")
    warnings.warn("a warning", stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0, name="worker-7")
    thread.start()
    thread.join(10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = logged()
    assert "ossconsole.test: a line with arguments" in text
    assert "a warning" in text
    assert "thread worker-7 failed" in text
    assert "ZeroDivisionError" in text
    assert capfd.readouterr() == ("", "")


def test_no_secret_gets_into_the_log() -> None:
    register_secret(Secret(SECRET))
    set_up_logging(logging.DEBUG)
    LOG.info("in the message %s", SECRET)
    LOG.info("in a URL %s", quote(SECRET, safe=""))
    LOG.debug("in a dict %r", {"key": SECRET})
    try:
        int(SECRET)
    except ValueError:
        LOG.exception("in a traceback")
    text = logged()
    assert text.count(MASK) == 4
    assert SECRET not in text
    assert quote(SECRET, safe="") not in text


def test_renewed_secrets_are_masked_like_the_first_ones() -> None:
    class Role(RenewedSource):
        fetched = 0

        def fetch(self) -> Credentials:
            self.fetched += 1
            end = self._now() + timedelta(hours=1)
            name = f"r0tated+{self.fetched}"
            return Credentials(f"ID{self.fetched}", Secret(f"secret-{name}"), Secret(f"token-{name}"), end)

        def version(self) -> int:
            return self.fetched  # renewed by every call

    source = Role()
    texts = [
        secret.reveal() for _ in range(3) for secret in (source().access_key_secret, source().security_token) if secret
    ]
    assert len(set(texts)) == 6
    set_up_logging()
    LOG.info("%s", " ".join([*texts, *(quote(text, safe="") for text in texts)]))
    assert "r0tated" not in logged()


def test_the_oldest_secrets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_MAX_TEXTS", 3)
    for text in ("kept", "one1", "two2", "kept", "three3"):
        register_secret(Secret(text))
    assert redact("kept one1 two2 three3") == f"{MASK} one1 {MASK} {MASK}"


@pytest.mark.parametrize(
    ("text", "leaked"),
    [
        ("id LTAI5tAbCdEfGhIjKlMnOpQr here", "5tAbCdEf"),
        ("id STS.NUgYrLnoC37mZZCNnAbez here", "NUgYrLno"),
        ("https://b.oss/k?x-oss-signature=abcdef0123&x-oss-date=1", "abcdef0123"),
        ("https://b.oss/k?Expires=1&OSSAccessKeyId=abc&Signature=vjbyPxybdZaNmGa%3D", "vjbyPxyb"),
        ("{'x-oss-security-token': 'CAISrAJ1q6Ft5B2y', 'Date': 'x'}", "CAISrAJ1"),
        ("Authorization: OSS4-HMAC-SHA256 Credential=LTAI/2026, Signature=77ba09", "77ba09"),
        ('"authorization": "OSS LTAIabc:qn6qrrqxo2oawuk53otfjbyc"', "qn6qrrqx"),
        ("access_key_secret=hunter2hunter2", "hunter2"),
    ],
)
def test_an_unregistered_credential_is_masked_by_its_form(text: str, leaked: str) -> None:
    assert leaked not in redact(text)


def test_ordinary_words_stay() -> None:
    text = "The signature does not match; step 12, token 3 of 5, https://b.oss/k?prefix=a&max-keys=10"
    assert redact(text) == text


def test_a_secret_that_contains_another_is_masked_whole() -> None:
    register_secret(Secret("abcdef"))
    register_secret(Secret("abcdefghij"))
    register_secret(Secret("abc"))
    assert redact("x abcdefghij y abc") == f"x {MASK} y abc"


def test_rotated_files_are_private_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LIMIT_BYTES", 2000)
    path = set_up_logging()
    for number in range(200):
        LOG.info("line %d with some length to it", number)
    files = sorted(path.parent.iterdir())
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert all(file.stat().st_size <= 2000 for file in files)


def test_a_world_readable_log_is_narrowed() -> None:
    path = log_path()
    make_folder(path.parent)
    path.touch(mode=0o644)
    set_up_logging()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_counts_lines_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logs._PrivateFileHandler)

    def full(self: logging.Handler, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handler.stream, "write", full, raising=False)
    LOG.info("lost")
    assert handler.lost == 1
    assert capfd.readouterr() == ("", "")


def test_a_log_folder_that_cannot_be_made(home: Path) -> None:
    (home / "state" / "logs").write_text("in the way")
    with pytest.raises(ConsoleError):
        set_up_logging()


def test_tail_is_fit_for_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "native.log"
    path.write_bytes(
        b"first\n\x1b[31mred\x1b[0m and \x1b]0;title\x07plain\x1b[2J\n"
        b"10%\r50%\r100%\r\nbell\x07 tab\there \xff\n" + "right\u202eto left\n".encode() + b"x" * 600 + b"\nlast"
    )
    lines = tail(path, lines=6)
    assert lines[0] == "red and plain"
    assert lines[1:4] == ["100%", "bell tab    here \ufffd", "rightto left"]
    assert (len(lines[4]), lines[4][-1], lines[5]) == (500, "…", "last")


def test_tail_of_a_huge_log_reads_its_end_only(tmp_path: Path) -> None:
    path = tmp_path / "native.log"
    path.write_bytes(b"y" * (1 << 20) + b"\nend\n" + b"z" * (1 << 20))
    assert tail(path) == ["z" * 499 + "…"]
    path.write_bytes(b"line\n" * 100_000)
    assert tail(path, lines=3) == ["line"] * 3
    assert len(tail(path, lines=10**9)) < 100_000


def test_tail_masks_secrets_and_needs_no_file(tmp_path: Path) -> None:
    register_secret(Secret(SECRET))
    path = tmp_path / "native.log"
    assert tail(path) == []
    path.write_text(f"native code printed {SECRET}\n")
    assert tail(path) == [f"native code printed {MASK}"]


@given(st.text())
def test_printable_leaves_nothing_that_moves_the_cursor(text: str) -> None:
    shown = printable(text)
    assert not any(ord(character) < 32 and character != "\n" for character in shown)
    assert "\x1b" not in shown
    assert not any(0x7F <= ord(character) <= 0x9F for character in shown)
