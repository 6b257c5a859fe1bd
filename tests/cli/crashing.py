"""`python -m tests.cli.crashing ARGUMENTS`: the real command, whose log pane raises as soon as it is opened (F12)."""

from __future__ import annotations

from ossconsole.cli import main
from ossconsole.tui.screens.log import LogTail

SENTINEL = "sentinel-in-a-local-9c41"


def _fail(self: LogTail, width: int, height: int) -> list[object]:
    access_key_secret = SENTINEL
    raise RuntimeError(f"a widget failed with {len(access_key_secret)} characters at {width}x{height}")


if __name__ == "__main__":
    LogTail.paint = _fail  # type: ignore[method-assign, assignment]
    main()
