"""The check of the terminal: what the console could show in it."""

from __future__ import annotations

import locale
import os
import shutil
import subprocess
from collections.abc import Mapping

from ossconsole.config.checks import Check, ok, warn

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
