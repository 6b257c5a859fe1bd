"""How fast an upload is, side by side with the tutorial's way and with decoding alone.

    python -m tests.benchmarks.bench_upload [--pictures 400] [--rounds 5] [--source FOLDER] [--decode-only] [--json]

Arms are interleaved, round by round, on the same pictures, and ratios are taken within a round; printed are the median
ratio and its range. The sandbox runs on the same cores. Where it is counted out, the arms are compared by the processor
seconds that the client side took for a sample (its own process and its preparation processes, their start included):
what the rates would be with the sandbox elsewhere and every core busy. Other load on the machine moves that least.
`--decode-only` leaves the tutorial out; with 2,000 pictures or more, what starting costs no longer shows.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import oss2
import psutil
from PIL import Image

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.sandbox.process import SandboxProcess

FIRST_BYTE_MS = 30
SIZE = 224
CORES = len(os.sched_getaffinity(0))
_SANDBOXES: set[int] = set()


class Arm(msgspec.Struct, frozen=True):
    """One measured stretch: samples, wall-clock seconds and the client side's processor seconds."""

    samples: int
    seconds: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds for one sample."""
        return self.cpu_s / self.samples * 1e3


class Server:
    """A sandbox to upload to, each time below a new prefix."""

    def __init__(self, sandbox: SandboxProcess) -> None:
        self._sandbox = sandbox
        _SANDBOXES.add(sandbox.pid)
        self._used = 0
        self.owner = FixedSource(sandbox.credentials())

    def profile(self) -> Profile:
        self._used += 1
        return msgspec.structs.replace(self._sandbox.profile(), dataset_prefix=f"bench/{self._used}")

    def bucket(self) -> oss2.Bucket:
        info, key = self._sandbox.info, self.owner()
        auth = oss2.AuthV4(key.access_key_id, key.access_key_secret.reveal())
        return oss2.Bucket(auth, info.path_style_endpoint, info.bucket, region=info.region)


def client_cpu_s() -> float:
    """Processor seconds of this process and its children, those that have ended and those alive, without sandboxes."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    here = psutil.Process()
    alive = [here, *(child for child in here.children() if child.pid not in _SANDBOXES)]
    times = [process.cpu_times() for process in alive]
    return ended.ru_utime + ended.ru_stime + sum(spent.user + spent.system for spent in times)


def measured(samples: int, action: Callable[[], object]) -> Arm:
    cpu, began = client_cpu_s(), time.perf_counter()
    action()
    return Arm(samples, time.perf_counter() - began, client_cpu_s() - cpu)


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


def tutorial(server: Server, paths: list[Path]) -> Arm:
    """The tutorial's script: one thread, its transform, one put_object after the other."""
    from torchvision import transforms

    compose = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    bucket, prefix = server.bucket(), server.profile().dataset_prefix

    def run() -> None:
        for path in paths:
            data = compose(Image.open(path).convert("RGB")).numpy().tobytes()
            bucket.put_object(f"{prefix}/{path.parent.name}/{path.stem}.pt", data)

    return measured(len(paths), run)


def console(server: Server, folder: Path, fmt: SampleFormat, count: int) -> Arm:
    """The whole upload, from start to written manifest, processes started and bucket verified."""
    job = create_upload(server.profile(), server.owner, UploadSettings(source=folder, format=fmt, size=SIZE))

    def run() -> None:
        job.start()
        summary = job.result(600)
        assert (summary.uploaded, summary.failed) == (count, 0), summary

    return measured(count, run)


def decode(path: Path) -> None:
    Image.open(io.BytesIO(path.read_bytes())).convert("RGB").load()


def decoding(pool: Any, paths: list[Path]) -> Arm:
    """Reading and decoding alone, whole, on all cores, by processes that run already."""
    return measured(len(paths), lambda: pool.map(decode, paths, chunksize=8))


# The run


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Server]:
    with SandboxProcess.start(folder, unshaped=not arguments, arguments=arguments) as sandbox:
        yield Server(sandbox)


def slow_sandbox() -> list[str]:
    """Nothing simulated but the time to a PUT's first byte."""
    free = ("standard-objects-per-s", "standard-first-byte-ms", "accelerated-first-byte-ms", "bandwidth-mb-s")
    options = [part for name in free for part in (f"--{name}", "0")]
    return [*options, "--put-first-byte-ms", str(FIRST_BYTE_MS)]


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def against_tutorial(folder: Path, rounds: int, scratch: Path) -> dict[str, list[Arm]]:
    """The console's formats and the tutorial's script, through a sandbox that takes its time."""
    paths = pictures_below(folder)
    slice_size = max(1, len(paths) // rounds)
    arms: dict[str, list[Arm]] = {name: [] for name in ("tutorial", *map(str, SampleFormat))}
    with running(scratch / "slow", *slow_sandbox()) as slow:
        for number in range(rounds):
            arms["tutorial"].append(tutorial(slow, paths[number * slice_size :][:slice_size]))
            for fmt in SampleFormat:
                arms[str(fmt)].append(console(slow, folder, fmt, len(paths)))
    return arms


def against_decoding(folder: Path, rounds: int, scratch: Path) -> dict[str, list[Arm]]:
    """The console through an unshaped sandbox, and decoding alone."""
    paths = pictures_below(folder)
    arms: dict[str, list[Arm]] = {"unshaped": [], "decode": []}
    context = multiprocessing.get_context("spawn")
    with running(scratch / "unshaped") as fast, context.Pool(CORES) as pool:
        pool.map(decode, paths[: 4 * CORES], chunksize=1)
        for _ in range(rounds):
            arms["unshaped"].append(console(fast, folder, SampleFormat.IMAGE_U8, len(paths)))
            arms["decode"].append(decoding(pool, paths))
    return arms


def pictures_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})


def bench(folder: Path, rounds: int, scratch: Path, *, decode_only: bool) -> dict[str, Any]:
    arms = {} if decode_only else against_tutorial(folder, rounds, scratch)
    arms |= against_decoding(folder, rounds, scratch)
    ratios = {
        "image-u8 to decode-only": [a.per_s / b.per_s for a, b in zip(arms["unshaped"], arms["decode"], strict=True)],
        "image-u8 to decode-only, sandbox counted out": [
            b.cpu_ms / a.cpu_ms for a, b in zip(arms["unshaped"], arms["decode"], strict=True)
        ],
    }
    for fmt in SampleFormat if "tutorial" in arms else ():
        pairs = zip(arms[str(fmt)], arms["tutorial"], strict=True)
        ratios[f"{fmt} to tutorial"] = [ours.per_s / theirs.per_s for ours, theirs in pairs]
    return {
        "pictures": len(pictures_below(folder)),
        "rounds": rounds,
        "cores": CORES,
        "put_first_byte_ms": FIRST_BYTE_MS,
        "samples_per_s": {name: spread([arm.per_s for arm in found]) for name, found in arms.items()},
        "client_cpu_ms": {name: spread([arm.cpu_ms for arm in found]) for name, found in arms.items()},
        "ratio": {name: spread(found) for name, found in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", type=Path, help="real pictures in train/<class>/ instead of made ones")
    parser.add_argument("--decode-only", action="store_true", help="leave the tutorial out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-upload-") as scratch:
        os.environ[STATE_DIR_VARIABLE] = str(Path(scratch) / "state")
        folder = options.source or Path(scratch) / "pictures"
        if options.source is None:
            make_photographs(folder, options.pictures)
        result = bench(folder, options.rounds, Path(scratch), decode_only=options.decode_only)
    if options.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        return
    for title in ("samples_per_s", "client_cpu_ms", "ratio"):
        for name, value in result[title].items():
            line = f"{value['median']:10.2f}  ({value['lowest']:.2f} to {value['highest']:.2f})  {name}"
            sys.stdout.write(f"{title:14}{line}\n")


if __name__ == "__main__":
    main()
