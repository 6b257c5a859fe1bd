"""The first screen: painted before anything else is loaded or begun, and nothing typed on it is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.help import OpeningScreen
from ossconsole.tui.train.screen import TrainScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeServices
from tests.tui.screens import past_opening, shown
from tests.tui.snapshots import pictured

Compare = Callable[..., bool]


@dataclass
class WatchedServices(FakeServices):
    """Notes what the console showed when it let the services begin."""

    app: ConsoleApp | None = None
    seen: list[str] = field(default_factory=list)
    types: str = ""

    def begin(self) -> None:
        assert self.app is not None
        assert isinstance(self.app.screen, OpeningScreen)
        self.seen.append(shown(self.app))
        if self.types:
            self.app.simulate_key(self.types)


async def test_nothing_is_begun_before_the_first_paint(make_app: AppMaker) -> None:
    services = WatchedServices(profile=None)
    services.app = make_app(services, "browse")
    async with services.app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        assert len(services.seen) == 1
        assert "1 Setup  2 Browse  3 Upload  4 Train" in services.seen[0]
        assert "Opening the embedded sandbox" in services.seen[0]


async def test_a_key_typed_meanwhile_reaches_the_screen_that_follows(make_app: AppMaker) -> None:
    services = WatchedServices(types="4")
    services.app = make_app(services, "browse")
    async with services.app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        await pilot.pause()
        assert isinstance(services.app.screen, TrainScreen)


@pictured
@pytest.mark.parametrize("services", [FakeServices(), FakeServices(profile=None)], ids=["profile", "sandbox"])
def test_pictures(
    services: FakeServices, snap_compare: Compare, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stay(_app: Any) -> None:
        """Never goes on to the screen that follows."""

    monkeypatch.setattr(ConsoleApp, "_open", stay)
    assert snap_compare(make_app(services, "browse"), terminal_size=(80, 24))
