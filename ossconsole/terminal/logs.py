"""The program's log, one private rotating file without secrets, and crash reports."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import platform
import re
import sys
import threading
import time
import traceback
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType

from ossconsole import __version__
from ossconsole.config.credentials import MASK, mask_key_id, registered_texts
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import logs_dir, open_private, state_dir, unwritable
from ossconsole.config.text import safe_text

_LIMIT_BYTES = 4 << 20
_KEPT_FILES = 3
_TAIL_BYTES = 1 << 18
# AccessKey IDs of Alibaba Cloud: LTAI... are long-lived, STS. ones temporary.
_KEY_ID = re.compile(r"\b(?:LTAI[0-9A-Za-z]{8,}|STS\.[0-9A-Za-z]{8,})")
# Signatures and tokens in a URL, a header or a message.
_SIGNED = re.compile(
    r"(?i)\b((?:x-oss-)?(?:security-token|signature)|ossaccesskeyid|access_?key_?secret|security_?token)"
    r"(['\"]?\s*[=:]\s*['\"]?)([^\s&'\",;}]+)"
)
_AUTHORIZATION = re.compile(r"(?i)\b(authorization['\"]?\s*[=:]\s*['\"]?)(OSS4?(?:-HMAC-SHA256)? ?)[^\r\n'\"]+")
_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links, the clipboard
    r"|\x1b[PX^_][^\x1b]*\x1b\\"  # DCS, SOS, PM, APC
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def redact(text: str) -> str:
    """`text` with every registered secret, signature and security token masked, and AccessKey IDs shortened."""
    for secret in registered_texts():
        text = text.replace(secret, MASK)
    text = _AUTHORIZATION.sub(rf"\1\2{MASK}", text)
    text = _SIGNED.sub(rf"\1\2{MASK}", text)
    return _KEY_ID.sub(lambda found: mask_key_id(found[0]), text)


def printable(text: str) -> str:
    """`text` without escape sequences, control characters and bidirectional marks; tabs become spaces."""
    return _CONTROL.sub("", text.replace("\t", "    "))


def log_path() -> Path:
    """Our own log."""
    return logs_dir() / "ossconsole.log"


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _PrivateFileHandler(logging.handlers.RotatingFileHandler):
    """Creates the file with mode 0600; counts the lines that a failing disk loses: a print would break the screen."""

    def __init__(self, path: Path) -> None:
        self.lost = 0
        super().__init__(path, maxBytes=_LIMIT_BYTES, backupCount=_KEPT_FILES, encoding="utf-8", errors="replace")

    def _open(self) -> TextIOWrapper:
        fd = open_private(Path(self.baseFilename))
        return os.fdopen(fd, "a", encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        self.lost += 1


def set_up_logging(level: int = logging.INFO) -> Path:
    """Sends all logging, warnings and exceptions of threads to our log, and none to the terminal.

    Removes earlier handlers. Returns the log's path. Raises ConsoleError where it cannot be written.
    """
    path = log_path()
    handler = _PrivateFileHandler(path)
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_exception
    sys.unraisablehook = _log_unraisable
    return path


def _log_thread_exception(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "?"
    _log_exception(f"thread {name} failed", args.exc_value, args.exc_traceback)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    _log_exception(args.err_msg or "exception ignored", args.exc_value, args.exc_traceback)


def _log_exception(message: str, error: BaseException | None, trace: TracebackType | None) -> None:
    info = (type(error), error, trace) if error is not None else None
    logging.getLogger("ossconsole").error(message, exc_info=info)


def tail(path: Path, lines: int = 200, width: int = 500) -> list[str]:
    """The last lines of a log for the screen: redacted, printable, at most `width` characters each.

    Of a progress bar's updates only the last one is shown. Empty where the log does not exist.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - _TAIL_BYTES)
            file.seek(start)
            text = file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    if start:
        text = text.partition("\n")[2] or text
    found = redact(text).split("\n")
    if found and not found[-1]:
        found.pop()
    return [_fit(line, width) for line in found[-lines:]]


def _fit(line: str, width: int) -> str:
    # Cut before the regular expressions run: one line may fill the whole tail.
    shown = printable(line.rstrip("\r").rpartition("\r")[2][: width * 8])
    return shown if len(shown) <= width else shown[: width - 1] + "…"


_PACKAGES = ("textual", "torch", "torchvision", "oss2", "osstorchconnector", "aiohttp", "msgspec", "psutil")
_KEPT_REPORTS = 20
_LINE_WIDTH = 300


def crashes_dir() -> Path:
    """The folder of the crash reports."""
    return state_dir() / "crashes"


def report(error: BaseException) -> Path:
    """Writes a report about `error` (mode 0600) and returns its path; deletes the oldest reports.

    It has the traceback without local variables and with secrets masked, and versions; no settings, no environment.
    Raises SettingsError where it cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = crashes_dir() / f"crash-{stamp}-{os.getpid()}.txt"
    try:
        with os.fdopen(open_private(path), "wb") as file:
            file.write(_text(error, stamp).encode("utf-8", "backslashreplace"))
    except OSError as failure:
        path.unlink(missing_ok=True)  # an incomplete report must not stay
        raise unwritable(path, failure) from failure
    for old in sorted(path.parent.glob("crash-*.txt"))[:-_KEPT_REPORTS]:
        # Another console may delete the same ones.
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
    return path


def crash_line(error: BaseException) -> str:
    """Writes the report and returns the line for the terminal: what happened and where the report is."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip().replace("\n", " ")
    what = redact(text)[:_LINE_WIDTH]
    try:
        where = f"Report: {report(error)}"
    except ConsoleError as failure:
        where = f"No report was written: {failure}"
    return safe_text(f"ossconsole crashed: {what}. {where}")


def _text(error: BaseException, stamp: str) -> str:
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    versions = "".join(f"{name} {_version(name)}\n" for name in _PACKAGES)
    head = f"ossconsole {__version__}\n{stamp} UTC\nPython {sys.version}\n{platform.platform()}\n"
    return redact(f"{head}{versions}\n{trace}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
