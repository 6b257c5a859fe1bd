"""The `ossconsole` command and its subcommands."""

from __future__ import annotations

import click

from ossconsole import __version__
from ossconsole.cli.sandbox import sandbox


@click.group(invoke_without_command=True)
@click.version_option(__version__, prog_name="ossconsole")
def main() -> None:
    """Train from OSS on a cloud GPU: set up, upload, train, compare endpoints, browse checkpoints."""


main.add_command(sandbox)
