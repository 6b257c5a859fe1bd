"""Crash reports: what is needed to find the fault, and nothing that must stay private."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

from ossconsole import __version__
from ossconsole.config.errors import ConsoleError
from ossconsole.config.paths import state_dir
from ossconsole.config.text import safe_text
from ossconsole.terminal.logs import redact

_PACKAGES = ("textual", "torch", "torchvision", "oss2", "osstorchconnector", "aiohttp", "msgspec", "psutil")
_KEPT_REPORTS = 20
_LINE_WIDTH = 300


def crashes_dir() -> Path:
    """The folder of the crash reports (0700). Raises OSError or SettingsError when it cannot be made."""
    path = state_dir() / "crashes"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def report(error: BaseException) -> Path:
    """Write a report about `error` (0600) and return its path; the oldest reports give way.

    Holds the traceback without local variables, with secrets masked, and versions; no settings, no environment.
    Raises OSError where it cannot be written.
    """
    folder = crashes_dir()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = folder / f"crash-{stamp}-{os.getpid()}.txt"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(_text(error, stamp))
    for old in sorted(folder.glob("crash-*.txt"))[:-_KEPT_REPORTS]:
        # Another console may be clearing away the same ones.
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
    return path


def crash_line(error: BaseException) -> str:
    """Write the report; the one line for the terminal: what happened and where the report is."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip().replace("\n", " ")
    what = redact(text)[:_LINE_WIDTH]
    try:
        where = f"Report: {report(error)}"
    except (OSError, ConsoleError) as failure:
        where = f"There is no report: {failure}"
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
