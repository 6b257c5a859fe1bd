"""Trains for long through endpoints that fail at random, and proves that nothing leaks and no sample is lost.

    python -m tests.benchmarks.soak [--minutes 30] [--seed 1] [--tiny] [--no-console] [--json]

`ossconsole train` runs in a process of its own, reads from a sandbox in another, and a real console in a
pseudo-terminal looks on. Meanwhile requests fail, endpoints go away, keys are refused, readers are killed and stopped,
endpoints are switched, the run is paused. In a run of 20 minutes or more the standard endpoint is once gone for five
minutes. At the end: memory and descriptors of the processes in the last sixth of the time are compared with those
before the first fault and in the second sixth, every sample of every epoch is accounted for byte by byte, and the
checkpoint is read back. Nothing is measured before the run has read from both endpoints and saved a checkpoint: in a
short run the start of a process would look like a leak. Exit code 1 when anything is wrong. `--tiny` trains a tiny
model in place of ResNet-18, for a run of seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastcrc
import msgspec
import numpy as np
import psutil

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile, Settings, save_settings
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.multipart import list_uploads
from ossconsole.telemetry import events
from ossconsole.telemetry.runs import RunSummary, list_runs, read_events
from ossconsole.training.remote import control
from tests.benchmarks.chaos import Chaos
from tests.benchmarks.recording_command import LEDGER_VARIABLE, SIDE, TINY_VARIABLE, Entry, contents
from tests.terminal.screen import Terminal

SPLITS = ("train", "val")
VAL_SAMPLES = 128
LONG_OUTAGE_S = 300.0
BATCH = 32
SETTLED_STEPS = 32
"""Steps of one endpoint after which its connections are open."""
_ENDING_S = 420.0  # two tries of a checkpoint, each with its deadline, and some more


@dataclass(frozen=True)
class Slack:
    """How much more memory and how many more descriptors may be in use in the last sixth than before."""

    memory_mb: float
    descriptors: int


SLACK = {
    "training": Slack(50, 4),
    # Readers and the writer are replaced all the time here, a checkpoint on its way is held by the writer, and the
    # connector keeps up to some sixty connections to each endpoint it has used.
    "workers": Slack(200, 150),
    "console": Slack(10, 2),
}


@dataclass
class Figures:
    """Memory (MB) and open descriptors of some processes over time."""

    find: Callable[[], list[psutil.Process]]
    memory: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self) -> None:
        """A moment at which one of them is just beginning or ending is left out."""
        with contextlib.suppress(psutil.Error):
            processes = self.find()
            memory = sum(each.memory_info().rss for each in processes) / 1e6
            descriptors = sum(each.num_fds() for each in processes)
            self.memory.append(memory)
            self.descriptors.append(descriptors)

    def verdict(self, slack: Slack | None) -> dict[str, Any]:
        """What was used before and in the last sixth; `flat` where the last is not above what was before."""
        memory, descriptors = _before_and_last(self.memory), _before_and_last(self.descriptors)
        flat = None
        if slack is not None:
            flat = memory[1] <= memory[0] + slack.memory_mb and descriptors[1] <= descriptors[0] + slack.descriptors
        return {
            "looks": len(self.memory),
            "memory_mb": [round(value, 1) for value in memory],
            "most_memory_mb": round(max(self.memory), 1),
            "descriptors": descriptors,
            "most_descriptors": max(self.descriptors),
            "flat": flat,
        }


def _before_and_last(values: list[Any]) -> list[float]:
    """The higher of the first look and the median of the second sixth; the median of the last sixth.

    In a short run, a reader that replaces a killed one may take the whole second sixth to begin.
    """
    size = max(1, len(values) // 6)
    second, last = (float(statistics.median(part)) for part in (values[size : 2 * size] or values, values[-size:]))
    return [max(float(values[0]), second), last]


@dataclass
class Soak:
    """One soak in `folder`. `result` is what is printed, `problems` what is wrong."""

    options: argparse.Namespace
    folder: Path
    problems: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        with SandboxProcess.start(self.folder / "oss", unshaped=True) as sandbox:
            self._prepare(sandbox)
            with self._training() as training:
                figures = self._endure(sandbox, training)
                training.terminate()
                code = training.wait(_ENDING_S)
            self.check(code == 128 + signal.SIGTERM, f"train ended with exit code {code}")
            for name, tree in figures.items():
                verdict = self.result[name] = tree.verdict(SLACK.get(name))
                self.check(verdict["flat"] is not False, f"{name} grows: {verdict}")
            self._account()
            self._check_checkpoint()

    def check(self, condition: object, problem: str) -> None:
        if not condition:
            self.problems.append(problem)

    def _prepare(self, sandbox: SandboxProcess) -> None:
        self._profile = Profile(**{**msgspec.structs.asdict(sandbox.profile()), "name": "soak", "simulated": False})
        save_settings(Settings(active="soak", profiles={"soak": self._profile}))
        credentials = sandbox.credentials()
        os.environ["OSS_ACCESS_KEY_ID"] = credentials.access_key_id
        os.environ["OSS_ACCESS_KEY_SECRET"] = credentials.access_key_secret.reveal()
        self._store = ObjectStore(self._profile, FixedSource(credentials))
        self._numbers = {
            "train": range(self.options.samples),
            "val": range(self.options.samples, self.options.samples + VAL_SAMPLES),
        }
        bodies = contents(np.arange(self.options.samples + VAL_SAMPLES, dtype=np.int64))
        splits = {
            split: tuple(
                Sample(f"{split}/c{n % 4}/{n:06}.u8", n % 4, SIDE, SIDE, fastcrc.crc64.xz(bodies[n].tobytes()))
                for n in numbers
            )
            for split, numbers in self._numbers.items()
        }
        with ThreadPoolExecutor(8) as pool:
            for split, samples in splits.items():
                keys = [object_key(self._profile.dataset_prefix, sample.key) for sample in samples]
                found = (bodies[number].tobytes() for number in self._numbers[split])
                list(pool.map(self._store.put, keys, found))
        classes = tuple(f"c{label}" for label in range(4))
        manifest = Manifest(format=SampleFormat.IMAGE_U8, size=SIDE, classes=classes, splits=splits)
        write_manifest(self._store, self._profile.dataset_prefix, manifest)

    @contextlib.contextmanager
    def _training(self) -> Iterator[psutil.Popen]:
        self._ledger = self.folder / "ledger.jsonl"
        command = [sys.executable, "-m", "tests.benchmarks.recording_command", "train", "--json", "--epochs", "1000000"]
        command += [
            "--no-augment",
            "--batch-size",
            str(BATCH),
            "--workers",
            "1",
            "--fetch-deadline-s",
            "10",
            "--patience-s",
            "900",
        ]
        variables = {LEDGER_VARIABLE: str(self._ledger), **({TINY_VARIABLE: "1"} if self.options.tiny else {})}
        with (self.folder / "train.log").open("wb") as log:
            process = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=os.environ | variables
            )
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.Error):
                for each in [*process.children(recursive=True), process]:
                    each.kill()
            process.wait()

    def _endure(self, sandbox: SandboxProcess, training: psutil.Popen) -> dict[str, Figures]:
        """The time itself. Samples are counted from the first step on."""
        self._until(lambda: any(run.step > 0 for run in list_runs()), training)
        (run,) = list_runs()
        self._settle(run, training)
        chaos = Chaos(
            sandbox.info,
            training,
            run.run,
            seed=self.options.seed,
            longest_s=self.options.longest,
            opening=self.options.opening,
        )
        server = psutil.Process(sandbox.pid)
        figures = {
            "training": Figures(lambda: [training]),
            "workers": Figures(lambda: training.children(recursive=True)),
            "sandbox": Figures(lambda: [server]),
        }
        with self._console(figures):
            for each in figures.values():
                each.look()
            began = time.monotonic()
            ends = began + 60 * self.options.minutes
            long_outage = began + 480 if self.options.minutes >= 20 else None
            change_at = look_at = began
            struck = False
            while (now := time.monotonic()) < ends and training.poll() is None:
                if long_outage and now >= long_outage:
                    chaos.outage(LONG_OUTAGE_S)
                    struck, change_at, long_outage = True, now + LONG_OUTAGE_S + 5, None
                if now >= change_at:
                    chaos.stop() if struck else chaos.inject()
                    struck, change_at = not struck, now + chaos.pause_s()
                if now >= look_at:
                    look_at = now + self.options.every
                    for each in figures.values():
                        each.look()
                time.sleep(0.1)
            self.check(training.poll() is None, "train ended by itself")
            chaos.stop()
        self.result["strikes"] = dict(sorted(chaos.injected.items()))
        return figures

    def _settle(self, run: RunSummary, training: psutil.Popen) -> None:
        """Trains from one endpoint, then from the other, and saves: all that is opened or loaded once is there."""

        def record() -> Iterator[events.Event]:
            return read_events(Path(run.path))

        def steps_from(endpoint: EndpointKind) -> int:
            return sum(isinstance(event, events.Step) and event.endpoint is endpoint for event in record())

        first = next(event.endpoint for event in record() if isinstance(event, events.Step) and event.endpoint)
        self._until(lambda: steps_from(first) >= SETTLED_STEPS, training)
        control.ask(training.pid, control.SwitchEndpoint(run=run.run, endpoint=first.other))
        self._until(lambda: steps_from(first.other) >= SETTLED_STEPS, training)
        control.ask(training.pid, control.SaveCheckpoint(run=run.run))
        self._until(lambda: any(isinstance(event, events.Checkpoint) for event in record()), training)

    @contextlib.contextmanager
    def _console(self, figures: dict[str, Figures]) -> Iterator[None]:
        """A console that shows the run all the time, on a terminal of its own."""
        if not self.options.console:
            yield
            return
        with Terminal("ossconsole", columns=120, rows=40) as console:
            front = psutil.Process(console.process.pid)
            figures["console"] = Figures(lambda: [front, *front.children(recursive=True)])
            console.until_shown("Browse")
            console.press(b"4")
            leaving = threading.Event()
            written = [0]

            def watch() -> None:
                while not leaving.is_set():
                    written[0] += len(console.read(0.2))
                    console.output = console.output[-200_000:]

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            yield
            leaving.set()
            watcher.join()
            console.press(b"q")
            code = console.finish()
            self.result["console_kb_written"] = written[0] // 1000
            self.check(code == 0, f"the console ended with exit code {code}: {console.output[-2000:]!r}")
            console.assert_restored()

    def _account(self) -> None:
        """Every sample of every whole epoch once, none twice in the epoch under way; the record says the same."""
        found: dict[tuple[int, str], Counter[int]] = defaultdict(Counter)
        trained: Counter[tuple[int, str]] = Counter()
        left_out, wrong = 0, 0
        for line in self._ledger.read_bytes().splitlines():
            entry = msgspec.json.decode(line, type=Entry)
            found[entry.epoch, entry.split].update(entry.rows + entry.left_out)
            trained[entry.epoch, entry.split] += len(entry.rows)
            left_out += len(entry.left_out)
            wrong += len(entry.wrong)
        self.check(not wrong, f"{wrong} samples were given with other bytes than are in the bucket")
        (run,) = list_runs()
        record = list(read_events(Path(run.path)))
        epochs = {event.epoch: event for event in record if isinstance(event, events.Epoch)}
        for (epoch, split), numbers in found.items():
            twice = [number for number, count in numbers.items() if count > 1]
            self.check(not twice, f"epoch {epoch}, {split}: {len(twice)} samples were read more than once")
            if epoch in epochs:
                missing = set(self._numbers[split]) - set(numbers)
                self.check(not missing, f"epoch {epoch}, {split}: {len(missing)} samples were not read")
                said = epochs[epoch].samples if split == "train" else epochs[epoch].val_samples
                self.check(said == trained[epoch, split], f"epoch {epoch}, {split}: the record says {said} samples")
        steps = [event for event in record if isinstance(event, events.Step)]
        self.check([step.step for step in steps] == list(range(1, len(steps) + 1)), "steps are missing or twice")
        summary = record[-1]
        read = sum(count for (_, split), count in trained.items() if split == "train")
        said = sum(step.samples for step in steps)
        warned = sum(isinstance(each, events.WarningEvent) and each.message.startswith("Skipped") for each in record)
        self.check(warned == left_out, f"{warned} of {left_out} samples left out were reported")
        self.check(isinstance(summary, events.Summary), f"the record ends with {summary}")
        # The batch in hand when the run was stopped is read again when it goes on.
        self.check(0 <= read - said <= BATCH, f"{read} samples were read, the record says {said}")
        self.result |= {
            "epochs": len(epochs),
            "steps": len(steps),
            "samples": said,
            "left_out": left_out,
            "retries": summary.retries if isinstance(summary, events.Summary) else None,
            "checkpoints": sum(isinstance(event, events.Checkpoint) for event in record),
            "warnings": sum(isinstance(event, events.WarningEvent) for event in record),
        }
        self._record = record

    def _check_checkpoint(self) -> None:
        """The last checkpoint is whole, of the last step, and the model takes it; nothing half-written is left."""
        from ossconsole.training.checkpoints.checkpoint import unpack
        from ossconsole.training.compute.model import build_model
        from ossconsole.training.settings import TrainSettings
        from tests.faults.operations import tiny_model

        store, prefix = self._store, self._profile.checkpoint_prefix
        written = [event for event in self._record if isinstance(event, events.Checkpoint)]
        if not written:
            self.problems.append("no checkpoint was written")
            return
        last = written[-1]
        data = store.get(last.stable_key)
        crcs = {store.head(key).crc64 for key in (last.key, last.stable_key)}
        self.check(crcs == {fastcrc.crc64.xz(data)}, "the checkpoint's CRC64 is wrong")
        state = unpack(data, last.stable_key)
        steps = self.result["steps"]
        self.check(state["step"] == last.step == steps, f"the checkpoint is of step {state['step']}, not {steps}")
        classes = tuple(state["classes"])
        build = tiny_model if self.options.tiny else build_model
        model = build(TrainSettings(), classes, 64, lambda _: b"")
        model.load_state_dict(state["model"], strict=True)
        there = {summary.key for summary in store.list_all(f"{prefix}/")}
        known = {key for event in written for key in (event.key, event.stable_key, event.best_key)}
        self.result |= {
            "checkpoint": last.stable_key,
            "checkpoint_objects": len(there),
            "unknown_objects": len(there - known),
            "unfinished_uploads": sum(1 for _ in list_uploads(store, f"{prefix}/")),
        }

    def _until(self, condition: Callable[[], bool], training: psutil.Popen) -> None:
        ends = time.monotonic() + 120
        while not condition():
            log = (self.folder / "train.log").read_text(errors="replace")[-2000:]
            assert training.poll() is None, f"train ended with exit code {training.poll()}: {log}"
            assert time.monotonic() < ends, f"train does not begin: {log}"
            time.sleep(0.1)


def soak(options: argparse.Namespace, folder: Path) -> Soak:
    """Runs one in `folder`; settings and state of this process are there as well."""
    os.environ[STATE_DIR_VARIABLE] = str(folder / "state")
    os.environ[CONFIG_DIR_VARIABLE] = str(folder / "config")
    one = Soak(options, folder)
    one.run()
    return one


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--samples", type=int, default=4096, help="of the training split")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks at the processes")
    parser.add_argument("--longest", type=float, default=10.0, help="seconds between two strikes, at most")
    parser.add_argument("--opening", nargs="*", default=[], help="the first faults, by name (see chaos.py)")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-console", dest="console", action="store_false")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main() -> int:
    options = parsed(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        one = soak(options, Path(name))
    result = {"options": vars(options), **one.result, "problems": one.problems}
    if options.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        for title, value in result.items():
            sys.stdout.write(f"{title:20}{value}\n")
    return 1 if one.problems else 0


if __name__ == "__main__":
    sys.exit(main())
