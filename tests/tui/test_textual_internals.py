"""What the console does in another way than Textual: which private parts it needs, and what a terminal may send."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.css.stylesheet import Stylesheet
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Key, MouseDown, Paste
from textual.message import Message
from textual.message_pump import MessagePump
from textual.pilot import Pilot
from textual.widgets import Input
from textual.worker import Worker

import ossconsole.tui
from ossconsole.telemetry.events import RunState
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.browse.screen import BrowseScreen
from ossconsole.tui.kit.dialogs import PromptScreen
from ossconsole.tui.kit.terminal_bytes import TerminalBytes
from ossconsole.tui.kit.textual_internals import SafeParser
from ossconsole.tui.setup.screen import SetupScreen
from ossconsole.tui.train.screen import NewRunScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeRun, FakeServices, Script
from tests.tui.screens import past_opening, settle

PACKAGE = Path(ossconsole.tui.__file__).parent
INTERNALS = PACKAGE / "kit" / "textual_internals.py"

# Private parts

METHODS: list[Callable[..., Any]] = [
    App._display,
    App._fatal_error,
    App._handle_exception,
    LinuxDriver._run_input_thread,
    MessagePump._close_messages_no_wait,
    XTermParser._sequence_to_key_events,
]
ATTRIBUTES: list[tuple[Any, list[str]]] = [
    (App, ["_driver", "_exit", "_loop", "_return_code"]),
    (LinuxDriver, ["_app", "_debug", "_file", "_must_signal_resume"]),
    (MessagePump, ["_parent"]),
    (Stylesheet, ["_variables"]),
    (Worker, ["_thread_worker"]),
]


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in ATTRIBUTES for name in names], ids=str)
def test_textual_still_has_the_private_attribute(owner: type[object], name: str) -> None:
    def sources(cls: type[object]) -> str:
        return "".join(inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("textual"))

    assert f"self.{name}" in sources(owner)


def test_textual_still_calls_the_private_methods() -> None:
    """Each is overridden or called: that it exists is seen when this file is loaded."""
    for method in METHODS:
        module = inspect.getmodule(method)
        assert module is not None
        users = inspect.getsource(module) + inspect.getsource(importlib.import_module("textual.app"))
        assert len(users.split(method.__name__)) > 2, f"{method.__name__} is defined, and nothing calls it"


def test_no_other_file_imports_a_private_module_of_textual() -> None:
    found = [
        f"{path.name}: {name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported(node)
        if name.startswith("textual.") and "._" in name and path != INTERNALS
    ]
    assert found == []


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


# What a terminal sends


class Typist:
    """The keys that the console takes what a terminal sends for; time passes only between two sendings."""

    def __init__(self) -> None:
        self._bytes, self._parser = TerminalBytes(), SafeParser()
        self._now = 0.0

    def send(self, data: bytes) -> list[Message]:
        with mock.patch("textual._parser.get_time", return_value=self._now):
            found = list(self._parser.messages(self._bytes.text(data)))
        self._now += 1.0
        return found

    def keys(self, *sent: bytes) -> list[str]:
        """The names of the keys, silence at the end; what else there is by its class."""
        found = [message for data in (*sent, b"", b"") for message in self.send(data)]
        return [message.key if isinstance(message, Key) else type(message).__name__ for message in found]


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"a\xffb", ["a", "b"]),
        (b"\x82q", ["q"]),
        (b"\xe7q", ["q"]),
        ("é木".encode(), ["é", "木"]),
        (b"\x1b[M\xff\xfe\x80q", ["q"]),
        (b"\x1b[M \x1b\x1bq", ["q"]),
        (b"\x1b[M\xc3\xa9\x80q", ["q"]),
        (b"\x1b[M\xff", []),
        (b"\x1b[99999999999uq", ["q"]),
        (b"\x1b[57399:57400;1uq", ["q"]),
        (b"\x1b[97;5:1uq", ["q"]),
        (b"\x1b[?62;22cq", ["q"]),
        (b"\x1b[?64;1;2;6;9;15;16;17;18;21;22;28cq", ["q"]),
        (b"\x1b[>0;276;0cq", ["q"]),
        (b"\x1b]11;rgb:1e1e/2727/3131\x07q", ["q"]),
        (b"\x1b]11;rgb:1e1e/2727/3131\x1b\\q", ["q"]),
        (b"\x1b_Gi=31;OK\x1b\\q", ["q"]),
        (b"\x1bP>|tmux 3.4\x1b\\q", ["q"]),
        (b"\x1b[200~pasted \xff text\x1b[201~q", ["Paste", "q"]),
        (b"\x1b[<0;5;5M\x1b[32;10;10Mq", ["MouseDown", "q"]),
        (b"\x1b[A\x1bOA\x1b[1;5C\x1b[[A", ["up", "up", "ctrl+right", "f1"]),
        (b"\x1b", ["escape"]),
        (b"\x1b\x1b[A", ["escape", "up"]),
        (b"\x1b[", ["alt+left_square_bracket"]),
        (b"\x1b2abc", ["alt+2", "a", "b", "c"]),
        (b"\x1b2\x1b3", ["alt+2", "alt+3"]),
        (b"\x1b/", ["alt+slash"]),
        (b"\x1bPath", ["alt+P", "a", "t", "h"]),
        (b"\x1bf\x1b\x7f", ["ctrl+right", "ctrl+w"]),
    ],
    ids=repr,
)
def test_terminal_input_is_keys_or_nothing(sent: bytes, keys: list[str]) -> None:
    assert Typist().keys(sent) == keys


@pytest.mark.parametrize("cut", range(2, 24))
def test_the_answer_about_the_background_is_taken_whole_or_in_pieces_and_is_no_key(cut: int) -> None:
    answer = b"\x1b]11;rgb:fafa/fafa/f0f0\x1b\\\\"[:-1]
    source = TerminalBytes()
    assert source.text(answer[:cut]) + source.text(answer[cut:] + b"a") == "a"
    assert source.background is not None
    assert source.background.is_light


def test_a_sequence_that_arrives_in_pieces() -> None:
    assert Typist().keys(b"\x1b[", b"M\xff", b"\xffq") == []  # the q belongs to it
    assert Typist().keys(b"\xe6", b"\x9c", b"\xa8") == ["木"]


NASTY = (
    rb"\x1b \x1b[ \x1bO \x1b[M \x1b[< \x1b] \x1b_ ; : u t ~ M \xff \x1b[48;0;0;0;0t \x1b[48;5;5;0;0t \x1b[<0;1;1M "
    rb"99999999999 \x1b[I"
)
PIECES = st.binary(max_size=8) | st.sampled_from(NASTY.decode("unicode_escape").encode("latin-1").split(b" "))


@given(st.lists(PIECES, max_size=12).map(b"".join), st.integers(0, 60))
def test_after_whatever_a_terminal_sends_the_next_key_works(sent: bytes, cut: int) -> None:
    sent = sent.replace(b"\x1b[200~", b"")  # what follows it is pasted, not typed
    typist = Typist()
    typist.keys(sent[:cut], sent[cut:])
    typist.keys(b"")
    assert typist.keys(b"q") == ["q"]


def test_a_paste_is_one_message_and_a_click_another() -> None:
    pasted, click = Typist().send(b"\x1b[200~1\x1b[201~\x1b[<0;3;4M")
    assert isinstance(pasted, Paste)
    assert pasted.text == "1"
    assert isinstance(click, MouseDown)
    assert (click.x, click.y) == (2, 3)


# The order of keys


async def send(pilot: Pilot[str], app: ConsoleApp, text: str) -> None:
    """Type all of `text` before any of it is handled, and wait until it has had its effect."""
    for message in Typist().send(text.encode()):
        app.post_message(message)
    await pilot.pause()
    while app.key_order._current is not None:
        await pilot.pause(0.01)
    await pilot.pause()  # the last key may still be on its way to its field


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("\x05abx\x7fc\x1b[DZ", "0.05abZc"),
        ("\x05\x15http://x", "http://x"),
        ("\x05bc\x01a", "a0.05bc"),
        ("abc\x15xyz", "xyz"),
        ("\x05 one two\x17\x17three\x1b[Hx\x1b[3~", "x.05 three"),
        ("\x05a\x1b[200~pasted\x1b[201~\x7fb", "0.05apasteb"),
        ("\x01\x1b[1;2C\x1b[1;2Cx", "x05"),
    ],
)
async def test_keys_of_one_burst_take_effect_in_order(make_app: AppMaker, typed: str, expected: str) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        app.push_screen(PromptScreen("Learning rate", "", "0.05", replace=True))
        await send(pilot, app, typed)
        assert app.screen.query_one(Input).value == expected


async def test_keys_after_the_key_of_a_dialog_go_into_it(make_app: AppMaker) -> None:
    services = FakeServices()
    app = make_app(services)
    async with app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        await send(pilot, app, "n12\t7")
        assert isinstance(app.screen, NewRunScreen)
        assert app.screen.query_one("#field-epochs", Input).value == "12"
        assert app.screen.query_one("#field-max_steps", Input).value == "7"
        await send(pilot, app, "\r2")
        assert isinstance(app.screen, BrowseScreen)
        await settle(pilot)
    assert [(settings.epochs, settings.max_steps) for settings in services.started] == [(12, 7)]


async def test_keys_after_the_end_of_a_dialog_go_to_the_screen_below(make_app: AppMaker) -> None:
    script = Script().state(RunState.RUNNING).steps(10)
    run = FakeRun(list(script.events))
    app = make_app(FakeServices(run=run), now=script.time)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await send(pilot, app, "R0.01\r1")
        assert isinstance(app.screen, SetupScreen)
    assert ("set_lr", 0.01) in run.asked


async def test_keys_after_the_key_of_the_filter_go_into_it(make_app: AppMaker) -> None:
    app = make_app(FakeServices(), "browse")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)  # the filter needs a listing
        await send(pilot, app, "/e01")
        assert isinstance(app.screen, BrowseScreen)
        assert app.screen.query_one("#filter", Input).value == "e01"


async def test_a_dialog_that_opens_late_gets_the_keys_typed_meanwhile(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server is asked first."""
    monkeypatch.setattr("ossconsole.tui.kit.textual_internals._DIALOG_CHECKS", 1_000_000)
    monkeypatch.setattr("ossconsole.tui.kit.textual_internals._PATIENCE_TICKS", 1_000_000)
    app = make_app(FakeServices())
    answered = asyncio.Event()

    async def late() -> None:
        await answered.wait()
        app.push_screen(NewRunScreen(app.services.profile))  # type: ignore[arg-type]

    async with app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        monkeypatch.setattr(app.screen, "action_new_run", lambda: app.run_worker(late()))
        for message in Typist().send(b"n12"):
            app.post_message(message)
        await pilot.pause()
        assert app.current_mode == "train"
        answered.set()
        await send(pilot, app, "")
        assert isinstance(app.screen, NewRunScreen)
        assert app.screen.query_one("#field-epochs", Input).value == "12"


@pytest.mark.parametrize("typed", ["n\x1b2", "n7\x1b2", "n\x1b\x1b2", "n\x1b/\x1b2", "2\x1b"])
async def test_escape_and_a_key_right_after_it_both_take_effect(make_app: AppMaker, typed: str) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        await send(pilot, app, typed)
        assert isinstance(app.screen, BrowseScreen)


async def test_alt_and_a_key_is_itself_where_something_is_bound_to_it(make_app: AppMaker) -> None:
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        app.push_screen(PromptScreen("Learning rate", "", "one two", replace=True))
        await send(pilot, app, "\x05\x1bb\x1bbx")
        assert isinstance(app.screen, PromptScreen)
        assert app.screen.query_one(Input).value == "xone two"


async def test_a_widget_that_never_answers_delays_the_keys_only_for_a_while(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossconsole.tui.kit.textual_internals._PATIENCE_TICKS", 2)
    app = make_app(FakeServices())
    async with app.run_test(size=(80, 24)) as pilot:
        await past_opening(pilot)
        monkeypatch.setattr("ossconsole.tui.kit.textual_internals._passed", lambda _: asyncio.sleep(3600))
        await send(pilot, app, "x2")
        assert isinstance(app.screen, BrowseScreen)
