"""`python -m tests.cli.crashing PLACE ARGUMENTS`: the real command, which fails in that place when F12 is pressed."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable

from textual.app import App
from textual.message import Message
from textual.widget import Widget

from ossconsole.cli import main
from ossconsole.terminal.tty import _TerminalFile
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.help import LogTail
from ossconsole.tui.kit.textual_internals import ConsoleDriver

SENTINEL = "sentinel-in-a-local-9c41"


def fail(*_: object) -> list[object]:
    access_key_secret = SENTINEL
    raise RuntimeError(f"the place failed with {len(access_key_secret)} characters")


async def fail_later() -> None:
    await asyncio.sleep(0)
    fail()


def on_f12(act: Callable[[ConsoleApp], object]) -> None:
    ConsoleApp.action_log = act  # type: ignore[method-assign, assignment]


def in_a_widget() -> None:
    LogTail.paint = fail  # type: ignore[method-assign, assignment]


def in_the_input_thread() -> None:
    handle = ConsoleDriver.process_message

    def process_message(driver: ConsoleDriver, message: Message) -> None:
        if getattr(message, "key", "") == "f12":
            fail()
        handle(driver, message)

    ConsoleDriver.process_message = process_message  # type: ignore[method-assign, assignment]


def in_the_writer_thread() -> None:
    def act(app: ConsoleApp) -> None:
        write = _TerminalFile.write

        def write_or_fail(file: _TerminalFile, text: str, /) -> int:
            return len(fail()) if threading.current_thread().name == "textual-output" else write(file, text)

        _TerminalFile.write = write_or_fail  # type: ignore[method-assign]
        app.bell()

    on_f12(act)


def in_a_callback_of_the_loop() -> None:
    on_f12(lambda _: asyncio.get_running_loop().call_soon(fail))


def in_an_async_worker() -> None:
    on_f12(lambda app: app.run_worker(fail_later()))


def in_a_thread_worker() -> None:
    on_f12(lambda app: app.run_worker(fail, thread=True))


def in_a_message_handler() -> None:
    on_f12(lambda app: app.screen.call_later(fail))


def in_a_timer() -> None:
    on_f12(lambda app: app.set_timer(0.01, fail))


def with_an_error_that_has_its_own_picture() -> None:
    """Textual shows such errors in another way."""

    class PictureError(RuntimeError):
        def __rich__(self) -> str:
            return SENTINEL

    def act(_: ConsoleApp) -> None:
        raise PictureError("the place failed, and has a picture of it")

    on_f12(act)


def in_panic() -> None:
    """Textual's own way to end an App for an error, without an exception."""
    on_f12(lambda app: app.panic("the place failed, and there is no exception"))


def outside_of_the_app() -> None:
    """In what runs the App, after it has been closed."""

    async def run_async(app: ConsoleApp, **_: object) -> None:
        await App.run_async(app)
        fail()

    ConsoleApp.run_async = run_async  # type: ignore[method-assign, assignment]
    on_f12(lambda app: app._close_messages_no_wait())


def in_the_closing_of_the_app() -> None:
    """Nothing has failed, and nobody has left: the App's messages come to an end."""
    on_f12(lambda app: app._close_messages_no_wait())


def by_cancelling_the_main_task() -> None:
    def act(_: ConsoleApp) -> None:
        for task in asyncio.all_tasks():
            if "_show" in repr(task.get_coro()):
                task.cancel("the place failed")

    on_f12(act)


def while_mounting() -> None:
    """In a widget that is being put on the screen."""

    class Failing(Widget):
        def on_mount(self) -> None:
            fail()

    on_f12(lambda app: app.screen.mount(Failing()))


PLACES = {
    place.__name__: place
    for place in (
        in_a_widget,
        in_the_input_thread,
        in_the_writer_thread,
        in_a_callback_of_the_loop,
        in_an_async_worker,
        in_a_thread_worker,
        in_a_message_handler,
        in_a_timer,
        with_an_error_that_has_its_own_picture,
        in_panic,
        outside_of_the_app,
        in_the_closing_of_the_app,
        by_cancelling_the_main_task,
        while_mounting,
    )
}

if __name__ == "__main__":
    PLACES[sys.argv.pop(1)]()
    main()
