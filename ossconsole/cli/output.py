"""What commands print: text for people, and JSON for programs. Nothing of either acts on a terminal."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

import click
import msgspec

from ossconsole.config.text import safe_text


def say(text: object, *, err: bool = False, mark: str = "", colour: str | None = None) -> None:
    """Prints one line for people; control and format characters in it, from whatever source, are spelled out.

    `mark`, a word of ours, stands before it in `colour`.
    """
    click.echo(click.style(mark, fg=colour) + safe_text(str(text)) if mark else safe_text(str(text)), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """`say` for text whose line breaks are our own or a library's, such as usage and tracebacks."""
    for line in text.rstrip("\n").split("\n"):
        say(line, err=err)


def say_json(value: object) -> None:
    """Prints one JSON document on a line of its own, and flushes it.

    What is not printable is escaped as JSON has it, so that a terminal shows it and a program reads it back.
    """
    sys.stdout.buffer.write(json_line(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def json_line(value: Any) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: its odd bytes are lone surrogates
        return json.dumps(msgspec.to_builtins(value))
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)


class _SafeFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(safe_text, super().format(record).split("\n")))


def guard_stderr() -> None:
    """Makes safe what Python itself prints there: tracebacks, and warnings and log lines that nobody handles."""
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
    say_lines("".join(traceback.format_exception(kind, error, trace)), err=True)


def _print_thread_traceback(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)
