"""`ossconsole` and `ossconsole demo`: the console on the terminal, and its work after the console has closed."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from ossconsole.cli.options import Target, mouse_option, profile_options
from ossconsole.cli.output import say
from ossconsole.config.errors import SettingsError
from ossconsole.config.resolve import SANDBOX_FIELDS
from ossconsole.config.text import safe_text, signal_name

if TYPE_CHECKING:
    from ossconsole.cli.application import Application
    from ossconsole.storage.jobs.job import Job
    from ossconsole.terminal.foreground import Foreground
    from ossconsole.terminal.signals import ExitSignals
    from ossconsole.tui.app import ConsoleApp

log = logging.getLogger(__name__)

_say = functools.partial(say, err=True)
_POLL_S = 0.5
_FLUSH_S = 3.0  # a process that is suspended does not answer
_SWITCH_S = 0.001  # Python's default of 5 ms delays a key press several times before it is painted
_CRASHED, _HUNG_UP = 1, 128 + signal.SIGHUP


class _ExitState(msgspec.Struct, frozen=True):
    """How the console closed: exit code, the user's answer ("detach" or None), object jobs, the crash line or ""."""

    code: int
    answer: str | None
    jobs: Sequence[Job]
    crash: str


@click.command(short_help="Sandbox, sample dataset and a run; no account, GPU or root.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per step and event, without a screen.")
@click.option("--tour", is_flag=True, help="Name each panel once, with captions; W does so at any time.")
@mouse_option
@profile_options
def demo(target: Target, as_json: bool, tour: bool, no_mouse: bool) -> int:
    """Sandbox, sample dataset and a training run, without an account, a GPU or root.

    Without a terminal it prints lines: it compares the endpoints and verifies the checkpoint in about a minute.
    """
    from ossconsole.config.profiles import SANDBOX_NAME
    from ossconsole.terminal.tty import check_terminal

    if target.flags.get("profile", SANDBOX_NAME) != SANDBOX_NAME:
        target.refuse_flags({"profile"}, "the demo uses the sandbox.")
    target = target.with_profile(SANDBOX_NAME)
    target.resolve()  # raises for unusable options before the terminal is taken over
    if not as_json:
        try:
            check_terminal()
        except SettingsError as error:
            say(f"{error.message} The demo prints lines instead.", err=True)
        else:
            open_console(target, readonly=False, demo=True, mouse=not no_mouse, tour=tour)
    from ossconsole.cli.demo import run_demo

    return run_demo(target, as_json=as_json)


for _option in demo.params:
    if _option.name in {"profile", *SANDBOX_FIELDS} and isinstance(_option, click.Option):
        _option.hidden = True  # the sandbox has these of its own, and refuses them


def open_console(target: Target, *, readonly: bool, mouse: bool, demo: bool = False, tour: bool = False) -> NoReturn:
    """Shows the console until the user exits; ends the program with its exit code. Raises ConsoleError.

    Without `mouse` the terminal keeps it, to select text.

    Work continues without the console where the user selects that and, unless `on_hangup` is "stop", where the terminal
    is lost or the console crashes.
    """
    gc.disable()  # until the first paint, which a collection delayed by 25 ms
    from ossconsole.cli.application import Application
    from ossconsole.config.files import native_log_path
    from ossconsole.config.profiles import OnHangup, load_settings
    from ossconsole.terminal.foreground import run_in_child
    from ossconsole.terminal.logs import set_up_logging
    from ossconsole.terminal.signals import ExitSignals
    from ossconsole.terminal.tty import check_terminal, owned_terminal
    from ossconsole.tui.kit import actions

    check_terminal()
    settings = load_settings()
    on_hangup = settings.on_hangup
    actions.use_keymap(actions.checked_keymap(settings.keys))
    options = {"initial_mode": "train" if demo else "", "price_per_hour": settings.price_per_hour, "tour": tour}
    front = run_in_child(_killed)
    # Threads that list, sort or train give way to a key press sooner.
    sys.setswitchinterval(_SWITCH_S)
    application = Application(target, readonly=readonly, demo=demo)
    set_up_logging()
    # A lost terminal may send several hang-ups: those after the first one must not end the work.
    with (
        owned_terminal(native_log_path()) as terminal,
        ExitSignals(terminal, ignore_hangups_afterwards=True) as signals,
    ):
        application.open()
        try:
            left = asyncio.run(_show(application, signals, options, mouse=mouse))
        finally:
            signals.detach()
    _flush_commands(application)
    if left.crash:
        _say(left.crash)
    if signals.cause:
        _say(f"ossconsole: {signals.cause}.")
    working = application.busy or any(job.alive for job in left.jobs)
    abandoned = left.code in {_HUNG_UP, _CRASHED} and on_hangup is OnHangup.CONTINUE
    if working and (left.answer == "detach" or abandoned):
        sys.exit(_continue_detached(application, front, left))
    application.close(_say)
    run = application.run
    if run is not None and run.alive:
        _say(f"The run {run.record_path.stem} continues in its own process; `ossconsole` shows it again.")
    sys.exit(left.code)


async def _show(
    application: Application, signals: ExitSignals, options: Mapping[str, Any], *, mouse: bool
) -> _ExitState:
    """Runs the App with its `options`. An App that ends without a request to exit has crashed."""
    from ossconsole.terminal.calls import CallExecutor
    from ossconsole.tui.app import ConsoleApp

    asyncio.get_running_loop().set_default_executor(CallExecutor())
    app: ConsoleApp = ConsoleApp(application, **options)
    signals.attach(lambda code: app.exit(return_code=code), asyncio.get_running_loop())
    try:
        await app.run_async(mouse=mouse)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - goes into the crash report
        app.crash(error)
    if app.return_code is None:
        app.crash(RuntimeError("The console ended without a request to exit."))
    crash = "".join(app.crash_lines)
    return _ExitState(_CRASHED if crash else app.return_code or 0, app.return_value, app.jobs, crash)


def _flush_commands(application: Application) -> None:
    """Sends what was requested of the work of another process just before the console closed."""
    from ossconsole.training.remote.attached import AttachedRun, AttachedUpload

    for work in (application.run, application.upload):
        if isinstance(work, (AttachedRun, AttachedUpload)):
            work.flush(_FLUSH_S)


def _continue_detached(application: Application, front: Foreground, left: _ExitState) -> int:
    """Waits for the end of the work without a terminal; SIGINT and SIGTERM end it with a checkpoint."""
    from ossconsole.config.files import native_log_path
    from ossconsole.terminal.signals import ExitSignals

    _say(
        f"The work continues without the console, as process {os.getpid()}. `ossconsole` shows it again, "
        "`ossconsole status` shows its state."
    )
    front.detach(native_log_path(), left.code)
    application.detach()
    log.info("Continuing without a terminal")
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
            application.wait(_POLL_S)
        for job in left.jobs:
            job.wait()
    log.info("The work has ended%s", f" ({signals.cause})" if signals.cause else "")
    application.close(log.info)
    return codes[0] if codes else 0


def _killed(number: int) -> str:
    """The line printed when the console's process was killed by a signal."""
    from ossconsole.terminal.logs import log_path

    return safe_text(
        f"ossconsole was killed by {signal_name(number)}, and its work has ended. "
        f"`ossconsole status` shows the state of the run; the log is {log_path()}."
    )
