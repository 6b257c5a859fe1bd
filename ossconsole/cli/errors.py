"""How a command ends: one clear line and an exit code, never a traceback for what a user can act on."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import click

from ossconsole.cli.output import say, say_json, say_lines
from ossconsole.config.errors import ConsoleError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run_group(group: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives its exit code: 0 done, 1 failed, 2 bad usage or settings, 130 interrupted.

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
        say_lines(shown.getvalue(), err=True)
        _report_json(typed, error.format_message(), "")
        return error.exit_code
    except ConsoleError as error:
        say(f"Error: {error}", err=True)
        _report_json(typed, error.message, error.remedy)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`); Python's flush at exit must not complain about it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _report_json(typed: Sequence[str], message: str, remedy: str) -> None:
    if "--json" in typed:
        from ossconsole.telemetry.events import ErrorEvent

        event = ErrorEvent(time=time.time(), message=message, remedy=remedy)
        say_json(event)


def end_process(code: int) -> NoReturn:
    """Ends the process with what was printed and logged, and nothing else: call it when everything is closed.

    The interpreter's own end takes torch apart object by object (37 s were seen on a loaded machine), and waits for
    every thread, such as one whose request has another minute of tries. Child processes end by themselves.
    """
    try:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:  # the reader of a pipe has seen enough
            os.write(2, f"Error: What was printed is not complete: {error.strerror}.\n".encode())
        code = code or 1
    finally:
        os._exit(code)
