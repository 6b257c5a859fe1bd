"""How fast a run trains: against the same loop on synthetic data, and with the dashboard on against without.

    python -m tests.benchmarks.bench_train [--seconds 10] [--rounds 2] [--part device|dashboard] [--json]

Needs no network: the sandbox is started here, as fast as it goes, on the same machine. `device` is the one to run on a
GPU: ResNet-18 at 224 px in mixed precision from both formats, with the share of the time that it waited for data, its
rate beside that of the same steps on a batch that is there already, and what bounded it. `dashboard` runs the same
settings headless and in the console, in the order ABBA, and takes the rate from the runs' records.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.telemetry import events
from ossconsole.telemetry.runs import read_events
from ossconsole.training.bench.results import BenchEvent, CacheState, LimitKind, Mode, Reading
from ossconsole.training.settings import TrainSettings
from tests.benchmarks.datasets import make_dataset
from tests.cli.consoles import Console

CORES = len(os.sched_getaffinity(0))
WARMUP_STEPS = 5
_LOOK_S = 0.5
SYNTHETIC_SHARE, MAX_WAIT, DASHBOARD_SHARE = 0.95, 0.05, 0.98


def device(options: argparse.Namespace, sandbox: SandboxProcess) -> dict[str, Any]:
    """Training from the sandbox beside training on synthetic data, by format."""
    from ossconsole.training.bench.benchmark import Bench, BenchSettings

    found: dict[str, Any] = {"device": device_name()}
    for fmt in SampleFormat:
        profile, _ = make_dataset(sandbox, fmt, size=options.size, samples=options.samples)
        settings = BenchSettings(
            endpoints=(EndpointKind.STANDARD,),
            modes=(Mode.TRAINING,),
            workers=(options.workers,),
            batch_sizes=(options.batch_size,),
            seconds=options.seconds,
            rounds=options.rounds,
        )
        seen: list[BenchEvent] = []
        summary = Bench(profile, FixedSource(sandbox.credentials()), settings, seen.append).run()
        warm = [each for each in seen if isinstance(each, Reading) and each.temperature is CacheState.WARM]
        limits = {name: spread.median for name, spread in summary.limits.items()}
        rate = statistics.median(reading.samples_per_s for reading in warm)
        found[str(fmt)] = {
            "samples_per_s": rate,
            "limits": limits,
            "ratio to synthetic": rate / limits[str(LimitKind.COMPUTE)],
            "data wait": statistics.median(reading.wait_fraction or 0.0 for reading in warm),
            "bound": summary.bound,
        }
    return found


def device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, {CORES} cores"
    return f"CPU, torch {torch.__version__}, {CORES} cores"


def dashboard(options: argparse.Namespace, sandbox: SandboxProcess) -> dict[str, Any]:
    """Runs of the same settings without and with the console on a terminal."""
    profile, _ = make_dataset(sandbox, SampleFormat.IMAGE_U8, size=options.small, samples=options.samples)
    settings = TrainSettings(
        batch_size=options.batch_size,
        workers=1,
        epochs=10**6,
        max_steps=options.steps,
        keep_checkpoints=1,
        val_split=0.0,
    )
    arms = {"headless": headless, "console": in_console}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            with private_home(sandbox, profile) as home:
                arms[name](home, profile, settings)
                rates[name].append(rate_of(home))
            sys.stderr.write(f"{number + 1}  {rates[name][-1]:10.1f} samples/s  {name}\n")
    shares = [ours / bare for ours, bare in zip(rates["console"], rates["headless"], strict=True)]
    return {
        "samples_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(shares),
        "lowest": min(shares),
        "highest": max(shares),
    }


@contextmanager
def private_home(sandbox: SandboxProcess, profile: Profile) -> Iterator[Path]:
    """A folder for settings and records of one run, with the environment that leads there."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        home = Path(name)
        os.environ.update(
            {
                STATE_DIR_VARIABLE: str(home / "state"),
                CONFIG_DIR_VARIABLE: str(home / "config"),
                "OSS_ACCESS_KEY_ID": sandbox.info.access_key_id,
                "OSS_ACCESS_KEY_SECRET": sandbox.info.access_key_secret.reveal(),
                "OMP_NUM_THREADS": str(max(1, CORES - 1)),
            }
        )
        try:
            yield home
        finally:
            os.environ.clear()
            os.environ.update(before)


def _flags(profile: Profile) -> list[str]:
    return [
        f"--bucket={profile.bucket}",
        f"--region={profile.region}",
        f"--standard-endpoint={profile.standard_endpoint}",
        f"--dataset-prefix={profile.dataset_prefix}",
        f"--checkpoint-prefix={profile.checkpoint_prefix}",
    ]


def headless(_home: Path, profile: Profile, settings: TrainSettings) -> None:
    options = [
        f"--batch-size={settings.batch_size}",
        f"--workers={settings.workers}",
        f"--epochs={settings.epochs}",
        f"--max-steps={settings.max_steps}",
        f"--keep-checkpoints={settings.keep_checkpoints}",
        f"--val-split={settings.val_split}",
    ]
    command = [sys.executable, "-m", "ossconsole", "train", "--json", *_flags(profile), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def in_console(home: Path, profile: Profile, settings: TrainSettings) -> None:
    from ossconsole.tui.kit import memory
    from ossconsole.tui.train.screen import FORM

    named = msgspec.structs.replace(profile, name="command line")
    memory.remember(FORM, named.name, msgspec.to_builtins(settings))
    with Console(*_flags(profile), columns=80, rows=24) as console:
        console.until_seen("Train")
        console.type("4")
        console.until_seen("New run")
        console.type("n")
        console.until_seen("Batch size")
        console.type("\x13")  # ctrl+s starts
        # Not emulated from here on: the user's terminal works on another machine.
        while b'"finished"' not in _newest(home):
            console.read(_LOOK_S)
            if console.process.poll() is not None:
                raise RuntimeError(f"The console ended: {console.output[-2000:]!r}")


def _newest(home: Path) -> bytes:
    """The last lines of the run's record."""
    for record in (home / "state" / "runs").glob("*.jsonl"):
        with record.open("rb") as file:
            file.seek(max(0, record.stat().st_size - 2000))
            return file.read()
    return b""


def rate_of(home: Path) -> float:
    """Samples/s of the run recorded there, its first steps left out."""
    (record,) = (home / "state" / "runs").glob("*.jsonl")
    steps = [event for event in read_events(record) if isinstance(event, events.Step)][WARMUP_STEPS:]
    return sum(step.samples for step in steps) / sum(step.step_time_s for step in steps)


PARTS = {"device": device, "dashboard": dashboard}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=max(1, CORES // 2))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--size", type=int, default=224, help="px of the part `device`")
    parser.add_argument("--small", type=int, default=32, help="px of the part `dashboard`")
    parser.add_argument("--steps", type=int, default=80, help="of each run of the part `dashboard`")
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"options": vars(options), "cores": CORES}
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        os.environ[STATE_DIR_VARIABLE] = str(Path(name, "state"))
        os.environ[CONFIG_DIR_VARIABLE] = str(Path(name, "config"))
        with SandboxProcess.start(Path(name, "sandbox"), unshaped=True) as sandbox:
            for part in options.part or PARTS:
                result[part] = PARTS[part](options, sandbox)
    if options.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        return
    for part in options.part or PARTS:
        sys.stdout.write(f"{part}\n")
        for key, value in result[part].items():
            sys.stdout.write(f"  {key}: {value}\n")
    floors = f"data wait below {MAX_WAIT:.0%}, {SYNTHETIC_SHARE:g} of synthetic, dashboard {DASHBOARD_SHARE:g}"
    sys.stdout.write(f"floors: {floors}\n")


if __name__ == "__main__":
    main()
