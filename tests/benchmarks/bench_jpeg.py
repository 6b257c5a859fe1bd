"""Training on JPEG against the tutorial's tensors, and against the limits of decoding.

    python -m tests.benchmarks.bench_jpeg [--seconds 3] [--rounds 4] [--workers 2] [--source FOLDER] [--part …] [--json]

Needs no network. Arms are interleaved in the order ABBA, ratios are taken within a round; printed are the median ratio
and its range. The sandbox runs on the same cores: read the ratios, not the rates.

- `endpoint`: samples/s of the loader with image-jpeg (short side 256, quality 90) against the tutorial's way, from a
  sandbox limited to 150 MB/s; beside it the rate of decoding alone in as many processes, and the bytes per sample.
- `reader`: the loader against decode and crop of the same bytes from memory, in as many processes, at full speed.
- `cpu`: the same two by the processor time of the readers, so that the sandbox is counted out; and by that of their own
  threads, so that the connector is, too.
- `pil`: decode and crop per second of processor time, against Pillow and torchvision on the originals (`--source`: a
  folder with photographs; otherwise made-up ones).
- `host`: processor time of the training thread per batch of 256, without any compute.
- `start`: 1.28 million samples: seconds from the manifest to the first batch, and the memory of manifest and plan.
- `listing`: the same without a manifest, from class folders that are listed: seconds from the last page to the first
  batch, and the listing requests in flight, counted by the bucket.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from PIL import Image
from torchvision.transforms import v2

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.decode import import_jpeg_libraries, keep_freed_memory
from ossconsole.dataset.formats import SampleFormat, sample_bytes
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.training.bench.limits import rate
from ossconsole.training.data import training_data
from ossconsole.training.loading.loader import BatchLoader
from ossconsole.training.plan import Plan, Split
from ossconsole.training.settings import TrainSettings
from tests.benchmarks.bench_loader import Arm, Place, interleaved, ratios, spread
from tests.benchmarks.datasets import CLASSES, made_up_body, photograph
from tests.benchmarks.gpu.server import MadeUpDataset
from tests.benchmarks.gpu.setup import Setup, prepared
from tests.benchmarks.listed_store import listed_store
from tests.benchmarks.memory_reader import BATCH, JPEG, SIZE, STORED, TRANSFORM, MemoryReader

F32 = SampleFormat.TENSOR_F32
IMAGENET_SAMPLES = 1_281_167
LISTED_CLASSES = 1_000


def endpoint(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    arguments = ("--bandwidth-mb-s", str(options.bandwidth))
    with SandboxProcess.start(scratch / "limited", unshaped=True, arguments=arguments) as sandbox:
        place = Place(sandbox, options, scratch, {F32: SIZE, JPEG: STORED})
        with place.tutorial() as tutorial:
            found = interleaved(
                {
                    "loader, image-jpeg": lambda: place.console(JPEG),
                    "loader, image-jpeg in shards": lambda: place.console(JPEG, shards=True),
                    "tutorial, tensor-f32": tutorial,
                    "decode and crop alone": _decoding(options, scratch),
                },
                options.rounds,
            )
    mean = float(np.mean([len(body) for body in _bodies()]))
    pairs = {
        "image-jpeg to the tutorial": ("loader, image-jpeg", "tutorial, tensor-f32", 15.0),
        "shards to the tutorial": ("loader, image-jpeg in shards", "tutorial, tensor-f32", 15.0),
        "shards to decoding alone": ("loader, image-jpeg in shards", "decode and crop alone", 0.85),
        "image-jpeg to decoding alone": ("loader, image-jpeg", "decode and crop alone", 0.85),
        "decoding alone to the tutorial": ("decode and crop alone", "tutorial, tensor-f32", 0.0),
    }
    share = sample_bytes(F32, SIZE, SIZE) / mean
    return {
        "samples_per_s": {f"{options.bandwidth:g} MB/s: {name}": spread(rates) for name, rates in found.items()},
        "ratio": {**ratios(found, pairs), "bytes of the tutorial to those of image-jpeg": _one(share, 20.0)},
    }


def reader(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with SandboxProcess.start(scratch / "full", unshaped=True) as sandbox:
        place = Place(sandbox, options, scratch, {JPEG: STORED})
        arms = {
            "loader, image-jpeg": lambda: place.console(JPEG),
            "loader, image-jpeg in shards": lambda: place.console(JPEG, shards=True),
            "decode and crop alone": _decoding(options, scratch),
        }
        found = interleaved(arms, options.rounds)
    pairs = {
        "loader to decode and crop alone": ("loader, image-jpeg", "decode and crop alone", 0.85),
        "loader of shards to decode and crop alone": (
            "loader, image-jpeg in shards",
            "decode and crop alone",
            0.85,
        ),
    }
    return {"samples_per_s": {name: spread(rates) for name, rates in found.items()}, "ratio": ratios(found, pairs)}


def cpu(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    bodies = _bodies()
    row = np.empty(TRANSFORM.row_bytes, np.uint8)
    import_jpeg_libraries()
    keep_freed_memory()

    def alone() -> float:
        begun, count = time.process_time(), 0
        while (passed := time.process_time() - begun) < options.seconds:
            TRANSFORM.write(bodies[count % len(bodies)], 0, 0, TRANSFORM.rng(Split.TRAIN, 1, count), row)
            count += 1
        return count / passed

    with SandboxProcess.start(scratch / "cpu", unshaped=True) as sandbox:
        place = Place(sandbox, options, scratch, {JPEG: STORED})
        settings = TrainSettings(batch_size=options.batch_size, workers=options.workers, epochs=10**6)
        arms: dict[str, Arm] = {
            "objects, per core of the readers": lambda: _per_core(place.loader(JPEG, settings), options),
            "shards, per core of the readers": lambda: _per_core(place.shards(JPEG, settings), options),
            "objects, per core of the readers' own threads": lambda: _per_core(
                place.loader(JPEG, settings), options, connector=False
            ),
            "decode and crop alone, per core": alone,
        }
        found = interleaved(arms, options.rounds)
    alone_title = "decode and crop alone, per core"
    pairs = {
        f"readers of {name} to decode and crop alone": (f"{name}, per core of the readers", alone_title, 0.85)
        for name in ("objects", "shards")
    }
    pairs["readers of objects without the connector's threads to it"] = (
        "objects, per core of the readers' own threads",
        alone_title,
        0.85,
    )
    return {"samples_per_s": {name: spread(rates) for name, rates in found.items()}, "ratio": ratios(found, pairs)}


def _per_core(loader: BatchLoader, options: argparse.Namespace, *, connector: bool = True) -> float:
    """Samples per second of processor time of the readers; without those of the connector's threads, which also poll
    while nothing arrives (10 to 20 % of a core each, seen with 1.2.3).
    """

    def used() -> float:
        readers = [(each.process, each.fetcher) for each in loader._pool._readers]
        processes = [psutil.Process(process.pid) for pair in readers for process in pair if process is not None]
        if connector:
            return sum(each.cpu_times().user + each.cpu_times().system for each in processes)
        threads = [thread for each in processes for thread in each.threads() if thread.id == each.pid]
        return sum(thread.user_time + thread.system_time for thread in threads)

    with contextlib.closing(loader):
        until = time.perf_counter() + options.settling
        while loader.next() and time.perf_counter() < until:
            pass
        before, begun, count = used(), time.perf_counter(), 0
        while time.perf_counter() - begun < options.seconds:
            batch = loader.next()
            assert batch is not None
            count += len(batch.rows)
        return count / (used() - before)


def pil(options: argparse.Namespace, _scratch: Path) -> dict[str, Any]:
    originals = _originals(options)
    stored = [_stored(data) for data in originals]
    plain = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
    row = np.empty(TRANSFORM.row_bytes, np.uint8)

    def ours(images: list[bytes]) -> float:
        begun = time.process_time()
        for number, data in enumerate(images):
            TRANSFORM.write(data, 0, 0, TRANSFORM.rng(Split.TRAIN, 1, number), row)
        return len(images) / (time.process_time() - begun)

    def theirs() -> float:
        begun = time.process_time()
        for data in originals:
            np.asarray(plain(Image.open(io.BytesIO(data)).convert("RGB")))
        return len(originals) / (time.process_time() - begun)

    import_jpeg_libraries()
    keep_freed_memory()
    arms: dict[str, Arm] = {
        "image-jpeg, per core": lambda: ours(stored),
        "originals, per core": lambda: ours(originals),
        "Pillow on the originals, per core": theirs,
    }
    found = interleaved(arms, options.rounds)
    pairs = {
        "image-jpeg to Pillow on the originals": ("image-jpeg, per core", "Pillow on the originals, per core", 3.0),
        "originals to Pillow": ("originals, per core", "Pillow on the originals, per core", 1.0),
    }
    return {"samples_per_s": {name: spread(rates) for name, rates in found.items()}, "ratio": ratios(found, pairs)}


def host(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with SandboxProcess.start(scratch / "host", unshaped=True) as sandbox:
        place = Place(sandbox, options, scratch, {JPEG: STORED})
        settings = TrainSettings(batch_size=256, workers=options.workers, epochs=10**6)
        times = []
        with contextlib.closing(place.loader(JPEG, settings)) as loader:
            for _ in range(10 * options.rounds):
                begun = time.thread_time()
                batch = loader.next()
                times.append((time.thread_time() - begun) * 1000)
                assert batch is not None
    return {"ms": {"training thread per batch of 256": {**spread(times), "floor": 1.0}}}


def start(options: argparse.Namespace, _scratch: Path) -> dict[str, Any]:
    dataset = MadeUpDataset(JPEG, STORED, options.listed)
    with prepared(small=True, seconds=1, limit_s=600) as setup, setup.serve(dataset) as served:
        begun = _first_batch(setup, served, dataset, options)
    first = begun.first_batch - begun.known
    return {
        "s": {
            "manifest read and checked": spread([begun.known - begun.began]),
            "first batch after the manifest": _one(first, 5.0),
            **begun.cpu_s("manifest"),
        },
        "MB": {
            "manifest and plan": _one(begun.held_mb, 400.0),
            "most, while the manifest is read": spread([begun.most_mb]),
        },
    }


def listing(options: argparse.Namespace, _scratch: Path) -> dict[str, Any]:
    dataset = MadeUpDataset(JPEG, STORED, options.listed, classes=LISTED_CLASSES)
    with prepared(small=True, seconds=1, limit_s=600) as setup, setup.serve(dataset) as served:
        host = served.standard_endpoint.removeprefix("http://").rpartition(":")[0]
        with listed_store(f"{served.bucket}.{host}", dataset.bodies) as store:
            profile = msgspec.structs.replace(served, standard_endpoint=f"http://{host}:{store.port}")
            begun = _first_batch(setup, profile, dataset, options)
            counts = store.counts()
    return {
        "s": {
            f"listing of {LISTED_CLASSES:,} classes": spread([counts.last - begun.began]),
            "first batch after the last page of the listing": _one(begun.first_batch - counts.last, 5.0),
            **begun.cpu_s("listing"),
            "listing: processor time of the bucket": spread([counts.cpu_s]),
        },
        "requests": {
            "listing": spread([counts.requests]),
            "in flight, most": _one(counts.most, 8.0),
            "in flight, mean": _one(counts.mean, 8.0),
        },
        "MB": {
            "list and plan": spread([begun.held_mb]),
            "most, while it is listed": spread([begun.most_mb]),
        },
    }


class FirstBatch(msgspec.Struct, frozen=True):
    """A run's beginning. Times are those of the monotonic clock, which all processes share.

    The processor times, in seconds, are those of the run while it lists, from there until the samples are known, from
    there to the first batch, and of its readers. A manifest is not listed.
    """

    began: float
    known: float
    first_batch: float
    listing_cpu_s: float
    known_cpu_s: float
    first_cpu_s: float
    readers_cpu_s: float
    held_mb: float
    most_mb: float

    def cpu_s(self, source: str) -> dict[str, Any]:
        begin = {"until the last page": self.listing_cpu_s} if self.listing_cpu_s else {}
        rest = {
            f"{'from there ' if begin else ''}until the samples are known": self.known_cpu_s,
            "from there to the first batch": self.first_cpu_s,
            "of the readers": self.readers_cpu_s,
        }
        return {f"{source}: processor time {name}": spread([value]) for name, value in (begin | rest).items()}


def _first_batch(setup: Setup, profile: Profile, dataset: MadeUpDataset, options: argparse.Namespace) -> FirstBatch:
    """In a fresh process: freed memory would hide what is taken, and its readers must not import this module."""
    profile = msgspec.structs.replace(profile, dataset_prefix=dataset.prefix)
    settings = TrainSettings(batch_size=256, workers=options.workers, epochs=90, endpoint=EndpointKind.ACCELERATED)
    command = [sys.executable, "-c", "from tests.benchmarks.bench_jpeg import first_batch; first_batch()"]
    given = pickle.dumps((setup.connector(profile), settings))
    output = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout
    return msgspec.json.decode(output, type=FirstBatch)


def first_batch() -> None:
    """Prints a FirstBatch as JSON. The connector's and the run's settings come pickled from standard input."""
    connector, settings = pickle.load(sys.stdin.buffer)
    before = psutil.Process().memory_info().rss
    began, began_cpu = time.monotonic(), time.process_time()
    listed_cpu = began_cpu

    def on_progress(_listed: int) -> None:  # also after the last page
        nonlocal listed_cpu
        listed_cpu = time.process_time()

    with contextlib.closing(ObjectStore(connector.profile, connector.credentials)) as store:
        data = training_data(store, connector.profile.dataset_prefix, on_progress=on_progress)
    known, known_cpu = time.monotonic(), time.process_time()
    plan = Plan(settings, data.count("train"), data.count("val"))
    with contextlib.closing(BatchLoader(connector, data, plan, settings)) as loader:
        assert loader.next() is not None
        first, first_cpu = time.monotonic(), time.process_time()
        readers = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
        gc.collect()
        held = psutil.Process().memory_info().rss - before
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    found = FirstBatch(
        began=began,
        known=known,
        first_batch=first,
        listing_cpu_s=listed_cpu - began_cpu,
        known_cpu_s=known_cpu - listed_cpu,
        first_cpu_s=first_cpu - known_cpu,
        readers_cpu_s=readers,
        held_mb=held / 1e6,
        most_mb=most / 1e6,
    )
    sys.stdout.write(msgspec.json.encode(found).decode())


def _decoding(options: argparse.Namespace, scratch: Path) -> Arm:
    bodies = _bodies()
    return lambda: rate(
        MemoryReader(bodies), scratch / "native.log", processes=options.workers, seconds=options.seconds
    )


def _bodies() -> tuple[bytes, ...]:
    return tuple(made_up_body(JPEG, STORED, label) for label in range(CLASSES))


def _originals(options: argparse.Namespace) -> list[bytes]:
    if options.source:
        return [path.read_bytes() for path in sorted(options.source.rglob("*.jp*g"))[: options.photographs]]
    found = []
    for seed in range(options.photographs):
        buffer = io.BytesIO()
        photograph(seed, 500, 375).save(buffer, "JPEG", quality=95)
        found.append(buffer.getvalue())
    return found


def _stored(data: bytes) -> bytes:
    """As `upload --format image-jpeg` stores it."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = min(1.0, STORED / min(image.size))
    buffer = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def _one(value: float, floor: float) -> dict[str, float]:
    return {**spread([value]), "floor": floor}


PARTS = {
    "endpoint": endpoint,
    "reader": reader,
    "cpu": cpu,
    "pil": pil,
    "host": host,
    "start": start,
    "listing": listing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--settling", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="reader processes")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--bandwidth", type=float, default=150.0, help="MB/s of the limited sandbox")
    parser.add_argument("--photographs", type=int, default=150)
    parser.add_argument("--listed", type=int, default=IMAGENET_SAMPLES)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-jpeg-") as name:
        scratch = Path(name)
        os.environ[STATE_DIR_VARIABLE] = str(scratch / "state")
        os.environ[CONFIG_DIR_VARIABLE] = str(scratch / "config")
        for part in options.part or PARTS:
            for title, values in PARTS[part](options, scratch).items():
                result.setdefault(title, {}).update(values)
    if options.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        return
    sys.stdout.write(f"load {os.getloadavg()[0]:.1f}\n")
    for title, rows in result.items():
        for name, value in rows.items():
            floor = f"  floor {value['floor']:g}" if value.get("floor") else ""
            figures = f"{value['median']:10.2f}  ({value['lowest']:.2f} to {value['highest']:.2f})"
            sys.stdout.write(f"{title:14}{figures}  {name}{floor}\n")


if __name__ == "__main__":
    main()
