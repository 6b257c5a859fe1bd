"""`ossconsole` and `ossconsole demo`: the console on the terminal, and the orderly end of what it started."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from ossconsole.cli.options import Target, profile_options

if TYPE_CHECKING:
    from ossconsole.cli.application import Application
    from ossconsole.terminal.signals import ExitSignals


@click.command()
@profile_options
def demo(target: Target) -> None:
    """Sandbox, sample dataset and a ResNet-18 run, without an account, a GPU or root."""
    from ossconsole.config.profile import SANDBOX_NAME

    open_console(Target({**target.flags, "profile": SANDBOX_NAME}), readonly=False, demo=True)


def open_console(target: Target, *, readonly: bool, demo: bool = False) -> None:
    """Shows the console until the user leaves; ends the program with its exit code. Raises ConsoleError."""
    from ossconsole.cli.application import Application
    from ossconsole.terminal.logs import native_log_path, set_up_logging
    from ossconsole.terminal.signals import ExitSignals
    from ossconsole.terminal.tty import owned_terminal

    application = Application(target, readonly=readonly, demo=demo)
    set_up_logging()
    with owned_terminal(native_log_path()) as terminal, ExitSignals(terminal) as signals:
        application.open()
        try:
            code = asyncio.run(_show(application, signals, demo=demo))
        finally:
            signals.detach()
    application.close(lambda text: click.echo(text, err=True))
    if signals.cause:
        click.echo(f"ossconsole: {signals.cause}.", err=True)
    sys.exit(code)


async def _show(application: Application, signals: ExitSignals, *, demo: bool) -> int:
    from ossconsole.tui.app import ConsoleApp

    app = ConsoleApp(application, initial_mode="train" if demo else "browse")
    signals.attach(lambda code: app.exit(return_code=code), asyncio.get_running_loop())
    await app.run_async()
    return app.return_code or 0
