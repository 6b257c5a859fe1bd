"""The same console on every machine: UTC, fixed theme and symbols; and an event loop that no screen may hold up."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ossconsole.tui
from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.kit.glyphs import BRAILLE
from tests.tui.fakes import START, FakeServices
from tests.tui.screens import thread_call

_IDLE_S = 0.005
_IDLE_TURNS = 20  # a key passes from the app to the screen, a widget and back, with one or two turns for each

AppMaker = Callable[..., ConsoleApp]


_WAITING = {"socket.connect", "socket.getaddrinfo", "http.client.send", "subprocess.Popen", "fcntl.flock"}
"""What Python tells an audit hook of: asking the network, another process, or a lock that another process may hold."""
_SCREENS = str(Path(ossconsole.tui.__file__).parent)
_waited: list[str] = []


def _note_waiting(event: str, _arguments: object) -> None:
    if event not in _WAITING or asyncio._get_running_loop() is None:
        return
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_SCREENS):  # a test may ask what it likes
        frame = frame.f_back  # type: ignore[assignment]
    if frame is not None and frame.f_code.co_name != "_fatal_error":  # which nobody waits for any more
        _waited.append(f"{event} from {frame.f_code.co_filename}:{frame.f_lineno}")


sys.addaudithook(_note_waiting)  # for good: hooks cannot be taken away


@pytest.fixture(autouse=True)
def _this_year_is_that_of_the_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossconsole.tui.kit.text.now", lambda: START)


@pytest.fixture(autouse=True)
def _the_event_loop_never_waits() -> Iterator[None]:
    _waited.clear()
    yield
    assert not _waited


@pytest.fixture(autouse=True)
def _thread_calls_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    to_thread = asyncio.to_thread

    async def counted(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        async with thread_call():
            return await to_thread(call, *arguments, **options)

    monkeypatch.setattr(asyncio, "to_thread", counted)


async def _wait_for_idle(_min_sleep: float = 0.0, max_sleep: float = 1.0) -> None:
    """Textual's function of this name sleeps 20 ms twice for each key, longer while any thread has work.

    This one looks at the event loop's thread alone, and sooner. It gives messages several turns of the loop, as a
    loop that waits for a busy core looks idle.
    """
    begun = time.monotonic()
    used = -math.inf
    while time.thread_time() - used > _IDLE_S / 5 and time.monotonic() - begun < max_sleep:
        used = time.thread_time()
        for _ in range(_IDLE_TURNS):
            await asyncio.sleep(0)
        await asyncio.sleep(_IDLE_S)


@pytest.fixture(autouse=True)
def _keys_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("app", "pilot"):
        monkeypatch.setattr(f"textual.{module}.wait_for_idle", _wait_for_idle)


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
