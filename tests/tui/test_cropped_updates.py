"""Cropped updates: fewer bytes than Textual sends, and the same screen."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App
from textual.strip import Strip

from ossconsole.telemetry.events import RunState
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.kit.link import RepaintPace, ShownCells, _style_change
from ossconsole.tui.kit.textual_internals import CroppedUpdate, FullUpdate
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeRun, FakeServices, Script, gpu, sample
from tests.tui.screens import settle, shown


class Wire:
    """What a terminal shows after the updates written to it, and how many bytes they were."""

    def __init__(self, app: ConsoleApp, size: tuple[int, int]) -> None:
        self._app = app
        self._screen = pyte.Screen(*size)
        self._stream = pyte.Stream(self._screen)
        self._shown = ShownCells()
        self.frugal = 0
        self.textual = 0

    def draw(self, screen: object, renderable: object) -> None:
        """Takes the place of the App's own way to the terminal, which a test does not have."""
        if renderable is None:
            return
        if isinstance(renderable, ChopsUpdate):
            data = CroppedUpdate.of(renderable, self._shown).render_segments(self._app.console)
            self.frugal += len(data.encode())
            self.textual += len(renderable.render_segments(self._app.console).encode())
        else:
            assert isinstance(renderable, LayoutUpdate)
            renderable = FullUpdate.of(renderable, self._shown)
            data = renderable.render_segments(self._app.console)
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
    assert 0 < wire.frugal < wire.textual * 0.35


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


def strip(*pieces: tuple[str, str]) -> Strip:
    return Strip([Segment(text, Style.parse(style)) for text, style in pieces])


class Row:
    """A row of a terminal of 30 cells, and the bytes that the last change of it had."""

    def __init__(self) -> None:
        self._console = Console(color_system="256", force_terminal=True)
        self._shown = ShownCells()
        self._terminal = pyte.Screen(30, 1)
        self._stream = pyte.Stream(self._terminal)
        self.bytes = 0

    def show(self, x: int, *pieces: tuple[str, str]) -> str:
        data = self._shown.changes(x, 0, strip(*pieces), self._console) + self._shown.end_frame()
        self.bytes = len(data.encode())
        self._stream.feed(data)
        return self._terminal.display[0].rstrip()

    def whole(self, *pieces: tuple[str, str]) -> None:
        data = self._shown.whole_row(0, strip(*pieces), self._console)
        self.bytes = len(data.encode())
        self._stream.feed(data)

    def colours(self) -> set[str]:
        return {self._terminal.buffer[0][x].fg for x in range(30)}


def test_only_cells_that_differ_are_sent() -> None:
    row = Row()
    row.whole(("a name" + " " * 24, "red"))
    assert row.show(0, ("a name" + " " * 24, "red")) == "a name"
    assert row.bytes == 0
    assert row.show(0, ("a game" + " " * 24, "red")) == "a game"
    assert 0 < row.bytes < 25
    assert row.show(0, ("a", "red"), (" game" + " " * 24, "red")) == "a game"  # cut elsewhere, the same cells
    assert row.bytes == 0
    assert row.show(2, ("game", "blue")) == "a game"  # another colour alone
    assert row.bytes > 0
    assert len(row.colours()) == 2


@pytest.mark.parametrize("text", ["日本語", "e\u0301t", "\U0001f468\u200d\U0001f469"])
def test_a_row_with_characters_of_other_widths_is_sent_as_it_is(text: str) -> None:
    row, plain = Row(), "." * 30
    row.whole((plain, "red"))
    row.show(0, (text, "red"), ("." * (30 - cell_len(text)), "red"))
    whole = row.bytes
    assert whole > 30
    row.show(0, (plain, "red"))
    assert row.bytes > 30  # what is left of them is not known


STYLES = st.builds(
    lambda *parts: " ".join(filter(None, parts)),
    st.sampled_from(["", "bold"]),
    st.sampled_from(["", "italic", "underline", "reverse", "strike"]),
    st.sampled_from(["", "red", "bright_blue", "color(200)", "#123456", "default"]),
    st.sampled_from(["", "on green", "on bright_red", "on color(99)", "on #fedcba", "on default"]),
)
ROWS = st.lists(st.tuples(st.sampled_from("abc"), STYLES), min_size=12, max_size=12)


@given(frames=st.lists(st.lists(ROWS, min_size=3, max_size=3), min_size=2, max_size=3))
@settings(max_examples=60, deadline=None)
def test_every_cell_has_its_style_after_each_frame(frames: list[list[list[tuple[str, str]]]]) -> None:
    """Within a frame a style is changed, not set again; against Textual's way, which sets each."""
    console = Console(color_system="truecolor", force_terminal=True)
    shown_cells, changed = ShownCells(), pyte.Screen(12, 3)
    changed_stream = pyte.Stream(changed)
    for frame in frames:
        rows = [strip(*row) for row in frame]
        data = "".join(shown_cells.whole_row(y, row, console) for y, row in enumerate(rows))
        changed_stream.feed(data + shown_cells.end_frame())
        whole = pyte.Screen(12, 3)
        pyte.Stream(whole).feed("".join(f"\x1b[{y + 1};1H{row.render(console)}" for y, row in enumerate(rows)))
        for y in range(3):
            assert [changed.buffer[y][x] for x in range(12)] == [whole.buffer[y][x] for x in range(12)]
        assert changed.cursor.attrs == whole.cursor.attrs  # the default style


@pytest.mark.parametrize(
    ("before", "after", "sequence"),
    [
        ("", "1", "\x1b[1m"),
        ("1;38;2;1;2;3;48;5;17", "38;2;1;2;3;48;5;17", "\x1b[22m"),
        ("1;2", "1", "\x1b[0;1m"),  # 22 ends both, and has one character more
        ("1;2;38;2;1;2;3", "1;38;2;1;2;3", "\x1b[22;1m"),
        ("38;2;1;2;3;48;2;4;5;6", "38;2;1;2;3;48;2;4;5;7", "\x1b[48;2;4;5;7m"),
        ("31;42", "42", "\x1b[39m"),
        ("53;38;2;1;2;3", "38;2;1;2;3", "\x1b[0;38;2;1;2;3m"),  # an attribute that is not known
        ("1;31", "", "\x1b[m"),
        ("31", "31", ""),
    ],
)
def test_the_shortest_change_of_a_style(before: str, after: str, sequence: str) -> None:
    assert _style_change(before, after) == sequence


def test_after_a_resize_everything_is_sent() -> None:
    row = Row()
    row.whole(("." * 30, "red"))
    row.whole(("." * 30, "red"))
    assert row.bytes == 0
    row._shown.forget()
    row.show(0, ("." * 30, "red"))
    assert row.bytes > 30


def test_a_held_key_is_painted_no_faster_than_a_slow_connection_carries_it() -> None:
    pace, now, sent = RepaintPace(), 0.0, 0
    for number in range(90):  # three seconds of a held key
        now = number / 30
        pace.key("j", now)
        if not pace.rests(now):
            pace.painted(1_500, now)
            sent += 1_500
    assert 40_000 < sent < 80_000
    assert not pace.rests(now + 0.3)


def test_a_change_counts_as_the_effect_of_a_key_for_a_tenth_of_a_second() -> None:
    pace = RepaintPace()
    assert not pace.follows_key(0.0)
    pace.key("j", 1.0)
    assert pace.follows_key(1.05)
    assert not pace.follows_key(1.2)


def test_single_keys_and_different_keys_are_painted_immediately() -> None:
    pace = RepaintPace()
    for number, key in enumerate("jkjkjkj"):
        pace.key(key, number / 30)
        pace.painted(20_000, number / 30)
        assert not pace.rests(number / 30)
    for number in range(6):
        pace.key("j", 10 + number)
        pace.painted(20_000, 10 + number)
        assert not pace.rests(10 + number)
