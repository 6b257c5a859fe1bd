"""The output of commands, as text or JSON, and their end: one line for an error, and an exit code."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import FULL
from ossconsole.config.text import safe_text

if TYPE_CHECKING:
    from ossconsole.storage.retry import Wait


def say(text: object, *, err: bool = False, mark: str = "", colour: str | None = None) -> None:
    """Prints one line of text with `mark` before it in `colour`; control and format characters are escaped."""
    click.echo(click.style(mark, fg=colour) + safe_text(str(text)) if mark else safe_text(str(text)), err=err)


def say_lines(text: str) -> None:
    """`say` on stderr for text with trusted line breaks, such as usage and tracebacks."""
    for line in text.rstrip("\n").split("\n"):
        say(line, err=True)


def report_and_wait(wait: Wait) -> None:
    """Says on stderr why a request is sent again later, and waits until then."""
    say(f"Waiting: {wait}", err=True)
    time.sleep(wait.seconds)


def say_json(value: object) -> None:
    """Prints one JSON document on a line of its own, and flushes it."""
    sys.stdout.buffer.write(json_line(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def json_line(value: Any) -> str:
    """`value` as JSON on one line, with unprintable characters as JSON escapes."""
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 has lone surrogates
        return json.dumps(msgspec.to_builtins(value))
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)


class _SafeFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(safe_text, super().format(record).split("\n")))


def open_closed_streams() -> None:
    """Opens /dev/null for each standard stream that the caller has closed (`>&-`): no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115, PTH123 - open until the process ends
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def guard_stderr() -> None:
    """Escapes the tracebacks, warnings and unhandled log lines that Python itself prints to stderr."""
    sys.excepthook = _print_traceback
    threading.excepthook = _print_thread_traceback
    warnings.formatwarning = _format_warning
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_SafeFormatter())


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return safe_text(f"{filename}:{lineno}: {category.__name__}: {line or message}") + "\n"


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say_lines("".join(traceback.format_exception(kind, error, trace)))


def _print_thread_traceback(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)


INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run_group(group: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 failed, 2 bad usage or settings, 130 interrupted.

    A ConsoleError becomes one line on stderr, and with `--json` also an error event on stdout.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = group.main(args=typed, prog_name="ossconsole", standalone_mode=False)
    except click.exceptions.Abort:
        say("Interrupted.", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say_lines(shown.getvalue())
        _report_json(typed, error.format_message(), "")
        return error.exit_code
    except ConsoleError as error:
        say(f"Error: {error}", err=True)
        _report_json(typed, error.message, error.remedy)
        return error.exit_code
    except BrokenPipeError:
        # The reader of the pipe has ended (`| head`); Python's flush at exit must not report that once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        say(f"Error: The output is incomplete: {error.strerror}.", err=True)
        return 1
    return result if isinstance(result, int) else 0


def _report_json(typed: Sequence[str], message: str, remedy: str) -> None:
    if "--json" in typed:
        from ossconsole.telemetry.events import ErrorEvent

        event = ErrorEvent(time=time.time(), message=message, remedy=remedy)
        say_json(event)


def end_process(code: int) -> NoReturn:
    """Flushes output and logs and ends the process; call it after everything is closed.

    The interpreter's own exit destroys torch object by object (37 s were seen on a loaded machine), and waits for every
    thread, such as one whose request has another minute of retries. Child processes end by themselves.
    """
    try:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:  # the reader of a pipe has ended
            os.write(2, f"Error: The output is incomplete: {error.strerror}.\n".encode())
        code = code or 1
    finally:
        os._exit(code)
