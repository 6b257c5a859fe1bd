"""Makes the README's pictures from the running app: the demo, which switches the endpoints by itself, until its result.

Usage: python assets/make_pictures.py
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

from textual.app import App

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.view import RunView

HERE = Path(__file__).parent
SIZES = {"": (120, 40), "-80x24": (80, 24)}
POLL_S, DEADLINE_S = 0.2, 900


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread does and does not tell of."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the run did not come this far")
        await asyncio.sleep(POLL_S)


def shows(app: App[str], words: str) -> bool:
    return words.replace(" ", "&#160;") in app.export_screenshot()


def decided(view: RunView) -> bool:
    """Whether the ratio is known, and the batches in use are settled ones of the accelerated endpoint."""
    return view.comparison.decided and view.settling is None and view.delivering is EndpointKind.ACCELERATED


async def main() -> None:
    from ossconsole.cli.application import Application
    from ossconsole.cli.options import Target
    from ossconsole.tui.app import ConsoleApp

    services = Application(Target({"profile": "sandbox"}), demo=True)
    services.open()
    app = ConsoleApp(services, initial_mode="train", theme="console-dark")
    async with app.run_test(size=SIZES[""]) as pilot:
        await until(lambda: decided(app.monitor.view))
        for suffix, size in SIZES.items():
            await pilot.resize_terminal(*size)
            await asyncio.sleep(1)
            app.save_screenshot(str(HERE / f"train{suffix}.svg"))
        await pilot.resize_terminal(*SIZES[""])
        app.simulate_key("2")
        await until(lambda: shows(app, "2 folders, 0 objects"))
        app.simulate_key("C")
        await until(lambda: shows(app, "resnet18.pt"))
        app.simulate_key("end")
        await until(lambda: shows(app, "ossconsole checkpoint"))
        app.save_screenshot(str(HERE / "browse.svg"))
        app.exit()
    services.close(print)


if __name__ == "__main__":
    # Before Textual runs: inside an App this helper of multiprocessing could not start.
    resource_tracker.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OSSCONSOLE_STATE_DIR"] = f"{folder}/state"
        os.environ["OSSCONSOLE_CONFIG_DIR"] = f"{folder}/config"
        os.environ["COLORTERM"] = "truecolor"
        asyncio.run(main())
