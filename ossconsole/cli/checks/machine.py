"""Checks of the machine: Python, C library, userfaultfd, limits, disk, terminal."""

from __future__ import annotations

import ctypes
import errno
import locale
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ossconsole.config.checks import Check, fail, ok, warn
from ossconsole.config.files import (
    CONFIG_DIR_VARIABLE,
    STATE_DIR_VARIABLE,
    config_dir,
    exposed_folders,
    logs_dir,
    state_dir,
)

SUPPORTED_PYTHONS = ((3, 10), (3, 13))
OLDEST_GLIBC = (2, 17)  # of osstorchconnector's wheels (manylinux2014), which exist for x86-64 only
FEW_OPEN_FILES, TOO_FEW_OPEN_FILES = 4096, 512
_USERFAULTFD = 323  # syscall number on x86-64
_GB = 1e9


def python_check(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    oldest, newest = SUPPORTED_PYTHONS
    text = f"{platform.python_implementation()} {'.'.join(map(str, version))}, {sys.executable}"
    if oldest <= version <= newest:
        return ok("python", text)
    return fail("python", f"{text}: osstorchconnector has no build for it.", "Make the venv with python3.12 -m venv")


def glibc_check(version: str | None = None, machine: str = platform.machine()) -> Check:
    """`version` reads like `glibc 2.36`, "" where the C library is another one."""
    try:
        found = (os.confstr("CS_GNU_LIBC_VERSION") or "") if version is None else version
    except (OSError, ValueError):
        found = ""
    text = f"{found or 'no glibc'} on {machine}"
    numbers = tuple(int(part) for part in found.removeprefix("glibc ").split(".")[:2]) if found else ()
    if machine != "x86_64" or numbers < OLDEST_GLIBC:
        return fail(
            "glibc", f"{text}: osstorchconnector needs glibc 2.17 or newer on x86_64.", "Use an Ubuntu 22.04 image."
        )
    return ok("glibc", text)


def userfaultfd_check() -> Check:
    """Tries the system call that the connector's checkpoint reader rests on."""
    name = "userfaultfd"
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor >= 0:
        os.close(descriptor)
        return ok(name, "Available.")
    code = ctypes.get_errno()
    reason = errno.errorcode.get(code, str(code))
    return warn(
        name,
        f"Not available ({reason}): the connector cannot read checkpoints; this console reads them without it.",
        "sudo sysctl vm.unprivileged_userfaultfd=1" if code == errno.EPERM else "",
    )


def open_files_check() -> Check:
    name = "open files"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"Open files limit {soft}" + (f", can be raised to {hard}." if hard != soft else ".")
    remedy = f"ulimit -n {hard if hard != resource.RLIM_INFINITY else 65536}"
    if soft < TOO_FEW_OPEN_FILES:
        return fail(name, text, remedy)
    return warn(name, text, remedy) if soft < FEW_OPEN_FILES and hard > soft else ok(name, text)


def folders_check() -> Check:
    """Whether the settings and the state can be written, by this user alone."""
    name = "folders"
    state, config = state_dir(), config_dir()
    for folder in (state, logs_dir()):
        if not _is_writable(folder):
            return fail(
                name,
                f"The state folder {folder} cannot be written: no run, no upload and no console can start.",
                f"Make it writable for you, or set {STATE_DIR_VARIABLE} to a folder that you can write to.",
            )
    if not _is_writable(config):
        return warn(
            name,
            f"The settings folder {config} cannot be written: profiles cannot be changed.",
            f"Make it writable for you, or set {CONFIG_DIR_VARIABLE} to a folder that you can write to.",
        )
    exposed = list(exposed_folders())
    return warn(name, exposed[0]) if exposed else ok(name, f"{state} and {config} can be written by you alone.")


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def _is_writable(folder: Path) -> bool:
    """Also where it would have to be made first."""
    found = existing_part(folder)
    return found.is_dir() and os.access(found, os.W_OK | os.X_OK)


def fullest(*folders: Path) -> Path:
    """The one of the folders whose disk has the least room; they may lie on several."""
    return min(folders, key=lambda folder: shutil.disk_usage(existing_part(folder)).free)


def disk_check(folder: Path, *, few_bytes: float = 2 * _GB, too_few_bytes: float = 0.2 * _GB) -> Check:
    """Room for logs, run records, journals and the sandbox's objects."""
    name = "disk"
    free = shutil.disk_usage(existing_part(folder)).free
    text = f"{free / _GB:.1f} GB free for {folder}."
    remedy = f"Free some, or set OSSCONSOLE_STATE_DIR to a folder on a larger disk.   du -sh {folder}"
    if free < too_few_bytes:
        return fail(name, text, remedy)
    return warn(name, text, remedy) if free < few_bytes else ok(name, text)


SMALLEST = os.terminal_size((80, 24))
_TMUX_LIMIT_S = 1.0


def terminal_check(environ: Mapping[str, str] = os.environ, size: os.terminal_size | None = None) -> Check:
    """Size, colours, Unicode, and whether a copied text reaches the clipboard through tmux."""
    name = "terminal"
    found = size or _size()
    if found is None:
        return ok(name, "None here: the console needs one, `ossconsole train --json` does not.")
    kind = environ.get("TERM", "")
    colours = _colours(environ)
    unicode = "utf" in locale.getpreferredencoding(False).lower()
    text = (
        f"{found.columns}x{found.lines}, {kind or 'TERM not set'}, {colours}, {'Unicode' if unicode else 'ASCII only'}"
    )
    problems = []
    if kind in {"", "dumb"}:
        problems.append(("It cannot be drawn on.", "export TERM=xterm-256color"))
    if found.columns < SMALLEST.columns or found.lines < SMALLEST.lines:
        problems.append((f"The console needs {SMALLEST.columns}x{SMALLEST.lines}.", "Make the window larger."))
    if not unicode:
        problems.append(("Charts and frames are drawn in ASCII.", "export LANG=C.UTF-8"))
    if "TMUX" in environ and not _tmux_clipboard():
        problems.append(("tmux keeps copied texts to itself.", "tmux set -s set-clipboard on"))
    if problems:
        return warn(name, " ".join([f"{text}.", *(what for what, _ in problems)]), problems[0][1])
    return ok(name, f"{text}.")


def _size() -> os.terminal_size | None:
    """The size of the controlling terminal, which is there even when the output goes elsewhere."""
    try:
        descriptor = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _colours(environ: Mapping[str, str]) -> str:
    if environ.get("NO_COLOR"):
        return "no colours (NO_COLOR)"
    if environ.get("COLORTERM", "").lower() in {"truecolor", "24bit"}:
        return "16 million colours"
    return "256 colours" if "256color" in environ.get("TERM", "") else "16 colours"


def _tmux_clipboard() -> bool:
    tmux = shutil.which("tmux")
    if tmux is None:
        return True
    try:
        done = subprocess.run(  # noqa: S603
            (tmux, "show-options", "-sv", "set-clipboard"), capture_output=True, timeout=_TMUX_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return done.stdout.strip() != b"off"
