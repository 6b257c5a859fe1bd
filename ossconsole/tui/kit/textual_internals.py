"""The only file that uses private parts of Textual: what the console does in another way than Textual.

`tests/tui/test_textual_internals.py` names each private part, and fails where another version of Textual lacks it.

The last guard before the terminal: whatever a widget draws, its characters only draw.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import logging
import os
import re
import selectors
import signal
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.control import Control
from rich.segment import Segment
from textual._compositor import ChopsUpdate
from textual._xterm_parser import XTermParser
from textual.app import App, ScreenStackError
from textual.color import Color
from textual.css.stylesheet import Stylesheet
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Event, Key, Paste, Resize
from textual.filter import LineFilter
from textual.keys import Keys
from textual.message import Message
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.worker import Worker, WorkerFailed

log = logging.getLogger(__name__)

_ESC = "\x1b"
_READ_BYTES = 4096
_TICK_S = 0.1
_PATIENCE_TICKS = 50
_DIALOG_LOOKS = 25
_DIALOG_LOOK_S = 0.02
_MAX_CELLS = 10_000
# Never keys: a mouse report of the oldest kind, whose three bytes may have any value; the answer to a question that
# another program has asked (OSC, DCS, APC, PM, SOS); a control sequence longer than Textual's parser looks at.
_NO_KEYS = re.compile(rb"\x1b\[M[\s\S]{3}|\x1b[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]{29,}[ -/]*[@-~]")
_CUT_OFF = re.compile(rb"\x1b\[(?:M[\s\S]{0,2})?\Z")
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_BEGIN_OF_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*")
# Of these Textual's parser makes no keys, but takes them later, or needs what follows.
_TAKEN_LATER = re.compile(r"\x1b\[(?:\[|M.{0,3}|<?[-\d;]+[mM]|\?\d+;\d\$y)")


# Drawing


class FrugalUpdate(ChopsUpdate):
    """A partial update of the screen, cut to the changed spans on both sides.

    Textual's own sends each line from the left edge of the widget on, whatever part of it changed.
    """

    @classmethod
    def of(cls, update: ChopsUpdate) -> FrugalUpdate:
        return cls(update.chops, update.spans, update.chop_ends)

    def render_segments(self, console: Console) -> str:
        found = []
        for y, first, last in self.spans:
            for end, (start, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(start, first), min(end, last)
                if strip is not None and left < right:
                    found.append(Control.move_to(left, y).segment.text)
                    found.append(strip.crop(left - start, right - start).render(console))
        return "".join(found)


class FrugalStylesheet(Stylesheet):
    """Parses its sources again only for other variables, that is for another theme.

    Textual parses all of them anew for every screen that is first shown; that took a fifth of the first paint.
    """

    def __init__(self, *, variables: dict[str, str]) -> None:
        super().__init__(variables=variables)
        self._parsed_for = variables

    def reparse(self) -> None:
        if self._variables != self._parsed_for:
            self._parsed_for = dict(self._variables)
            super().reparse()


# Input and output


class TerminalBytes:
    """Text from the bytes of a terminal, without what is no key. Bytes that are no UTF-8 are dropped."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._kept = b""

    def text(self, data: bytes) -> str:
        """The text of `data` and of what was kept before; the cut-off begin of a sequence is kept.

        Call it without data when nothing more has arrived for a while.
        """
        whole, self._kept = self._kept + data, b""
        if data:
            whole = _NO_KEYS.sub(b"", whole)
            cut = _CUT_OFF.search(whole)
            if cut:
                whole, self._kept = whole[: cut.start()], whole[cut.start() :]
        elif len(whole) > len("\x1b["):
            whole = b""  # the rest of a mouse report that did not come
        return self._decoder.decode(whole)


class ConsoleParser(XTermParser):
    """Textual's parser of what a terminal sends, made safe for sequences that it does not know or cannot read.

    Such a sequence is dropped; Textual's own types it into the console, where each character is a key. A key with an
    Escape right before it has these two as its `character`: Alt+key, or Escape and then the key.
    """

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterator[Key]:
        if alt and len(sequence) == 1:
            yield self._after_escape(sequence)
        elif sequence == _ESC:
            pass  # it began a sequence that another one has cut off
        elif len(sequence) > 1 and sequence[0] == _ESC and sequence[1] not in "[O":
            yield self._after_escape(sequence[1])
        else:
            yield from self.keys(sequence) or self._unknown(sequence)

    def keys(self, sequence: str) -> list[Key]:
        """The keys that `sequence`, or one character, stands for; none where it is not known."""
        try:
            return list(super()._sequence_to_key_events(sequence))
        except (ValueError, OverflowError):  # a number that is no character
            return []

    def _unknown(self, sequence: str) -> Iterator[Key]:
        if len(sequence) < len("\x1b[A") or _TAKEN_LATER.fullmatch(sequence):
            return
        if _CONTROL_SEQUENCE.fullmatch(sequence):
            yield Key(Keys.Ignore, sequence)
        elif sequence[1] == "O" or not _BEGIN_OF_CONTROL_SEQUENCE.fullmatch(sequence):
            yield self._after_escape(sequence[1])
            for character in sequence[2:]:
                yield from self.keys(character)

    def _after_escape(self, character: str) -> Key:
        known = self.keys(_ESC + character)
        # What Textual takes for a symbol of a Mac's Option key is Escape and a digit everywhere else.
        name = known[0].key if known and not known[0].is_printable else ""
        plain = self.keys(character)
        return Key(name or f"alt+{plain[0].key if plain else character}", _ESC + character)


class SafeParser:
    """A ConsoleParser that is replaced when it fails; what follows is read by the new one."""

    def __init__(self) -> None:
        self._parser = ConsoleParser()

    def messages(self, text: str) -> Iterator[Message]:
        """What `text` stands for; call it without one when nothing has arrived for a while."""
        try:
            if text:
                yield from self._parser.feed(text)
            yield from self._parser.tick()
        except (ValueError, ArithmeticError):
            log.warning("The terminal sent what cannot be read: %r", text, exc_info=True)
            self._parser = ConsoleParser()


class ConsoleDriver(LinuxDriver):
    """Textual's driver, except that no input makes it fail, and that a failing thread of it is a crash of the console.

    Textual ends the App for that as if the user had left, or waits for ever for a dead writer.
    """

    _app: ConsoleTextualApp

    def __init__(self, app: ConsoleTextualApp, **options: Any) -> None:
        super().__init__(app, **options)
        self._file: Any = _SafeFile(self._file, app)

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread, no key would come any more
            self._app.crash_from_thread(error)

    def run_input_thread(self) -> None:
        """Reads and sends on what is typed, until `exit_event` is set."""
        source, parser = TerminalBytes(), SafeParser()
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                data = self._read() if selector.select(_TICK_S) else b""
                for message in parser.messages(source.text(data)):
                    self.process_message(message)

    def _read(self) -> bytes:
        try:
            data = os.read(self.fileno, _READ_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:  # the terminal is gone; `ossconsole.terminal` notices that
            self.exit_event.wait(_TICK_S)
        return data

    def process_message(self, message: Message) -> None:
        if isinstance(message, Resize) and not all(0 < cells < _MAX_CELLS for cells in message.size):
            return  # a report of the terminal that cannot be true
        super().process_message(message)


class _SafeFile:
    """What Textual's writer writes to. It never fails, as the App would then wait for its writer for ever."""

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


def _take_terminal_again(driver: LinuxDriver) -> None:
    """The shell may have changed the terminal while the process was stopped, so its modes are set anew.

    Textual does that too, but as if it had been told before: a second thread then reads the keys, takes some of them
    away from the first, and keeps the program from ending.
    """
    if not driver._must_signal_resume:  # set where the app itself has put the terminal back before
        driver.suspend_application_mode()
    driver.resume_application_mode()


# Keys in the order of their arrival


class KeyOrder:
    """Lets each key and each paste take effect before the next one is looked at.

    Textual hands a key to the widget in focus, and runs its binding some time later, when the key has come up from
    there to the App. Keys that arrive together would overtake each other, and those after one that opens a dialog
    would go to the screen behind it.
    """

    def __init__(self, app: ConsoleTextualApp) -> None:
        self._app = app
        self._open = False
        self._waiting: deque[Event] = deque()
        self._current: Event | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """The first screen is there: keys are kept until then."""
        self._open = True
        if self._current is None:
            self.release()

    def take(self, event: Event) -> Event | None:
        """What is to be handled now in the place of `event`; None while others come first.

        Call `release` or `follow` after it.
        """
        if event is not self._current:
            if self._current is not None or not self._open:
                self._waiting.append(event)
                return None
            self._current = event
        if isinstance(event, Key):
            self._current = self._parted(event)
        return self._current

    def _parted(self, event: Key) -> Key:
        """Alt+key where something is bound to it, else Escape; the key then comes next."""
        character = event.character or ""
        if len(character) == 1 or not character.startswith(_ESC) or event.key in self._app.screen.active_bindings:
            return event
        self._waiting.extendleft(reversed(ConsoleParser().keys(character[1:])))
        return Key("escape", _ESC)

    def follow(self, target: MessagePump, screen: Screen[Any], workers: set[Worker[Any]]) -> None:
        """Release the next key when the current one, which `target` got, has had its effect.

        `screen` and `workers` are what there was before it.
        """
        self._task = asyncio.create_task(self._follow(target, screen, workers))

    async def _follow(self, target: MessagePump, screen: Screen[Any], workers: set[Worker[Any]]) -> None:
        settled = asyncio.create_task(self._settle(target, screen, workers))
        try:
            # In ticks, so that a machine that stalls uses up one of them at most.
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
        """The current key has had its effect: the next one may have its own."""
        self._current = self._waiting.popleft() if self._waiting else None
        if self._current is not None:
            self._app.post_message(self._current)

    async def _settle(self, target: MessagePump, screen: Screen[Any], workers: set[Worker[Any]]) -> None:
        # First the key goes up to the App, which runs its binding; then what that posted goes the same way.
        for _ in range(2):
            node: MessagePump | None = target
            while node is not None:
                await _passed(node)
                node = node._parent
        started = [worker for worker in self._app.workers if worker not in workers and not worker._thread_worker]
        for _ in range(_DIALOG_LOOKS):  # a worker may ask the server before it opens its dialog
            if self._app.screen is not screen or all(worker.is_finished for worker in started):
                break
            await asyncio.sleep(_DIALOG_LOOK_S)
        front = None
        while front is not self._app.screen:
            front = self._app.screen
            await _passed(front)
            await _passed(self._app)  # sets the focus
            if front.focused is not None:
                await _passed(front.focused)


async def _passed(pump: MessagePump) -> None:
    """Returns when `pump` has handled all the messages that it has now."""
    done = asyncio.Event()
    if pump.call_later(done.set):
        await done.wait()


# The App


class ConsoleTextualApp(App[str]):
    """Textual's App with what the console does in another way: drawing, input, the order of keys, and crashes.

    After a crash the return code is 1, and `crash_lines` holds one line that says what happened and where the report
    is. Textual would show the values of local variables, which could hold a secret.
    """

    def __init__(self) -> None:
        super().__init__(driver_class=ConsoleDriver)
        self.key_order = KeyOrder(self)
        self.crash_lines: list[str] = []
        self._crash: BaseException | None = None

    def watch_process(self) -> None:
        """Call it once the App runs: crashes of the event loop count, and the terminal is taken anew after a stop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_failed)
        if isinstance(self._driver, LinuxDriver):
            loop.add_signal_handler(signal.SIGCONT, _take_terminal_again, self._driver)

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if isinstance(renderable, ChopsUpdate):
            renderable = FrugalUpdate.of(renderable)
        super()._display(screen, renderable)

    async def on_event(self, event: Event) -> None:
        if not isinstance(event, Key | Paste) or event.is_forwarded:
            await super().on_event(event)
            return
        now = self.key_order.take(event)
        if now is not None:
            screen, workers = self.screen, set(self.workers)
            target = self.focused or screen
            # What a field types into itself runs no binding, and the next key comes after it by itself.
            typed = isinstance(now, Key) and target.check_consume_key(now.key, now.character)
            await super().on_event(now)
            if typed:
                self.key_order.release()
            else:
                self.key_order.follow(target, screen, workers)

    # Crashes

    def crash(self, error: BaseException) -> None:
        """End the App because of `error`, unless it ends already. Call it from the thread of the event loop."""
        self._handle_exception(error)

    def crash_from_thread(self, error: BaseException) -> None:
        """As `crash`, from any other thread."""
        assert self._loop is not None  # noqa: S101 - only a running App has such threads
        self._loop.call_soon_threadsafe(self._handle_exception, error)

    def panic(self, *renderables: RenderableType) -> None:
        """Textual's way to end an App without an exception; it would count as if the user had left."""
        if self._crash is None:
            self._handle_exception(RuntimeError(" ".join(map(str, renderables))))
        else:
            self._fatal_error()

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback of the event loop has failed. What else it tells of is in the log."""
        loop.default_exception_handler(context)
        if "handle" in context and isinstance(context.get("exception"), BaseException):
            self._handle_exception(context["exception"])

    def _handle_exception(self, error: BaseException) -> None:
        # What widgets raise while they are torn down says nothing: the user has left, or the first error is known.
        if self._exit and self._crash is None:
            log.info("While the console was left", exc_info=error)
            return
        if isinstance(error, WorkerFailed):
            error = error.error  # which knows where it was raised
        self._crash = self._crash or error
        super()._handle_exception(error)  # type: ignore[arg-type]

    def _fatal_error(self) -> None:
        from ossconsole.terminal.logs import crash_line

        if self._crash is not None and not self.crash_lines:
            self.crash_lines.append(crash_line(self._crash))
        self._close_messages_no_wait()


_KITTY_PLACEHOLDER = "\U0010eeee"  # stands for a part of a picture that was sent to the terminal before
_REPLACEMENT = "?"


class TerminalGuard(LineFilter):
    """Replaces what a terminal would act on, cell by cell.

    Our own lines spell such characters out (see `ossconsole.config.text.safe_text`). This is for Textual's own widgets,
    which show what was pasted into a field, or the names of files, as they are.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's signature
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [segment if segment.control else segment._replace(text=_drawn(segment.text)) for segment in segments]


def _drawn(text: str) -> str:
    """The text in the same number of cells."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == _KITTY_PLACEHOLDER else _REPLACEMENT * cell_len(character)
        for character in text
    )
