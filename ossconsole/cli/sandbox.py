"""`ossconsole sandbox`: the embedded OSS-compatible server alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ossconsole.sandbox.process import SandboxInfo


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of its objects, keys and log; made where it is missing.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1 and 127.0.0.2; 0 is a free one."
)
@click.option("--region", default="cn-sandbox", show_default=True, help="Region that requests must be signed for.")
@click.option("--unshaped", is_flag=True, help="Turn every simulated delay, limit and the cache off.")
@click.option("--standard-first-byte-ms", type=click.FloatRange(0), default=35.0, show_default=True)
@click.option("--standard-objects-per-s", type=click.FloatRange(0), default=103.0, show_default=True)
@click.option("--accelerated-first-byte-ms", type=click.FloatRange(0), default=2.0, show_default=True)
@click.option("--cache-mb", type=click.FloatRange(0), default=512.0, show_default=True)
@click.option("--bandwidth-mb-s", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--put-first-byte-ms", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option(
    "--faults",
    "fault_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file of the faults to simulate from the start.",
)
@click.option(
    "--synthetic-keys",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="List this many made-up keys below synthetic/, to measure browsers with.",
)
@click.option(
    "--metadata",
    type=click.Choice(["off", "v1", "v2"]),
    default="off",
    show_default=True,
    help="Instance metadata service on 127.0.0.3: both versions (v1), or with tokens only (v2).",
)
@click.option("--metadata-credential-ttl-s", type=click.FloatRange(1), default=3600.0, show_default=True)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.option("--until-unused", is_flag=True, hidden=True)
def sandbox(
    *,
    directory: Path,
    port: int,
    region: str,
    unshaped: bool,
    fault_file: Path | None,
    synthetic_keys: int,
    metadata: str,
    metadata_credential_ttl_s: float,
    until_stdin_closes: bool,
    until_unused: bool,
    **figures: float,
) -> None:
    """Serve an OSS-compatible bucket on loopback, with a standard and an accelerated endpoint.

    Prints one JSON line when it is ready. The endpoints' speeds are simulated: every figure is an option, 0 turns it
    off. They say nothing about the real service.
    """
    from ossconsole.sandbox.app import Settings, run
    from ossconsole.sandbox.faults import FaultPlan, read_plan
    from ossconsole.sandbox.shaping import Shaping

    settings = Settings(
        directory=directory.absolute(),
        port=port,
        region=region,
        shaping=Shaping.none() if unshaped else Shaping(**figures),
        faults=read_plan(fault_file) if fault_file else FaultPlan(),
        synthetic_keys=synthetic_keys,
        metadata=metadata,
        metadata_credential_ttl_s=metadata_credential_ttl_s,
        until_stdin_closes=until_stdin_closes,
        until_unused=until_unused,
    )
    run(settings, _print)


def _print(info: SandboxInfo) -> None:
    click.echo(info.encode())
