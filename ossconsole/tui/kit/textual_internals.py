"""Replacements for parts of Textual: drawing, terminal input, the order of keys, crashes.

Only this file uses private parts of Textual. `tests/tui/test_textual_internals.py` names each of them, and fails where
another version of Textual lacks it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import selectors
import signal
import time
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console, RenderableType
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual._xterm_parser import XTermParser
from textual.app import App, ScreenStackError
from textual.css.stylesheet import Stylesheet
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Event, Idle, Key, Paste, Resize
from textual.keys import Keys
from textual.message import Message
from textual.message_pump import MessagePump
from textual.screen import ModalScreen, Screen
from textual.strip import Strip
from textual.worker import Worker, WorkerFailed

from ossconsole.tui.kit.link import RepaintPace, ShownCells
from ossconsole.tui.kit.terminal_bytes import TerminalBytes

log = logging.getLogger(__name__)

_ESC = "\x1b"
_READ_BYTES = 4096
_TICK_S = 0.1
_PATIENCE_TICKS = 50
_DIALOG_CHECKS = 25
_DIALOG_CHECK_S = 0.02
_MAX_CELLS = 10_000
_BACKGROUND_QUERY = "\x1b]11;?\x1b\\"
# They print the query, or take it for another command.
_WITHOUT_QUERY = ("linux", "vt100", "vt102", "vt220", "ansi", "cons25")
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_BEGIN_OF_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*")
# Textual's parser handles these elsewhere, or needs the bytes that follow.
_HANDLED_ELSEWHERE = re.compile(r"\x1b\[(?:\[|M.{0,3}|<?[-\d;]+[mM]|\?\d+;\d\$y)")


# Drawing


class CroppedUpdate(ChopsUpdate):
    """A partial update of the screen, cut to the cells that differ from those that the terminal shows.

    Textual sends each line from the left edge of the widget, whatever part of it changed.
    """

    shown: ShownCells

    @classmethod
    def of(cls, update: ChopsUpdate, shown: ShownCells) -> CroppedUpdate:
        """A cropped copy of an update of Textual."""
        cropped = cls(update.chops, update.spans, update.chop_ends)
        cropped.shown = shown
        return cropped

    def render_segments(self, console: Console) -> str:
        """The escape sequences of the changed cells."""
        parts = []
        for y, first, last in self.spans:
            for end, (start, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(start, first), min(end, last)
                if strip is not None and left < right:
                    parts.append(self.shown.changes(left, y, strip.crop(left - start, right - start), console))
        return "".join([*parts, self.shown.end_frame()])


class FullUpdate(LayoutUpdate):
    """An update of the whole screen, of which only cells are sent that differ from those that the terminal shows."""

    shown: ShownCells

    @classmethod
    def of(cls, update: LayoutUpdate, shown: ShownCells) -> FullUpdate:
        """A copy of an update of Textual, which is always one of the whole screen."""
        full = cls(update.strips, update.region)
        full.shown = shown
        return full

    def render_segments(self, console: Console) -> str:
        """The escape sequences of the changed cells."""
        rows = [self.shown.whole_row(y, Strip.join(row), console) for y, row in enumerate(self.strips)]
        return "".join([*rows, self.shown.end_frame()])


class Paced:
    """Mixin of a screen that is repainted when `RepaintPace` says so.

    It is not a screen itself, as Textual takes the default styles from the first base that is one.
    """

    app: Any

    async def _on_idle(self, _event: Idle) -> None:  # Textual's timer waits for one to two frames, up to 33 ms
        if self.app.pace.follows_key(time.monotonic()):
            self._on_timer_update()

    def _on_timer_update(self) -> None:
        if not self.app.pace.rests(time.monotonic()):  # else the timer tries again after a frame
            super()._on_timer_update()  # type: ignore[misc]


class CachedStylesheet(Stylesheet):
    """Parses its sources only after a change of the theme: for each new screen it took a fifth of the first paint."""

    def __init__(self, *, variables: dict[str, str]) -> None:
        super().__init__(variables=variables)
        self._parsed_for = variables

    def reparse(self) -> None:
        """Parse again only after a change of the theme."""
        if self._variables != self._parsed_for:
            self._parsed_for = dict(self._variables)
            super().reparse()


# Input and output


class ConsoleParser(XTermParser):
    """Textual's parser of terminal input, which drops unknown and invalid sequences.

    Textual passes them on as text, where each character is a key. A key right after an Escape has both characters as
    its `character`: it is either Alt+key, or Escape and then the key.
    """

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterator[Key]:
        if alt and len(sequence) == 1:
            yield self._after_escape(sequence)
        elif sequence == _ESC:
            pass  # the beginning of a sequence that another one has interrupted
        elif len(sequence) > 1 and sequence[0] == _ESC and sequence[1] not in "[O":
            yield self._after_escape(sequence[1])
        else:
            yield from self.keys(sequence) or self._unknown(sequence)

    def keys(self, sequence: str) -> list[Key]:
        """The keys of a sequence or of one character; empty for unknown sequences."""
        try:
            return list(super()._sequence_to_key_events(sequence))
        except (ValueError, OverflowError):  # not a valid character number
            return []

    def _unknown(self, sequence: str) -> Iterator[Key]:
        if len(sequence) < len("\x1b[A") or _HANDLED_ELSEWHERE.fullmatch(sequence):
            return
        if _CONTROL_SEQUENCE.fullmatch(sequence):
            yield Key(Keys.Ignore, sequence)
        elif sequence[1] == "O" or not _BEGIN_OF_CONTROL_SEQUENCE.fullmatch(sequence):
            yield self._after_escape(sequence[1])
            for character in sequence[2:]:
                yield from self.keys(character)

    def _after_escape(self, character: str) -> Key:
        known = self.keys(_ESC + character)
        # Textual reads Escape and a digit as a symbol typed with the Option key of a Mac.
        name = known[0].key if known and not known[0].is_printable else ""
        plain = self.keys(character)
        return Key(name or f"alt+{plain[0].key if plain else character}", _ESC + character)


class SafeParser:
    """A ConsoleParser that is replaced by a new one when it fails."""

    def __init__(self) -> None:
        self._parser = ConsoleParser()

    def messages(self, text: str) -> Iterator[Message]:
        """The messages of `text`; call it with "" after a pause in the input."""
        try:
            if text:
                yield from self._parser.feed(text)
            yield from self._parser.tick()
        except (ValueError, ArithmeticError):
            log.warning("Invalid input from the terminal: %r", text, exc_info=True)
            self._parser = ConsoleParser()


class ConsoleDriver(LinuxDriver):
    """Textual's driver, which no input can crash. A failing thread of it is a crash of the console.

    Textual would end the App as if the user had quit, or wait for the dead writer thread without end.
    """

    _app: ConsoleTextualApp

    def __init__(self, app: ConsoleTextualApp, **options: Any) -> None:
        super().__init__(app, **options)
        self._file: Any = _SafeFile(self._file, app)

    def write(self, data: str) -> None:
        """Send to the terminal, in the writer thread."""
        self._app.pace.painted(len(data), time.monotonic())
        super().write(data)

    def start_application_mode(self) -> None:
        """Take the terminal, of which nothing is known yet."""
        self._app.shown_cells.forget()
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread, no key would come any more
            self._app.crash_from_thread(error)

    def run_input_thread(self) -> None:
        """Read the input and post its messages until `exit_event` is set."""
        source, parser = TerminalBytes(), SafeParser()
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                data = self._read() if selector.select(_TICK_S) else b""
                for message in parser.messages(source.text(data)):
                    self.process_message(message)
                if source.background is not None:
                    self.process_message(source.background)
                    source.background = None

    def _read(self) -> bytes:
        try:
            data = os.read(self.fileno, _READ_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:  # the terminal was closed; `ossconsole.terminal` handles that
            self.exit_event.wait(_TICK_S)
        return data

    def process_message(self, message: Message) -> None:
        """Post a message, unless it is an impossible terminal size."""
        if isinstance(message, Resize) and not all(0 < cells < _MAX_CELLS for cells in message.size):
            return
        if isinstance(message, Key):  # here, as the App simulates others
            self._app.pace.key(message.key, time.monotonic())
        super().process_message(message)


class _SafeFile:
    """The file of Textual's writer thread. It never raises: the App would wait for the dead thread without end."""

    def __init__(self, file: IO[str], app: ConsoleTextualApp) -> None:
        self._file = file
        self._app = app
        self._failed = False

    def write(self, text: str) -> None:
        if not self._failed:
            self._try(lambda: self._file.write(text))

    def flush(self) -> None:
        if not self._failed:
            self._try(self._file.flush)

    def fileno(self) -> int:
        return self._file.fileno()

    def _try(self, call: Any) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001
            self._failed = True
            self._app.crash_from_thread(error)


def _reset_terminal_modes(driver: LinuxDriver) -> None:
    """Set the modes of the terminal again, as the shell may have changed them while the process was stopped.

    Textual does so only if it suspended the application itself; otherwise it starts a second input thread, which takes
    keys from the first one and keeps the program from ending.
    """
    if not driver._must_signal_resume:  # True where the app has restored the terminal before
        driver.suspend_application_mode()
    driver.resume_application_mode()


# Keys in the order of their arrival


class KeyOrder:
    """Lets each key and each paste take effect before the next one is handled.

    Textual posts a key to the focused widget and runs its binding later, when the key has bubbled up to the App. Keys
    that arrive together would overtake each other, and keys after one that opens a dialog would go to the screen
    behind it.
    """

    def __init__(self, app: ConsoleTextualApp) -> None:
        self._app = app
        self._open = False
        self._waiting: deque[Event] = deque()
        self._current: Event | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Release the keys; they are queued until the first screen is mounted."""
        self._open = True
        if self._current is None:
            self.release()

    def take(self, event: Event) -> Event | None:
        """The event to handle now instead of `event`; None while it is queued.

        Call `release` or `follow` afterwards.
        """
        if event is not self._current:
            if self._current is not None or not self._open:
                self._waiting.append(event)
                return None
            self._current = event
        if isinstance(event, Key):
            self._current = self._split_alt(event)
        return self._current

    def _split_alt(self, event: Key) -> Key:
        """Alt+key where it is bound, else Escape, followed by the key."""
        character = event.character or ""
        if len(character) == 1 or not character.startswith(_ESC) or event.key in self._app.screen.active_bindings:
            return event
        self._waiting.extendleft(reversed(ConsoleParser().keys(character[1:])))
        return Key("escape", _ESC)

    def follow(self, target: MessagePump, screen: Screen[Any], workers: set[Worker[Any]]) -> None:
        """Release the next key once the current one, which `target` received, has taken effect.

        `screen` and `workers` are those from before the key.
        """
        self._task = asyncio.create_task(self._follow(target, screen, workers))

    async def _follow(self, target: MessagePump, screen: Screen[Any], workers: set[Worker[Any]]) -> None:
        settled = asyncio.create_task(self._settle(target, screen, workers))
        try:
            # In ticks, of which a stalled machine uses up only one.
            for _ in range(_PATIENCE_TICKS):
                if (await asyncio.wait({settled}, timeout=_TICK_S))[0]:
                    settled.result()
                    break
            else:
                settled.cancel()
        except ScreenStackError:
            pass  # the App is closing
        except Exception as error:  # noqa: BLE001
            self._app._handle_exception(error)
        finally:
            self.release()

    def release(self) -> None:
        """Handle the next key."""
        self._current = self._waiting.popleft() if self._waiting else None
        if self._current is not None:
            self._app.post_message(self._current)

    async def _settle(self, target: MessagePump, screen: Screen[Any], workers: set[Worker[Any]]) -> None:
        # First the key bubbles up to the App, which runs its binding; then the messages of the binding do the same.
        for _ in range(2):
            node: MessagePump | None = target
            while node is not None:
                await _passed(node)
                node = node._parent
        started = [worker for worker in self._app.workers if worker not in workers and not worker._thread_worker]
        for _ in range(_DIALOG_CHECKS):  # a worker may send a request before it opens its dialog
            if self._app.screen is not screen or all(worker.is_finished for worker in started):
                break
            await asyncio.sleep(_DIALOG_CHECK_S)
        front = None
        while front is not self._app.screen:
            front = self._app.screen
            await _passed(front)
            await _passed(self._app)  # sets the focus
            if front.focused is not None:
                await _passed(front.focused)


async def _passed(pump: MessagePump) -> None:
    """Returns once `pump` has handled all messages in its queue."""
    done = asyncio.Event()
    if pump.call_later(done.set):
        await done.wait()


# The App


class ConsoleTextualApp(App[str]):
    """Textual's App with the replacements of this file.

    After a crash the return code is 1, and `crash_lines` has one line with the error and the path of the report.
    Textual would print the values of local variables, which may be secrets.
    """

    def __init__(self) -> None:
        super().__init__(driver_class=ConsoleDriver)
        self.key_order = KeyOrder(self)
        self.shown_cells = ShownCells()
        self.pace = RepaintPace()
        self._drawn_screen: Screen[object] | None = None
        self.crash_lines: list[str] = []
        self._crash: BaseException | None = None

    def watch_process(self) -> None:
        """Handle errors of the event loop, and SIGCONT; call it once the App runs."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_failed)
        if isinstance(self._driver, LinuxDriver):
            loop.add_signal_handler(signal.SIGCONT, _reset_terminal_modes, self._driver)

    def query_background(self) -> None:
        """Ask the terminal for its background; it may answer with TerminalBackground, and nothing waits for that."""
        if isinstance(self._driver, ConsoleDriver) and os.environ.get("TERM", "") not in _WITHOUT_QUERY:
            self._driver.write(_BACKGROUND_QUERY)
            self._driver.flush()

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if isinstance(renderable, ChopsUpdate):
            renderable = CroppedUpdate.of(renderable, self.shown_cells)
        elif isinstance(renderable, LayoutUpdate):
            if not isinstance(screen, ModalScreen) and screen is not self._drawn_screen:
                self._drawn_screen = screen
                self.shown_cells.forget()  # another mode also mends what a stranger wrote to the terminal
            renderable = FullUpdate.of(renderable, self.shown_cells)
        super()._display(screen, renderable)

    async def on_event(self, event: Event) -> None:
        """Handle keys and pastes one by one."""
        if not isinstance(event, Key | Paste) or event.is_forwarded:
            if isinstance(event, Resize):
                self.shown_cells.forget()  # a terminal moves its lines
            await super().on_event(event)
            return
        now = self.key_order.take(event)
        if now is not None:
            screen, workers = self.screen, set(self.workers)
            target = self.focused or screen
            # A character typed into an input runs no binding, so the next key can follow directly.
            typed = isinstance(now, Key) and target.check_consume_key(now.key, now.character)
            await super().on_event(now)
            if typed:
                self.key_order.release()
            else:
                self.key_order.follow(target, screen, workers)

    # Crashes

    def crash(self, error: BaseException) -> None:
        """End the App because of `error`, unless it is ending already. Call it on the event loop."""
        self._handle_exception(error)

    def crash_from_thread(self, error: BaseException) -> None:
        """As `crash`, from any other thread."""
        assert self._loop is not None  # noqa: S101 - only a running App has such threads
        self._loop.call_soon_threadsafe(self._handle_exception, error)

    def panic(self, *renderables: RenderableType) -> None:
        """End the App without an exception, as Textual does; it counts as a crash."""
        if self._crash is None:
            self._handle_exception(RuntimeError(" ".join(map(str, renderables))))
        else:
            self._fatal_error()

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle a failed callback of the event loop; all other reports go to the log."""
        loop.default_exception_handler(context)
        if "handle" in context and isinstance(context.get("exception"), BaseException):
            self._handle_exception(context["exception"])

    def _handle_exception(self, error: BaseException) -> None:
        # Errors of widgets that are being removed do not matter: the user has quit, or the first error is known.
        if self._exit and self._crash is None:
            log.info("Error while the console was closing", exc_info=error)
            return
        if isinstance(error, WorkerFailed):
            error = error.error  # with the traceback
        self._crash = self._crash or error
        super()._handle_exception(error)  # type: ignore[arg-type]

    def _fatal_error(self) -> None:
        from ossconsole.terminal.logs import crash_line

        if self._crash is not None and not self.crash_lines:
            self.crash_lines.append(crash_line(self._crash))
        self._close_messages_no_wait()
