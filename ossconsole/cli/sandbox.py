"""`ossconsole sandbox`: the embedded OSS-compatible server alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from ossconsole.cli.output import say, say_json
from ossconsole.config.files import exposure
from ossconsole.sandbox.reading import Shaping

if TYPE_CHECKING:
    from ossconsole.sandbox.process import SandboxInfo

FC = TypeVar("FC", bound=Callable[..., Any])
_DEFAULTS = Shaping()


def _figure(name: str, text: str) -> Callable[[FC], FC]:
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    return click.option(f"--{name}", type=click.FloatRange(0), show_default=f"{default:g}", help=text)


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
@click.option("--unshaped", is_flag=True, help="Turn off every simulated delay and limit, and the cache.")
@_figure("standard-first-byte-ms", "Wait before a GET's first byte from the bucket, ms.")
@_figure("standard-objects-per-s", "GETs per second that the bucket serves, over all connections.")
@_figure("accelerated-first-byte-ms", "Wait before a GET's first byte from the accelerator's cache, ms.")
@_figure("cache-mb", "Size of the accelerator's cache, MB.")
@_figure("bandwidth-mb-s", "Bytes to and from the bucket, over all connections, MB/s.")
@_figure("put-first-byte-ms", "Wait before the reply to a write, ms.")
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
    **figures: float | None,
) -> None:
    """Serve an OSS-compatible bucket on loopback, with a standard and an accelerated endpoint.

    Prints one JSON line when it is ready. The endpoints' speeds are simulated: every figure is an option, 0 turns it
    off, and --unshaped all that are not given. They say nothing about the real service.
    """
    from ossconsole.sandbox.app import Settings, run
    from ossconsole.sandbox.faults import FaultPlan, read_plan

    base = Shaping.none() if unshaped else _DEFAULTS
    given = {name: figure for name, figure in figures.items() if figure is not None}
    settings = Settings(
        directory=directory.absolute(),
        port=port,
        region=region,
        shaping=msgspec.structs.replace(base, **given),
        faults=read_plan(fault_file) if fault_file else FaultPlan(),
        synthetic_keys=synthetic_keys,
        metadata=metadata,
        metadata_credential_ttl_s=metadata_credential_ttl_s,
        until_stdin_closes=until_stdin_closes,
        until_unused=until_unused,
    )
    problem = exposure(settings.directory)
    if problem:
        say(f"Warning: the folder {settings.directory} {problem}: others can replace the files in it.", err=True)
    run(settings, _print)


def _print(info: SandboxInfo) -> None:
    say_json(msgspec.json.decode(info.encode()))
