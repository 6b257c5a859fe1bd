"""Reading what a console shows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from textual.app import App
from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.help import OpeningScreen

DEADLINE_S = 20.0

_thread_calls: set[object] = set()
"""The active calls of `asyncio.to_thread`, of workers that are no thread workers themselves."""


@asynccontextmanager
async def thread_call() -> AsyncIterator[None]:
    """Let `settle` wait for the block."""
    call = object()
    _thread_calls.add(call)
    try:
        yield
    finally:
        _thread_calls.discard(call)


def shown(app: App[str]) -> str:
    """The cells of the screen as text, a line per row."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def past_opening(pilot: Pilot[Any]) -> None:
    """Let the first screen be painted and the one that was asked for follow it."""
    deadline = time.monotonic() + DEADLINE_S
    while isinstance(pilot.app.screen, OpeningScreen):
        assert time.monotonic() < deadline
        await pilot.pause(0.01)


async def thread_calls_ended(pilot: Pilot[Any]) -> None:
    """Let the calls of `asyncio.to_thread` end, and the screen take in what they return."""
    await pilot.pause()
    if not _thread_calls:
        return
    deadline = time.monotonic() + DEADLINE_S
    while _thread_calls:
        assert time.monotonic() < deadline
        await pilot.pause(0.005)
    await pilot.pause()


async def settle(pilot: Pilot[str]) -> None:
    """Let thread workers and thread calls end, take in what the services have, and paint it.

    Other workers may wait for a dialog's answer.
    """
    await past_opening(pilot)
    for _ in range(2):  # what is painted may start another worker
        threads = [worker for worker in pilot.app.workers if worker._thread_worker]
        if threads:
            with suppress(WorkerCancelled):  # a newer one of its group took its place
                await pilot.app.workers.wait_for_complete(threads)
        await thread_calls_ended(pilot)
        if isinstance(pilot.app, ConsoleApp):
            pilot.app.tick()
        await pilot.pause()
