"""`ossconsole train`: the console's engine without the console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ossconsole.cli.options import OpenTarget, Target, profile_options
from ossconsole.cli.output import say, say_json
from ossconsole.cli.sandbox import fill_sandbox
from ossconsole.cli.unattended import Printing, stopping_on_signals
from ossconsole.config.credentials import start_resource_tracker
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import OnHangup, Profile, load_settings
from ossconsole.telemetry import events
from ossconsole.telemetry.events import to_log_line
from ossconsole.training.distributed.rank import Place, torchrun_place
from ossconsole.training.settings import PRECISIONS, TrainSettings

if TYPE_CHECKING:
    from ossconsole.telemetry.events import Event
    from ossconsole.telemetry.sampler import Sampler
    from ossconsole.training.run import TrainingRun

_DEFAULTS = TrainSettings()
_POLL_S = 0.2
_LINE_EVERY_STEPS = 10


@click.command()
@click.option("--epochs", type=click.IntRange(1), default=_DEFAULTS.epochs, show_default=True)
@click.option("--max-steps", type=click.IntRange(0), default=0, help="Stop after so many steps; 0: no limit.")
@click.option("--batch-size", type=click.IntRange(1), default=_DEFAULTS.batch_size, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=_DEFAULTS.workers, show_default=True)
@click.option(
    "--endpoint",
    type=click.Choice([str(kind) for kind in EndpointKind]),
    default=str(_DEFAULTS.endpoint),
    show_default=True,
    help="Read samples through this endpoint at first.",
)
@click.option("--switch-every", type=click.IntRange(0), default=0, help="Alternate the endpoints every N steps.")
@click.option("--fall-back/--no-fall-back", default=True, help="Use the other endpoint when one fails.")
@click.option("--image-size", type=click.IntRange(0), default=0, help="Side in px to train at; 0: as stored.")
@click.option("--augment/--no-augment", default=True, help="Crop and flip image-u8 at random.")
@click.option("--weights", default="none", metavar="WHAT", help="none, imagenet, a file, or oss://bucket/key.")
@click.option(
    "--resume", default="", metavar="WHICH", help="Go on from this checkpoint: its key, oss://bucket/key, or latest."
)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=_DEFAULTS.learning_rate)
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), default=_DEFAULTS.momentum)
@click.option("--weight-decay", type=click.FloatRange(0), default=_DEFAULTS.weight_decay)
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=_DEFAULTS.label_smoothing)
@click.option("--warmup-steps", type=click.IntRange(0), default=_DEFAULTS.warmup_steps)
@click.option("--accumulate", type=click.IntRange(1), default=1, help="Batches per step of the optimizer.")
@click.option("--ema-decay", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="0: no averaged weights.")
@click.option("--precision", type=click.Choice(PRECISIONS), default=_DEFAULTS.precision)
@click.option("--compile", is_flag=True, help="Compile the model with torch.compile.")
@click.option("--seed", type=int, default=0)
@click.option(
    "--processes",
    type=click.IntRange(0),
    default=_DEFAULTS.processes,
    show_default=True,
    help="Train in so many processes of this machine, each on a GPU of its own; 0: one for each GPU.",
)
@click.option("--prefetch-mb", type=click.IntRange(1), default=_DEFAULTS.prefetch_mb, help="Memory of batch buffers.")
@click.option("--fetch-deadline-s", type=click.FloatRange(0, min_open=True), default=_DEFAULTS.fetch_deadline_s)
@click.option(
    "--patience-s",
    type=click.FloatRange(0),
    default=_DEFAULTS.patience_s,
    show_default=True,
    help="Wait so long for an endpoint that fails while training, then end with a checkpoint.",
)
@click.option("--checkpoint-every", type=click.IntRange(0), default=0, help="Also every N steps; 0: each epoch's end.")
@click.option("--keep-checkpoints", type=click.IntRange(0), default=_DEFAULTS.keep_checkpoints, help="0: all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per step and event.")
@profile_options
def train(*, target: Target, as_json: bool, endpoint: str, **options: Any) -> int:
    """Train ResNet-18 on the dataset in the bucket and write checkpoints back.

    Ctrl-C once stops after the step with a checkpoint, twice at once. Without its terminal the run goes on, unless
    `on_hangup` in the settings says otherwise; `ossconsole` shows and steers it.
    """
    from ossconsole.telemetry.sampler import Sampler
    from ossconsole.training.preflight import check_libraries, check_precision, check_weights
    from ossconsole.training.run import TrainingRun

    on_hangup = load_settings().on_hangup
    settings = TrainSettings(endpoint=EndpointKind(endpoint), **options)
    check_libraries()
    check_weights(settings.weights)
    check_precision(settings.precision)
    with target.open() as opened:
        if opened.profile.endpoint(settings.endpoint) is None:
            raise SettingsError(
                f"Profile {opened.profile.name!r} has no {endpoint} endpoint.",
                remedy=f"Give --{endpoint}-endpoint, or another --endpoint.",
            )
        fill_sandbox(opened)
        place = torchrun_place()
        if not place.leads:
            return _follow(opened, settings, place)
        printing = Printing(say_json if as_json else print_line)
        sampler = Sampler()
        run = TrainingRun(opened.profile, opened.credentials, settings, sampler, place=place, on_event=printing)
        printing.stop = run.stop
        return run_to_end(run, sampler, opened, on_hangup, as_json=as_json)


def run_to_end(run: TrainingRun, sampler: Sampler, opened: OpenTarget, on_hangup: OnHangup, *, as_json: bool) -> int:
    """Starts the run and waits for its end, however it comes; gives the exit code of the command."""
    from ossconsole.training.remote.control import ControlServer

    if opened.sandbox is not None:
        opened.sandbox.notify = run.warn
    start_resource_tracker()
    with stopping_on_signals(run, on_hangup) as signalled, ControlServer(_Workplace(opened.profile, run)):
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


def _follow(opened: OpenTarget, settings: TrainSettings, place: Place) -> int:
    """Trains along with the process that leads; torchrun started both, and tells them when to end."""
    from ossconsole.training.context import RunContext
    from ossconsole.training.distributed.rank_process import follow

    context = RunContext(f"rank-{place.rank}", opened.profile, opened.credentials, settings, tell=lambda _event: None)
    with stopping_on_signals(context, OnHangup.GO_ON) as signalled:
        follow(context, place)
    return 128 + signalled[0] if signalled else 0


@dataclass(frozen=True)
class _Workplace:
    """What consoles see of this process, and steer."""

    profile: Profile
    own_run: TrainingRun
    own_upload: None = None


def print_line(event: Event) -> None:
    """A line on stdout for what is worth one."""
    if isinstance(event, events.Step):
        if event.step == 1 or event.step % _LINE_EVERY_STEPS == 0:
            loss = "not finite" if event.loss is None else f"{event.loss:.4f}"
            say(
                f"epoch {event.epoch}  step {event.step}  loss {loss}  {event.samples_per_s:.1f} samples/s  "
                f"data wait {event.wait_fraction:.0%}  {event.endpoint}"
            )
    elif not isinstance(event, events.ErrorEvent) and (line := to_log_line(event)) is not None:
        say(line.text)
