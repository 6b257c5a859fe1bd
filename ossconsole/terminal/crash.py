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
from ossconsole.config.files import open_private, state_dir, unwritable
from ossconsole.config.text import safe_text
from ossconsole.terminal.logs import redact

_PACKAGES = ("textual", "torch", "torchvision", "oss2", "osstorchconnector", "aiohttp", "msgspec", "psutil")
_KEPT_REPORTS = 20
_LINE_WIDTH = 300


def crashes_dir() -> Path:
    """The folder of the crash reports."""
    return state_dir() / "crashes"


def report(error: BaseException) -> Path:
    """Write a report about `error` (0600) and return its path; the oldest reports give way.

    Holds the traceback without local variables, with secrets masked, and versions; no settings, no environment.
    Raises SettingsError where it cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = crashes_dir() / f"crash-{stamp}-{os.getpid()}.txt"
    try:
        with os.fdopen(open_private(path), "wb") as file:
            file.write(_text(error, stamp).encode("utf-8", "backslashreplace"))
    except OSError as failure:
        path.unlink(missing_ok=True)  # a part of a report would be taken for one
        raise unwritable(path, failure) from failure
    for old in sorted(path.parent.glob("crash-*.txt"))[:-_KEPT_REPORTS]:
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
    except ConsoleError as failure:
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
