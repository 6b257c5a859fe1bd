"""Cropped updates: fewer bytes than Textual sends, and the same screen."""

from __future__ import annotations

import pyte
import pytest
from textual._compositor import ChopsUpdate
from textual.app import App

from ossconsole.telemetry.events import RunState
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.kit.textual_internals import CroppedUpdate
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeRun, FakeServices, Script, gpu, sample
from tests.tui.screens import settle, shown


class Wire:
    """What a terminal shows after the updates written to it, and how many bytes they were."""

    def __init__(self, app: ConsoleApp, size: tuple[int, int]) -> None:
        self._app = app
        self._screen = pyte.Screen(*size)
        self._stream = pyte.Stream(self._screen)
        self.frugal = 0
        self.textual = 0

    def draw(self, screen: object, renderable: object) -> None:
        """Takes the place of the App's own way to the terminal, which a test does not have."""
        if renderable is None:
            return
        if isinstance(renderable, ChopsUpdate):
            data = CroppedUpdate.of(renderable).render_segments(self._app.console)
            self.frugal += len(data.encode())
            self.textual += len(renderable.render_segments(self._app.console).encode())
        else:
            data = renderable.render_segments(self._app.console)  # type: ignore[attr-defined]
        self._stream.feed(data)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)


async def test_the_screen_is_right_after_many_small_updates(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING, 3).steps(40)
    run = FakeRun(list(script.events))
    services = FakeServices(run=run, sample=sample([gpu()], at=script.time))
    app = make_app(services, now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        wire = Wire(app, (80, 24))
        app._display = wire.draw  # type: ignore[method-assign]
        app.screen.refresh(layout=True)
        await settle(pilot)
        app.screen._compositor_refresh()
        wire.draw(app.screen, app.screen._compositor.render_update(full=True))
        for number in range(24):
            done = len(script.events)
            script.steps(3, wait=0.4 if number % 8 < 4 else 0.05)
            if number % 8 == 4:
                script.switch(script.endpoint.other, ahead=1)
            run.waiting = list(script.events[done:])
            services.sample = sample([gpu(utilization=30.0 + number)], at=script.time)
            app.monitor._clock = lambda: script.time
            await settle(pilot)
            assert wire.text == shown(app)
    assert 0 < wire.frugal < wire.textual * 0.6


async def test_the_app_draws_through_it(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Textual's internals are used here: this fails where another Textual does not have them."""
    drawn: list[object] = []
    monkeypatch.setattr(App, "_display", lambda _app, _screen, renderable: drawn.append(renderable))
    script = Script().state(RunState.RUNNING).steps(10)
    run = FakeRun(list(script.events))
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        drawn.clear()
        run.waiting = script.steps(1).events[-1:]
        await settle(pilot)
    assert any(isinstance(update, CroppedUpdate) for update in drawn)
    assert not any(type(update) is ChopsUpdate for update in drawn)
