"""The same console on every machine: UTC, fixed theme and symbols."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ossconsole.config.paths import STATE_DIR_VARIABLE
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.glyphs import BRAILLE
from tests.tui.fakes import START, FakeServices

AppMaker = Callable[..., ConsoleApp]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")


@pytest.fixture
def lose_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Call it, and from then on nothing can be written to the state folder."""

    def lose() -> None:
        in_the_way = tmp_path / "in the way"
        in_the_way.touch()
        monkeypatch.setenv(STATE_DIR_VARIABLE, str(in_the_way / "state"))

    return lose


@pytest.fixture
def make_app() -> AppMaker:
    """An app over fakes; `now` is what its clock shows."""

    def make(services: FakeServices, mode: str = "train", *, now: float = START, **options: object) -> ConsoleApp:
        known: dict[str, object] = {"glyph_set": BRAILLE, "theme": "console-dark", **options}
        return ConsoleApp(services, mode, clock=lambda: now, **known)  # type: ignore[arg-type]

    return make
