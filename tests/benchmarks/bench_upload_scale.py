"""What very many files cost an upload: the memory it takes, and the time to its first object.

    python -m tests.benchmarks.bench_upload_scale memory [--files 10000 100000]
    python -m tests.benchmarks.bench_upload_scale start [--files 1000000] [--folders 1000]

Files are hard links to a few tiny pictures, so that a million fit anywhere; each becomes an object of 192 bytes in an
unshaped sandbox on the same cores. Every upload runs in a process of its own. `memory` is the peak resident set of
that process, and that of the largest of its preparation processes, over a whole upload: planned, sent, verified,
manifest written. `start` is the time from the start of the upload to its first object in the bucket; then it is
cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import psutil
from PIL import Image

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.sandbox.process import SandboxProcess

SIZE = 8
_PICTURES = 64
_PATIENCE_S = 1800.0


class Measured(msgspec.Struct, frozen=True):
    """`seconds` to the end, or to the first object; peaks (resident) in MB."""

    uploaded: int
    seconds: float
    peak_mb: float
    worker_peak_mb: float


def make_files(folder: Path, count: int, folders: int) -> None:
    """`count` tiny JPEGs in so many class folders."""
    kept = folder / "pictures"
    kept.mkdir(parents=True)
    for number in range(_PICTURES):
        buffer = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (number * 4, 255 - number * 4, 128)).save(buffer, "JPEG")
        (kept / str(number)).write_bytes(buffer.getvalue())
    for number in range(count):
        target = folder / "train" / f"class{number % folders:04}"
        if number < folders:
            target.mkdir(parents=True)
        os.link(kept / str(number % _PICTURES), target / f"{number:07}.jpg")


def peak_mb(pid: int) -> float:
    """The most that the process has had resident since it began."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), 0.0)


def upload(
    answer: Connection, state: str, profile: Profile, owner: FixedSource, source: Path, *, first_only: bool
) -> None:
    """Runs in a process of its own."""
    os.environ[STATE_DIR_VARIABLE] = state
    over = threading.Event()
    workers: list[float] = []

    def watch() -> None:
        while not over.wait(0.25):
            with contextlib.suppress(psutil.Error, OSError):
                workers.extend(peak_mb(child.pid) for child in psutil.Process().children(recursive=True))

    watching = threading.Thread(target=watch)
    watching.start()
    job = create_upload(profile, owner, UploadSettings(source=source, format=SampleFormat.IMAGE_U8, size=SIZE))
    began = time.monotonic()
    job.start()
    if first_only:
        while not job.progress().uploaded:
            time.sleep(0.005)
        seconds = time.monotonic() - began
        job.cancel()
    uploaded = job.result(_PATIENCE_S).uploaded
    if not first_only:
        seconds = time.monotonic() - began
    over.set()
    watching.join()
    answer.send(Measured(uploaded, seconds, peak_mb(os.getpid()), max(workers, default=0.0)))


def measure(scratch: Path, count: int, folders: int, *, first_only: bool) -> Measured:
    """Makes the files, uploads them, and removes them again."""
    folder = scratch / str(count)
    make_files(folder, count, folders)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with SandboxProcess.start(scratch / f"sandbox-{count}", unshaped=True) as sandbox:
        profile = msgspec.structs.replace(sandbox.profile(), dataset_prefix=f"scale/{count}")
        arguments = (theirs, str(scratch / "state"), profile, FixedSource(sandbox.credentials()), folder)
        process = context.Process(target=upload, args=arguments, kwargs={"first_only": first_only})
        process.start()
        theirs.close()
        found: Measured = ours.recv()
        process.join()
    shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "start"])
    parser.add_argument("--files", type=int, nargs="+")
    parser.add_argument("--folders", type=int, nargs="+", default=[1000])
    options = parser.parse_args()
    first_only = options.what == "start"
    counts = options.files or ([1_000_000] if first_only else [10_000, 100_000])
    peaks = []
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as scratch:
        for number, (count, folders) in enumerate((count, folders) for count in counts for folders in options.folders):
            found = measure(Path(scratch) / str(number), count, min(folders, count), first_only=first_only)
            peaks.append(found.peak_mb)
            sys.stdout.write(
                f"{count:>9,} files in {folders:,} folders: {found.uploaded:,} objects, {found.seconds:.2f} s, "
                f"peak {found.peak_mb:.1f} MB, largest preparation process {found.worker_peak_mb:.1f} MB\n"
            )
            sys.stdout.flush()
    if not first_only and len(peaks) > 1:
        sys.stdout.write(f"peak at the most files to that at the fewest: {peaks[-1] / peaks[0]:.3f}\n")


if __name__ == "__main__":
    main()
