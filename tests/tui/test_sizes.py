"""Every screen in every size from 60x18 to 250x80: nothing fails, the modes and the next step stay visible."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.events import RunState
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeRun, FakeServices, FakeStore, Script, gpu, sample
from tests.tui.screens import settle, shown

SIZES = ((60, 18), (60, 80), (80, 24), (110, 18), (120, 40), (169, 30), (250, 18), (250, 80))
SCREENS = {
    "setup": (("1",), "Profile"),
    "browse": (("2",), "objects"),
    "two panes": (("2", "t"), "this machine"),
    "upload": (("3",), "Source"),
    "train": (("4",), "running"),
    "runs": (("4", "r"), "esc Back"),
    "all measurements": (("4", "b"), "esc close"),
    "machine": (("4", "g"), "esc close"),
    "events": (("4", "i"), "esc close"),
    "help": (("4", "question_mark"), "esc close"),
    "palette": (("4", "colon"), ""),
    "log": (("4", "L"), "esc close"),
    "new run": (("4", "n"), ""),
    "quit": (("q",), "s stay"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCREENS)
async def test_every_screen_fits_every_size(
    make_app: AppMaker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = Script().state(RunState.RUNNING, 3).steps(40)
    store = FakeStore({f"checkpoints/resnet18-{number}.pt": 44_000_000 for number in range(40)})
    services = FakeServices(
        run=FakeRun(list(script.events)),
        sample=sample([gpu()], at=script.time),
        stores=dict.fromkeys(EndpointKind, store),
    )
    keys, words = SCREENS[name]
    async with make_app(services, now=script.time).run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press(*keys)
        await settle(pilot)
        for width, height in SIZES:
            await pilot.resize_terminal(width, height)
            await settle(pilot)
            text = shown(pilot.app)
            assert words in text, f"{width}x{height}\n{text}"
            if len(pilot.app.screen_stack) == 1:
                lines = text.splitlines()
                assert all(title in lines[0] for title in ("1 Setup", "2 Browse", "3 Upload", "4 Train")), text
                assert "Help" in lines[-1] or "more" in lines[-1], text
