"""The real command in a real pseudo-terminal, its screen as an emulator shows it, and the processes it leaves."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyte

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry.runs import list_runs
from tests.terminal.screen import DEADLINE_S, Terminal

SIDE = 32
TRAIN, VAL = 224, 32


class Console(Terminal):
    """`ossconsole ARGUMENTS` with a screen of 110x36."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 110,
        rows: int = 36,
        controlling: bool = True,
        term: str = "xterm-256color",
        module: str = "ossconsole",
    ) -> None:
        super().__init__(module, *arguments, columns=columns, rows=rows, controlling=controlling, term=term)
        self._emulator = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._emulator)
        self._fed = 0

    def __enter__(self) -> Console:
        return self

    def resize(self, columns: int, rows: int) -> None:
        super().resize(columns, rows)
        self._emulator.resize(rows, columns)

    @property
    def screen(self) -> str:
        """What the user sees now."""
        new, self._fed = self.output[self._fed :], len(self.output)
        self._stream.feed(new)
        return "\n".join(self._emulator.display)

    def browse(self) -> None:
        """From the welcome of the sandbox to the folders of its bucket."""
        self.until_seen("Connect a bucket")
        self.type("2")
        self.until_seen("dataset/")

    def until_seen(self, *texts: str, gone: str = "") -> None:
        """Read until the screen shows every text, and `gone` no more."""

        def shown() -> bool:
            screen = self.screen
            return all(text in screen for text in texts) and not (gone and gone in screen)

        try:
            self.until(shown)
        except AssertionError:
            raise AssertionError(f"{texts} not on the screen:\n{self.screen}") from None

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def quit(self) -> None:
        """Press q where nothing runs: the console ends and restores the terminal."""
        self.type("q")
        assert self.finish() == 0
        self.assert_restored()


def fill_sandbox(state: Path) -> None:
    """A small dataset in the state folder's sandbox, so that a demo starts its run without an upload."""
    with SandboxProcess.start(state / "sandbox", unshaped=True) as process:
        profile = process.profile()
        store = ObjectStore(profile, FixedSource(process.credentials()))
        random = np.random.default_rng(0)
        splits = {}
        for split, count in (("train", TRAIN), ("val", VAL)):
            samples = tuple(Sample(f"{split}/c{n % 2}/{n:03d}.u8", n % 2, SIDE, SIDE) for n in range(count))
            for sample in samples:
                picture = random.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
                store.put(object_key(profile.dataset_prefix, sample.key), picture.tobytes())
            splits[split] = samples
        manifest = Manifest(format=SampleFormat.IMAGE_U8, size=SIDE, classes=("c0", "c1"), splits=splits)
        write_manifest(store, profile.dataset_prefix, manifest)


def training() -> bool:
    """Whether a run has trained a step."""
    return any(run.step > 0 for run in list_runs())


def processes_of(state: Path) -> list[psutil.Process]:
    """Every living process that works with this state folder."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            if process.environ().get(STATE_DIR_VARIABLE) == str(state) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextlib.contextmanager
def cleared(state: Path) -> Iterator[None]:
    """Ends what a failed test leaves on this state folder."""
    try:
        yield
    finally:
        for process in processes_of(state):
            with contextlib.suppress(psutil.Error):
                process.kill()
