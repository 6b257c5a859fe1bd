"""`ossconsole train`: a training run without the console."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from ossconsole.cli.options import OpenTarget, Target, profile_options, settings_options
from ossconsole.cli.outlets import open_outlets, outlet_options
from ossconsole.cli.output import say, say_json
from ossconsole.cli.sandbox import fill_sandbox
from ossconsole.cli.unattended import CommandWork, Printing, stopping_on_signals
from ossconsole.config.credentials import start_resource_tracker
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import OnHangup, load_settings
from ossconsole.config.resolve import option_name
from ossconsole.telemetry import events
from ossconsole.telemetry.events import to_log_line
from ossconsole.training.distributed.ranks import RankInfo, torchrun_rank_info
from ossconsole.training.settings import (
    PRESETS,
    TrainSettings,
    auto_values,
    check_weights,
    settings_of_checkpoint,
    with_preset,
)

if TYPE_CHECKING:
    from ossconsole.telemetry.events import Event
    from ossconsole.telemetry.sampler import Sampler
    from ossconsole.training.run import TrainingRun

_POLL_S = 0.2
_LINE_EVERY_STEPS = 10


@click.command(short_help="Train a model on the dataset in the bucket.")
@settings_options(TrainSettings)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Settings that you do not give; tutorial = fine-tune a ResNet-18 with ImageNet's weights.",
)
@outlet_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per step and event.")
@profile_options
@click.pass_context
def train(
    context: click.Context,
    /,
    *,
    target: Target,
    as_json: bool,
    endpoint: str,
    preset: str | None,
    tensorboard: Path | None,
    metrics_port: int | None,
    on_event: str | None,
    **options: Any,
) -> int:
    """Train a model, ResNet-18 by default, on the dataset in the bucket and write checkpoints back.

    Ctrl-C stops after the current step, with a checkpoint; a second Ctrl-C stops immediately. A run that loses its
    terminal continues, unless `on_hangup` in the settings is "stop"; `ossconsole` shows and controls it.
    """
    from ossconsole.telemetry.sampler import Sampler
    from ossconsole.training.preflight import check_device, check_libraries
    from ossconsole.training.run import TrainingRun

    on_hangup = load_settings().on_hangup
    given = {name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    settings = TrainSettings(endpoint=EndpointKind(endpoint), **with_preset(options, preset, given))
    check_libraries()
    check_weights(settings.weights)
    check_device(settings)
    with target.open() as opened:
        if opened.profile.endpoint(settings.endpoint) is None:
            raise SettingsError(
                f"Profile {opened.profile.name!r} has no {endpoint} endpoint.",
                remedy=f"Give --{endpoint}-endpoint, or another --endpoint.",
            )
        fill_sandbox(opened)
        rank_info = torchrun_rank_info()
        if settings.resume:
            settings = _as_in_checkpoint(settings, given, opened, rank_info.world)
        if not rank_info.is_rank_zero:
            return _train_as_worker(opened, settings, rank_info)
        printing = Printing(say_json if as_json else print_line)
        sampler = Sampler()
        with open_outlets(
            printing, sampler, tensorboard=tensorboard, metrics_port=metrics_port, on_event=on_event
        ) as outlets:
            run = TrainingRun(
                opened.profile, opened.credentials, settings, sampler, rank_info=rank_info, on_event=outlets
            )
            printing.stop, printing.warn, outlets.warn = run.stop, run.warn, run.warn
            return run_to_end(run, sampler, opened, on_hangup, as_json=as_json)


def _as_in_checkpoint(settings: TrainSettings, given: set[str], opened: OpenTarget, world: int) -> TrainSettings:
    """The settings with those of the checkpoint that are not `given`, so far as a run that resumes needs them.

    Raises SettingsError where others are given, and ConsoleError where the checkpoint cannot be read.
    """
    from ossconsole.storage.client import ObjectStore
    from ossconsole.training.checkpoints.store import resumed_fields

    with contextlib.closing(ObjectStore(opened.profile, opened.credentials)) as store:
        found = resumed_fields(store, settings.resume, settings.model)
    known = settings_of_checkpoint(found.content, processes=world if world > 1 else settings.processes)
    defaults, automatic = TrainSettings(), {**auto_values(), "image_size": 0}
    for name, value in known.items():
        own = getattr(settings, name)
        if name in given and own not in (value, automatic.get(name)):
            raise SettingsError(
                f"{found.uri} was written with {option_name(name)} {value}; this run has {own}.",
                remedy=f"Leave {option_name(name)} out, or start from its weights: --weights {found.uri}.",
            )
    taken = [f"{option_name(name)} {value}" for name, value in known.items() if value != getattr(defaults, name)]
    if taken and world == 1:
        say(f"As in {found.uri}: {', '.join(taken)}.", err=True)
    return msgspec.structs.replace(settings, **known)


def run_to_end(run: TrainingRun, sampler: Sampler, opened: OpenTarget, on_hangup: OnHangup, *, as_json: bool) -> int:
    """Starts the run and waits for its end; returns the exit code of the command."""
    from ossconsole.training.remote.control import ControlServer

    if opened.sandbox is not None:
        opened.sandbox.notify = run.warn
    start_resource_tracker()
    with stopping_on_signals(run, on_hangup) as signalled, ControlServer(CommandWork(opened.profile, own_run=run)):
        sampler.start()
        run.start()
        while not run.wait(_POLL_S):
            if signalled:
                run.wait_for_stop()
                break
    sampler.stop()
    if run.error is not None:
        if not as_json:
            say(f"Error: {run.error}", err=True)
        return run.error.exit_code
    return 128 + signalled[0] if signalled else 0


def _train_as_worker(opened: OpenTarget, settings: TrainSettings, rank_info: RankInfo) -> int:
    """Trains as another rank than 0 of a torchrun job; torchrun decides when it ends."""
    from ossconsole.training.context import RunContext
    from ossconsole.training.rank import Rank

    context = RunContext(
        f"rank-{rank_info.rank}", opened.profile, opened.credentials, settings, emit=lambda _event: None
    )
    with stopping_on_signals(context, OnHangup.CONTINUE) as signalled:
        Rank(context, rank_info).train()
    return 128 + signalled[0] if signalled else 0


def print_line(event: Event) -> None:
    """Prints an event on stdout: every tenth step, and the events with a log line."""
    if isinstance(event, events.Step):
        if event.step == 1 or event.step % _LINE_EVERY_STEPS == 0:
            loss = "not finite" if event.loss is None else f"{event.loss:.4f}"
            say(
                f"epoch {event.epoch}  step {event.step}  loss {loss}  {event.samples_per_s:.1f} samples/s  "
                f"data wait {event.wait_fraction:.0%}  {event.endpoint}"
            )
    elif not isinstance(event, events.ErrorEvent) and (line := to_log_line(event)) is not None:
        say(line.text)
