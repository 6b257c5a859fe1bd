"""What `ossconsole.watch` costs a loop, and what OssImages deliver against the console's own loop.

    python -m tests.benchmarks.bench_watch [--part watch|images] [--rounds N]

`watch`: loops of 1,000 steps of 5 ms of computation, bare and watched by turns; the ratio of each pair, in time and in
processor time of the process. On a busy machine others use the processor's caches meanwhile, and each call of a Python
function takes microseconds. `images`: the loader alone on the embedded sandbox, as the console's own loop reads it and
through OssImages, by turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable

import ossconsole
from ossconsole.cli.options import Target
from ossconsole.cli.output import say
from ossconsole.cli.sandbox import fill_sandbox
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE

_STEPS = 1_000
_STEP_S = 0.005
_SAMPLES = 50


def loop(batches: Iterable[object]) -> float:
    """Seconds per step of a loop that computes for `_STEP_S` of processor time in each step."""
    begun = time.perf_counter()
    for _ in batches:
        until = time.thread_time() + _STEP_S
        while time.thread_time() < until:
            pass
    return (time.perf_counter() - begun) / _STEPS


def watched(rounds: int) -> None:
    """Prints the ratio of the time of watched steps to bare ones."""
    data = [list(range(_SAMPLES)) for _ in range(_STEPS)]
    ratios, processor = [], []
    for _ in range(rounds):
        used = time.process_time()
        bare, bare_cpu = loop(data), time.process_time() - used
        with ossconsole.watch(data, batch_size=_SAMPLES) as batches:
            used = time.process_time()
            ratio = loop(batches) / bare
            processor.append((time.process_time() - used) / bare_cpu)
        ratios.append(ratio)
        say(
            f"bare {bare * 1e3:.3f} ms, watched {ratio * bare * 1e3:.3f} ms: {ratio:.4f}, processor {processor[-1]:.4f}"
        )
    say(f"watched against bare: {statistics.median(ratios):.4f} (floor 1.01), {min(ratios):.4f} to {max(ratios):.4f}")
    say(f"in processor time: {statistics.median(processor):.4f}, {min(processor):.4f} to {max(processor):.4f}")


def images(rounds: int) -> None:
    """Prints the ratio of the samples/s of a loop over OssImages to those of the console's own loader."""
    from ossconsole.api.images import OssImages
    from ossconsole.training.loading.loader import BatchLoader

    with Target({"profile": "sandbox"}).open(say=lambda _text: None) as opened:
        fill_sandbox(opened)
        ratios = []
        for _ in range(rounds):
            with OssImages(batch_size=_SAMPLES, profile="sandbox", endpoint="accelerated") as loader:
                own = BatchLoader(loader._connector, loader._data, loader._planned(), loader._settings)
                begun = time.perf_counter()
                count = 0
                while (batch := own.next()) is not None and count < 2 * len(loader):
                    count += batch.request.split == "train"
                console = count / (time.perf_counter() - begun)
                own.close()
                begun = time.perf_counter()
                for _ in range(2):
                    for _ in loader:
                        pass
                ratios.append(2 * len(loader) / (time.perf_counter() - begun) / console)
        say(f"OssImages against the console's loader: {statistics.median(ratios):.3f} (floor 0.98)")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("watch", "images"), action="append")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[STATE_DIR_VARIABLE] = os.environ[CONFIG_DIR_VARIABLE] = folder
        for part, run in (("watch", watched), ("images", images)):
            if not options.part or part in options.part:
                run(options.rounds)


if __name__ == "__main__":
    main()
