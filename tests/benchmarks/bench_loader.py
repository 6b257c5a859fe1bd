"""How fast the loader is: against the connector with a transform that does nothing, and against the tutorial's way.

    python -m tests.benchmarks.bench_loader [--seconds 2] [--rounds 4] [--workers 2] [--part singles] [--json]

Needs no network: two sandboxes are started here, one as fast as it goes, one limited in bandwidth. Arms are interleaved
in the order ABBA, ratios are taken within a round; printed are the median ratio and its range. All arms have the same
number of reader processes; in the tutorial's, the connector is configured as the tutorial says. The sandbox runs on the
same cores: read the ratios, not the rates. The part `singles` is the loader that times single samples against the one
that does not, from a sandbox with the first-byte time of the limited one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, object_key
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.training.bench.limits import ConnectorReader, rate
from ossconsole.training.data import TrainingData, training_data
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.loader import BatchLoader
from ossconsole.training.plan import Plan
from ossconsole.training.settings import TrainSettings
from tests.benchmarks.datasets import make_dataset, make_shards
from tests.benchmarks.tutorial_loader import TutorialLoader

F32, U8 = SampleFormat.TENSOR_F32, SampleFormat.IMAGE_U8
TARS, PER_TAR = 8, 1000
CORES = len(os.sched_getaffinity(0))
TUTORIAL_CONFIG = {"logLevel": 3, "datasetConfig": {"prefetchConcurrency": 24, "prefetchWorker": 2}}
Arm = Callable[[], float]
"""Measures once; gives samples/s."""


class Place:
    """A sandbox with a dataset of each format in `sizes`, which are their stored sides in pixels."""

    def __init__(
        self, sandbox: SandboxProcess, options: argparse.Namespace, scratch: Path, sizes: dict[SampleFormat, int]
    ) -> None:
        self._options = options
        self._scratch = scratch
        self._sizes = sizes
        self._connectors: dict[SampleFormat, ConnectorSettings] = {}
        self._manifests: dict[SampleFormat, Manifest] = {}
        self._sandbox = sandbox
        self._shards: dict[SampleFormat, tuple[ConnectorSettings, TrainingData]] = {}
        for fmt, size in sizes.items():
            profile, manifest = make_dataset(sandbox, fmt, size=size, samples=options.samples)
            self._manifests[fmt] = manifest
            self._connectors[fmt] = self._connector(sandbox, profile, scratch)

    def _connector(self, sandbox: SandboxProcess, profile: Profile, scratch: Path) -> ConnectorSettings:
        return ConnectorSettings(
            profile, FixedSource(sandbox.credentials()), checked_connector_config(), scratch / "native.log"
        )

    def loader(self, fmt: SampleFormat, settings: TrainSettings, *, time_singles: bool = False) -> BatchLoader:
        """Our loader on the dataset of a format."""
        manifest, connector = self._manifests[fmt], self._connectors[fmt]
        plan = Plan(settings, len(manifest.splits["train"]), 0)
        data = TrainingData(manifest, connector.profile.dataset_prefix)
        return BatchLoader(connector, data, plan, settings, time_singles=time_singles)

    def shards(self, fmt: SampleFormat, settings: TrainSettings) -> BatchLoader:
        """Our loader on images of the same sizes in tars, which are made at the first call."""
        if fmt not in self._shards:
            profile = make_shards(self._sandbox, fmt, size=self._sizes[fmt], tars=TARS, per_tar=PER_TAR)
            connector = self._connector(self._sandbox, profile, self._scratch)
            with contextlib.closing(ObjectStore(profile, connector.credentials)) as store:
                self._shards[fmt] = connector, training_data(store, profile.dataset_prefix)
        connector, data = self._shards[fmt]
        plan = Plan(settings, data.count("train"), 0, tar_bytes=data.tar_bytes)
        return BatchLoader(connector, data, plan, settings)

    def console(self, fmt: SampleFormat, *, time_singles: bool = False, shards: bool = False) -> float:
        """Our loader: batches in the shared buffer, ready to be copied to a device."""
        options = self._options
        settings = TrainSettings(batch_size=options.batch_size, workers=options.workers, epochs=10**6)
        new = self.shards(fmt, settings) if shards else self.loader(fmt, settings, time_singles=time_singles)
        with contextlib.closing(new) as loader:
            # Long enough for the process of the single samples to start.
            until = time.perf_counter() + options.settling
            while _read(loader) and time.perf_counter() < until:
                pass
            begun, count = time.perf_counter(), 0
            while (passed := time.perf_counter() - begun) < options.seconds:
                count += _read(loader)
            return count / passed

    def connector(self, fmt: SampleFormat) -> float:
        """The connector, in as many processes, with a transform that does nothing."""
        manifest, connector = self._manifests[fmt], self._connectors[fmt]
        objects = [
            (object_key(connector.profile.dataset_prefix, sample.key), manifest.sample_bytes(sample))
            for sample in manifest.splits["train"]
        ]
        options = self._options
        opener = ConnectorReader(connector, EndpointKind.STANDARD, objects, options.batch_size, options.workers)
        return rate(opener, connector.native_log, processes=options.workers, seconds=options.seconds)

    @contextlib.contextmanager
    def tutorial(self) -> Iterator[Arm]:
        """The tutorial's way, always with its own format."""
        options = self._options
        config = self._scratch / "tutorial.json"
        config.write_bytes(msgspec.json.encode(TUTORIAL_CONFIG))
        loader = TutorialLoader(
            dataclasses.replace(self._connectors[F32], config_path=config),
            EndpointKind.STANDARD,
            self._manifests[F32],
            batch_size=options.batch_size,
            workers=options.workers,
        )
        with contextlib.closing(loader):
            yield lambda: loader.rate(options.seconds)


def _read(loader: BatchLoader) -> int:
    batch = loader.next()
    assert batch is not None
    assert not batch.failed
    return len(batch.rows)


def interleaved(arms: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Each arm once per round, forwards and backwards in turn."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            found[name].append(arms[name]())
            sys.stderr.write(f"{number + 1}  {found[name][-1]:10.1f} samples/s  {name}\n")
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratios(found: dict[str, list[float]], pairs: dict[str, tuple[str, str, float]]) -> dict[str, dict[str, float]]:
    """By title: the ratio of two arms within each round, and the floor it should not fall below."""
    return {
        title: {**spread([a / b for a, b in zip(found[ours], found[other], strict=True)]), "floor": floor}
        for title, (ours, other, floor) in pairs.items()
    }


def full_speed(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with SandboxProcess.start(scratch / "full", unshaped=True) as sandbox:
        place = Place(sandbox, options, scratch, dict.fromkeys((F32, U8), options.size))
        with place.tutorial() as tutorial:
            arms: dict[str, Arm] = {
                "connector, no-op, tensor-f32": lambda: place.connector(F32),
                "loader, tensor-f32": lambda: place.console(F32),
                "tutorial, tensor-f32": tutorial,
                "loader, image-u8": lambda: place.console(U8),
                "connector, no-op, image-u8": lambda: place.connector(U8),
            }
            found = interleaved(arms, options.rounds)
    pairs = {
        "loader to no-op connector, tensor-f32": ("loader, tensor-f32", "connector, no-op, tensor-f32", 0.9),
        "loader to no-op connector, image-u8": ("loader, image-u8", "connector, no-op, image-u8", 0.9),
        "loader to tutorial, tensor-f32": ("loader, tensor-f32", "tutorial, tensor-f32", 1.5),
    }
    return {"samples_per_s": {name: spread(rates) for name, rates in found.items()}, "ratio": ratios(found, pairs)}


def limited(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    arguments = ("--bandwidth-mb-s", str(options.bandwidth), "--standard-first-byte-ms", str(options.first_byte))
    with SandboxProcess.start(scratch / "limited", unshaped=True, arguments=arguments) as sandbox:
        place = Place(sandbox, options, scratch, dict.fromkeys((F32, U8), options.size))
        with place.tutorial() as tutorial:
            arms: dict[str, Arm] = {
                "loader, tensor-f32": lambda: place.console(F32),
                "tutorial, tensor-f32": tutorial,
                "loader, image-u8": lambda: place.console(U8),
            }
            found = interleaved(arms, options.rounds)
    pairs = {
        "limited: loader to tutorial, tensor-f32": ("loader, tensor-f32", "tutorial, tensor-f32", 1.5),
        "limited: loader with image-u8 to tutorial": ("loader, image-u8", "tutorial, tensor-f32", 5.0),
    }
    return {
        "samples_per_s": {f"limited: {name}": spread(rates) for name, rates in found.items()},
        "ratio": ratios(found, pairs),
    }


def singles(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    arguments = ("--standard-first-byte-ms", str(options.first_byte))
    with SandboxProcess.start(scratch / "singles", unshaped=True, arguments=arguments) as sandbox:
        place = Place(sandbox, options, scratch, dict.fromkeys((F32, U8), options.size))
        without, with_ = "loader, image-u8, no single samples", "loader, image-u8, single samples"
        arms: dict[str, Arm] = {
            without: lambda: place.console(U8),
            with_: lambda: place.console(U8, time_singles=True),
        }
        found = interleaved(arms, options.rounds)
    pairs = {"with to without single samples": (with_, without, 0.98)}
    return {"samples_per_s": {name: spread(rates) for name, rates in found.items()}, "ratio": ratios(found, pairs)}


PARTS = {"full": full_speed, "limited": limited, "singles": singles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--settling", type=float, default=1.0, help="seconds that our loader reads before it is timed")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=max(1, CORES // 2), help="reader processes of each arm")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--bandwidth", type=float, default=150.0, help="MB/s of the limited sandbox")
    parser.add_argument("--first-byte", type=float, default=35.0, help="ms to its first byte")
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"options": vars(options), "cores": CORES}
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as name:
        scratch = Path(name)
        os.environ[STATE_DIR_VARIABLE] = str(scratch / "state")
        os.environ[CONFIG_DIR_VARIABLE] = str(scratch / "config")
        for part in options.part or PARTS:
            for title, values in PARTS[part](options, scratch).items():
                result.setdefault(title, {}).update(values)
    if options.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        return
    for title in ("samples_per_s", "ratio"):
        for name, value in result[title].items():
            floor = f"  floor {value['floor']:g}" if "floor" in value else ""
            figures = f"{value['median']:10.2f}  ({value['lowest']:.2f} to {value['highest']:.2f})"
            sys.stdout.write(f"{title:14}{figures}  {name}{floor}\n")


if __name__ == "__main__":
    main()
