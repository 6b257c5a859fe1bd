"""The `ossconsole` command: its subcommands are imported when they are called."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NoReturn

import click

from ossconsole import __version__
from ossconsole.cli.options import ForwardingGroup, Target, mouse_option, profile_options, readonly_option
from ossconsole.cli.output import INTERRUPTED, end_process, guard_stderr, open_closed_streams, run_group, say
from ossconsole.config.files import exposed_folders

_COMMANDS = {
    "bench": "ossconsole.cli.bench:bench",
    "config": "ossconsole.cli.config:config",
    "demo": "ossconsole.cli.console:demo",
    "doctor": "ossconsole.cli.doctor:doctor",
    "evaluate": "ossconsole.cli.evaluate:evaluate",
    "export": "ossconsole.cli.runs:export",
    "ls": "ossconsole.cli.ls:ls",
    "manifest": "ossconsole.cli.manifest:manifest",
    "report": "ossconsole.cli.runs:report",
    "run": "ossconsole.cli.run:run",
    "sandbox": "ossconsole.cli.sandbox:sandbox",
    "status": "ossconsole.cli.runs:status",
    "sync": "ossconsole.cli.sync:sync",
    "train": "ossconsole.cli.train:train",
    "upload": "ossconsole.cli.upload:upload",
    "warm": "ossconsole.cli.warm:warm",
    "weights": "ossconsole.cli.weights:weights",
}


class _LazyGroup(ForwardingGroup):
    """Imports a command's module only for that command, or for the list of all."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments. Raises UsageError with the nearest name for one that does not exist."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, _COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ossconsole")
@readonly_option
@mouse_option
@profile_options
@click.pass_context
def ossconsole(context: click.Context, readonly: bool, no_mouse: bool, target: Target) -> None:
    """Train from OSS on a cloud GPU: set up, upload, train, compare endpoints, browse checkpoints.

    Without a command the console opens, on the active profile or else on the embedded sandbox. The options below may
    also precede a command that has them.
    """
    for warning in exposed_folders():
        say(f"Warning: {warning}", err=True)
    if context.invoked_subcommand is None:
        from ossconsole.cli.console import open_console

        open_console(target, readonly=readonly, mouse=not no_mouse)


def main() -> NoReturn:
    """The entry point."""
    open_closed_streams()
    guard_stderr()
    try:
        code = run_group(ossconsole)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:  # noqa: BLE001 - a defect: printed as Python prints it
        sys.excepthook(*sys.exc_info())
        code = 1
    end_process(code)
