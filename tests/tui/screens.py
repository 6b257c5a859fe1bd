"""Reading what a console shows."""

from __future__ import annotations

import time
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.help import OpeningScreen

OPENING_S = 20.0


def shown(app: App[str]) -> str:
    """The cells of the screen as text, a line per row."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def past_opening(pilot: Pilot[Any]) -> None:
    """Let the first screen be painted and the one that was asked for follow it."""
    deadline = time.monotonic() + OPENING_S
    while isinstance(pilot.app.screen, OpeningScreen):
        assert time.monotonic() < deadline
        await pilot.pause(0.01)


async def settle(pilot: Pilot[str]) -> None:
    """Let thread workers end, take in what the services have, and paint it.

    Other workers may wait for a dialog's answer.
    """
    await past_opening(pilot)
    for _ in range(2):  # what is painted may start another worker
        threads = [worker for worker in pilot.app.workers if worker._thread_worker]
        if threads:
            await pilot.app.workers.wait_for_complete(threads)
        await pilot.pause()
        if isinstance(pilot.app, ConsoleApp):
            pilot.app.tick()
        await pilot.pause()
