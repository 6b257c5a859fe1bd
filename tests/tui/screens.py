"""Reading what a console shows."""

from __future__ import annotations

from textual.app import App
from textual.pilot import Pilot

from ossconsole.tui.app import ConsoleApp


def shown(app: App[str]) -> str:
    """The cells of the screen as text, a line per row."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def settle(pilot: Pilot[str]) -> None:
    """Let thread workers end, take in what the services have, and paint it.

    Other workers may wait for a dialog's answer.
    """
    threads = [worker for worker in pilot.app.workers if worker._thread_worker]
    if threads:
        await pilot.app.workers.wait_for_complete(threads)
    await pilot.pause()
    if isinstance(pilot.app, ConsoleApp):
        pilot.app.tick()
    await pilot.pause()
