"""How fast an upload is, side by side with the tutorial's way and with its own limits.

    python -m tests.benchmarks.bench_upload --decode --source FOLDER
    python -m tests.benchmarks.bench_upload [--pictures 2000] [--rounds 3] [--source FOLDER] [--limits-only] [--json]

Every arm sends to a store of our own that answers a PUT 30 ms after its last byte and takes next to no processor time.
Arms are interleaved, round by round, on the same pictures, and ratios are taken within a round; printed are the median
ratio and its range. The limit of a format is the same preparation on all cores, without sending anything; that of the
original files is the same requests from memory, by as many threads, without reading, checking or recording anything.

The store runs on the same cores, so its processor time lowers every rate but the tutorial's, which leaves cores idle.
Ratios of rates count it as it is. Where it is counted out, an arm is compared with its limit by the processor seconds
that the client side takes for a sample (its own process and its preparation processes, their start included): what the
rates would be with the store elsewhere and every core busy. Other load on the machine moves that least. The ratio to
the tutorial "on idle cores" is likewise computed from processor times, the store's included: what the ratio would be
without other load, if an upload kept every core busy.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import oss2
import psutil
from PIL import Image

from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.dataset.decode import EncodedImage, import_jpeg_libraries, keep_freed_memory
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import MAX_SIDE
from ossconsole.dataset.source.files import PathLocation
from ossconsole.dataset.upload import prepare
from ossconsole.dataset.upload.job import DEFAULT_PARALLELISM, UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.dataset.upload.prepare import PreprocessConfig
from ossconsole.dataset.upload.worker import Task, handle
from ossconsole.storage.client import ObjectStore
from tests.benchmarks.neutral_store import NeutralStore

FIRST_BYTE_MS = 30
TUTORIAL_SIZE = 224
CORES = len(os.sched_getaffinity(0))
FORMATS: dict[str, dict[str, Any]] = {
    "originals": {"originals": True},
    "image-jpeg": {"format": SampleFormat.IMAGE_JPEG},
    "image-u8": {"format": SampleFormat.IMAGE_U8},
    "tensor-f32": {"format": SampleFormat.TENSOR_F32},
}
"""The settings of the uploads."""


class Arm(msgspec.Struct, frozen=True):
    """One measured stretch: samples, wall-clock seconds, and processor seconds of the client side and of the store."""

    samples: int
    seconds: float
    cpu_s: float
    store_s: float

    @property
    def per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds of the client side for one sample."""
        return self.cpu_s / self.samples * 1e3

    @property
    def per_idle_s(self) -> float:
        """Samples a second of an upload on cores without other load, as far as processor and answers allow."""
        return min(CORES * 1e3 / (self.cpu_ms + self.store_ms), DEFAULT_PARALLELISM * 1e3 / FIRST_BYTE_MS)

    @property
    def per_idle_s_in_turn(self) -> float:
        """The same of one request after the other."""
        return 1e3 / (FIRST_BYTE_MS + self.cpu_ms + self.store_ms)

    @property
    def store_ms(self) -> float:
        """Those of the store."""
        return self.store_s / self.samples * 1e3


def client_cpu_s(store: NeutralStore) -> float:
    """Processor seconds of this process and its children, those that have ended and those alive, without the store."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    here = psutil.Process()
    alive = [here, *(child for child in here.children(recursive=True) if child.pid != store.pid)]
    times = [process.cpu_times() for process in alive]
    return ended.ru_utime + ended.ru_stime + sum(spent.user + spent.system for spent in times)


def measured(store: NeutralStore, samples: int, action: Callable[[], object]) -> Arm:
    cpu, store_cpu, began = client_cpu_s(store), store.cpu_s(), time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    return Arm(samples, seconds, client_cpu_s(store) - cpu, store.cpu_s() - store_cpu)


def make_photographs(folder: Path, count: int) -> None:
    """`count` JPEGs of 500x375 in ten class folders, about as hard to decode as ImageNet's (100 KB each)."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        scene = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.integers(-24, 25, scene.shape, dtype=np.int16)
        path = folder / "train" / f"class{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8)).save(path, quality=90)


# The arms


def tutorial(store: NeutralStore, paths: list[Path]) -> Arm:
    """The tutorial's script: one thread, its transform, one put_object after the other.

    With one thread of torch: more only wait for one another on cores that have other work.
    """
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    compose = transforms.Compose(
        [
            transforms.RandomResizedCrop(TUTORIAL_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    profile, key = store.profile(), store.owner()
    auth = oss2.AuthV4(key.access_key_id, key.access_key_secret.reveal())
    bucket = oss2.Bucket(auth, store.address, profile.bucket, region=profile.region)

    def run() -> None:
        for path in paths:
            data = compose(Image.open(path).convert("RGB")).numpy().tobytes()
            bucket.put_object(f"{profile.dataset_prefix}/{path.parent.name}/{path.stem}.pt", data)

    return measured(store, len(paths), run)


def console(store: NeutralStore, settings: UploadSettings, count: int) -> Arm:
    """The whole upload, from start to written manifest, processes started and bucket verified."""
    job = create_upload(store.profile(), store.owner, settings)

    def run() -> None:
        job.start()
        summary = job.result(600)
        assert (summary.uploaded, summary.failed) == (count, 0), summary

    return measured(store, count, run)


def prepare_alone(store: NeutralStore, pool: Any, paths: list[Path], config: PreprocessConfig) -> Arm:
    """Reading and preparing on all cores, by processes that run already."""
    tasks = [(path, config) for path in paths]
    return measured(store, len(paths), lambda: pool.starmap(prepare_one, tasks, chunksize=8))


def prepare_one(path: Path, config: PreprocessConfig) -> None:
    done, _ = handle(Task(f"train/{path.name}", path.stat().st_size, PathLocation(str(path))), config)
    assert not done.error


def send_alone(store: NeutralStore, payloads: list[bytes]) -> Arm:
    """The requests of an upload of the payloads, in its number of threads."""
    profile = store.profile()
    objects = ObjectStore(profile, store.owner, pool_size=DEFAULT_PARALLELISM)
    waiting, lock = iter(enumerate(payloads)), threading.Lock()

    def send() -> None:
        while True:
            with lock:
                number, data = next(waiting, (0, b""))
            if not data:
                return
            objects.put(f"{profile.dataset_prefix}/train/class{number % 10}/{number:05}.jpg", data)

    def run() -> None:
        threads = [threading.Thread(target=send) for _ in range(DEFAULT_PARALLELISM)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return measured(store, len(payloads), run)


# The run


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def measure(folder: Path, rounds: int, *, limits_only: bool) -> dict[str, list[Arm]]:
    """The arms by name, each with its rounds."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    slice_size = max(1, len(paths) // rounds)
    settings = {name: UploadSettings(source=folder, **options) for name, options in FORMATS.items()}
    arms: dict[str, list[Arm]] = {}

    def add(name: str, arm: Arm) -> None:
        arms.setdefault(name, []).append(arm)

    context = multiprocessing.get_context("spawn")
    payloads = [path.read_bytes() for path in paths]
    with NeutralStore(FIRST_BYTE_MS / 1e3) as store, context.Pool(CORES, start_process) as pool:
        pool.map(abs, range(4 * CORES), chunksize=1)
        for number in range(rounds):
            if not limits_only:
                add("tutorial", tutorial(store, paths[number * slice_size :][:slice_size]))
            for name, each in settings.items():
                add(name, console(store, each, len(paths)))
                limit = (
                    send_alone(store, payloads)
                    if each.originals
                    else prepare_alone(store, pool, paths, each.preprocessing)
                )
                add(f"limit of {name}", limit)
    return arms


def start_process() -> None:
    """As a preparation process starts."""
    import_jpeg_libraries()
    keep_freed_memory()


def bench(folder: Path, rounds: int, *, limits_only: bool) -> dict[str, Any]:
    arms = measure(folder, rounds, limits_only=limits_only)
    ratios: dict[str, list[float]] = {}
    for name in FORMATS:
        ours, limits = arms[name], arms[f"limit of {name}"]
        if "tutorial" in arms:
            pairs = zip(ours, arms["tutorial"], strict=True)
            ratios[f"{name} to tutorial"] = [one.per_s / theirs.per_s for one, theirs in pairs]
            pairs = zip(ours, arms["tutorial"], strict=True)
            found = [one.per_idle_s / theirs.per_idle_s_in_turn for one, theirs in pairs]
            ratios[f"{name} to tutorial, on idle cores"] = found
        pairs = zip(ours, limits, strict=True)
        ratios[f"{name} to its limit"] = [one.per_s / limit.per_s for one, limit in pairs]
        pairs = zip(ours, limits, strict=True)
        ratios[f"{name} to its limit, store counted out"] = [limit.cpu_ms / one.cpu_ms for one, limit in pairs]
    return {
        "pictures": arms["image-u8"][0].samples,
        "rounds": rounds,
        "cores": CORES,
        "load": os.getloadavg()[0],
        "put_first_byte_ms": FIRST_BYTE_MS,
        "samples_per_s": {name: spread([arm.per_s for arm in found]) for name, found in arms.items()},
        "client_cpu_ms": {name: spread([arm.cpu_ms for arm in found]) for name, found in arms.items()},
        "store_cpu_ms": {name: spread([arm.store_ms for arm in found]) for name, found in arms.items()},
        "ratio": {name: spread(found) for name, found in ratios.items()},
    }


def prepare_train(config: PreprocessConfig, data: bytes, name: str) -> None:
    prepare.prepare(data, f"train/{name}", config)


def decode_ratios(folder: Path, rounds: int) -> dict[str, Any]:
    """Processor ms for one JPEG: decoding alone (libjpeg-turbo), preparation, and the ratio of the two, by format.

    The best of `rounds`, in turn, in one process: other load on the machine moves that least.
    """
    files = [(path.read_bytes(), path.name) for path in sorted(folder.rglob("*.jp*g"))]
    start_process()
    configs = {
        name: UploadSettings(source=folder, **fields).preprocessing
        for name, fields in FORMATS.items()
        if name != "originals"
    }

    def without_encoding(data: bytes, name: str) -> None:
        """The pixels that image-jpeg encodes."""
        image = EncodedImage(data)
        if min(image.width, image.height) > configs["image-jpeg"].size:
            target = prepare._scaled(image.width, image.height, configs["image-jpeg"].size)
            prepare._resize(image.pixels(*target), target)

    arms: dict[str, Callable[[bytes, str], object]] = {
        "decode": lambda data, _name: EncodedImage(data).pixels(MAX_SIDE, MAX_SIDE),
        **{name: functools.partial(prepare_train, config) for name, config in configs.items()},
        "image-jpeg without encoding": without_encoding,
    }
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(rounds):
        for name, action in arms.items():
            began = time.process_time()
            for data, key in files:
                action(data, key)
            best[name] = min(best[name], (time.process_time() - began) / len(files) * 1e3)
    return {name: {"cpu_ms": ms, "of_decode": best["decode"] / ms} for name, ms in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", type=Path, help="real pictures in train/<class>/ instead of made ones")
    parser.add_argument("--limits-only", action="store_true", help="leave the tutorial out")
    parser.add_argument("--decode", action="store_true", help="only preparation against decoding alone, no upload")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-upload-") as scratch:
        os.environ[STATE_DIR_VARIABLE] = str(Path(scratch) / "state")
        folder = options.source or Path(scratch) / "pictures"
        if options.source is None:
            make_photographs(folder, options.pictures)
        if options.decode:
            found = decode_ratios(folder, options.rounds)
            for name, value in found.items():
                line = f"{value['cpu_ms']:.2f} ms, {value['of_decode']:.2f} of decoding alone"
                sys.stdout.write(f"{name:28} {line}\n")
            return
        result = bench(folder, options.rounds, limits_only=options.limits_only)
    if options.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        return
    sys.stdout.write(f"{result['pictures']} pictures on {CORES} cores, load {result['load']:.1f}\n")
    for title in ("samples_per_s", "client_cpu_ms", "store_cpu_ms", "ratio"):
        for name, value in result[title].items():
            line = f"{value['median']:10.2f}  ({value['lowest']:.2f} to {value['highest']:.2f})  {name}"
            sys.stdout.write(f"{title:14}{line}\n")


if __name__ == "__main__":
    main()
