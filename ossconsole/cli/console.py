"""`ossconsole` and `ossconsole demo`: the console on the terminal, and what becomes of the work when it is left."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from ossconsole.cli.options import Target, profile_options
from ossconsole.cli.output import say
from ossconsole.config.errors import SettingsError
from ossconsole.config.text import safe_text

if TYPE_CHECKING:
    from ossconsole.cli.application import Application
    from ossconsole.storage.jobs.job import Job
    from ossconsole.terminal.foreground import Foreground
    from ossconsole.terminal.signals import ExitSignals
    from ossconsole.tui.app import ConsoleApp

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_SWITCH_S = 0.001  # Python's own is 5 ms, which a key waits for many times over until its answer is painted
_CRASHED, _HUNG_UP = 1, 128 + signal.SIGHUP


class _Left(msgspec.Struct, frozen=True):
    """How the console was left: with which exit code, on what answer of the user, and with which jobs on objects.

    `crash` is the line about a crash, empty where there was none.
    """

    code: int
    answer: str | None
    jobs: Sequence[Job]
    crash: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="No screen: one JSON object per step and event.")
@profile_options
def demo(target: Target, as_json: bool) -> int:
    """Sandbox, sample dataset and a ResNet-18 run, without an account, a GPU or root.

    Without a terminal, the endpoints are compared and the checkpoint is verified in about a minute, line by line.
    """
    from ossconsole.config.profiles import SANDBOX_NAME
    from ossconsole.terminal.tty import check_terminal

    if target.flags.get("profile", SANDBOX_NAME) != SANDBOX_NAME:
        target.refuse_flags({"profile"}, "the demo works on the sandbox.")
    target = target.with_profile(SANDBOX_NAME)
    target.resolve()  # raises for what the sandbox cannot follow, before the terminal is taken
    if not as_json:
        try:
            check_terminal()
        except SettingsError as error:
            say(f"{error.message} The demo runs line by line.", err=True)
        else:
            open_console(target, readonly=False, demo=True)
    from ossconsole.cli.demo import run_demo

    return run_demo(target, as_json=as_json)


def open_console(target: Target, *, readonly: bool, demo: bool = False) -> NoReturn:
    """Shows the console until the user leaves; ends the program with its exit code. Raises ConsoleError.

    Work goes on without the console when the user wants that, and unless the settings say otherwise also when the
    terminal is lost or the console crashes.
    """
    gc.disable()  # until the first paint: what is loaded for it stays, and looking through it held it up by 25 ms
    from ossconsole.cli.application import Application
    from ossconsole.config.profiles import OnHangup, load_settings
    from ossconsole.terminal.foreground import stay_in_front
    from ossconsole.terminal.logs import native_log_path, set_up_logging
    from ossconsole.terminal.signals import ExitSignals
    from ossconsole.terminal.tty import check_terminal, owned_terminal

    check_terminal()
    on_hangup = load_settings().on_hangup
    front = stay_in_front(_killed)
    # What lists, sorts or trains behind the screens lets them go on when a key comes.
    sys.setswitchinterval(_SWITCH_S)
    application = Application(target, readonly=readonly, demo=demo)
    set_up_logging()
    # What is left of the hang-ups after the first one, which come from several sides, must not end the work.
    with (
        owned_terminal(native_log_path()) as terminal,
        ExitSignals(terminal, ignore_hangups_afterwards=True) as signals,
    ):
        application.open()
        try:
            left = asyncio.run(_show(application, signals, demo=demo))
        finally:
            signals.detach()
    if left.crash:
        _say(left.crash)
    if signals.cause:
        _say(f"ossconsole: {signals.cause}.")
    working = application.busy or any(job.alive for job in left.jobs)
    abandoned = left.code in {_HUNG_UP, _CRASHED} and on_hangup is OnHangup.GO_ON
    if working and (left.answer == "detach" or abandoned):
        sys.exit(_go_on(application, front, left))
    application.close(_say)
    run = application.run
    if run is not None and run.alive:
        _say(f"The run {run.record_path.stem} goes on in its own process; `ossconsole` shows it again.")
    sys.exit(left.code)


async def _show(application: Application, signals: ExitSignals, *, demo: bool) -> _Left:
    """Runs the App. Only an App that was asked to exit was left by the user; every other end of it is a crash."""
    from ossconsole.tui.app import ConsoleApp

    app: ConsoleApp = ConsoleApp(application, initial_mode="train" if demo else "browse")
    signals.attach(lambda code: app.exit(return_code=code), asyncio.get_running_loop())
    try:
        await app.run_async()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the report has it
        app.crash(error)
    if app.return_code is None:
        app.crash(RuntimeError("The console ended although nobody left it."))
    crash = "".join(app.crash_lines)
    return _Left(_CRASHED if crash else app.return_code or 0, app.return_value, app.jobs, crash)


def _go_on(application: Application, front: Foreground, left: _Left) -> int:
    """Sees the work to its end without a terminal; SIGINT and SIGTERM end it with a checkpoint."""
    from ossconsole.terminal.logs import native_log_path
    from ossconsole.terminal.signals import ExitSignals

    _say(
        f"The work goes on without the console, as process {os.getpid()}. `ossconsole` shows it again, "
        "`ossconsole status` tells where it stands."
    )
    front.let_go(native_log_path(), left.code)
    application.leave_alone()
    log.info("Going on without a terminal")
    with ExitSignals() as signals:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        codes: list[int] = []

        def end(code: int) -> None:
            codes.append(code)
            application.end_work()
            for job in left.jobs:
                job.cancel()

        signals.attach(end)
        while application.busy:
            application.wait(_LOOK_S)
        for job in left.jobs:
            job.wait()
    log.info("The work has ended%s", f" ({signals.cause})" if signals.cause else "")
    application.close(log.info)
    return codes[0] if codes else 0


def _killed(number: int) -> str:
    """The line left on the terminal when the console's process was killed."""
    from ossconsole.terminal.logs import log_path

    return safe_text(
        f"ossconsole was killed by {signal.Signals(number).name}, and what it worked on has ended. "
        f"`ossconsole status` tells how far a run came; the log is {log_path()}."
    )


def _say(text: str) -> None:
    say(text, err=True)
