"""Measures browsing against the sandbox: `python -m tests.benchmarks.bench_browse [first-rows|inspect|…]`.

Prints one JSON object per part. The ratios are what to read: the server shares the machine with what is measured.
"""

from __future__ import annotations

import fcntl
import functools
import io
import os
import pty
import select
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import oss2
import psutil
import pyte

from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.checkpoints.inspect import inspect_checkpoint
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.download import Download
from ossconsole.storage.listing import Listing
from ossconsole.storage.objects import ObjectSummary

KEYS = 1_000_000
COLUMNS, LINES = 120, 40
_QUIET_S = 0.06  # without output, a repaint is over
_BETWEEN_KEYS_S = 0.5  # of somebody who reads while a listing loads


@contextmanager
def sandboxed(*arguments: str, unshaped: bool = True) -> Iterator[tuple[SandboxProcess, ObjectStore]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        SandboxProcess.start(Path(folder), unshaped=unshaped, arguments=arguments) as sandbox,
    ):
        store = ObjectStore(sandbox.profile(), sandbox.credentials)
        yield sandbox, store
        store.close()


def report(part: str, **figures: Any) -> None:
    print(msgspec.json.encode({"part": part, **figures}).decode(), flush=True)  # noqa: T201


def milliseconds(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return {
        "p50_ms": round(statistics.median(ordered) * 1000, 1),
        "p95_ms": round(p95 * 1000, 1),
        "max_ms": round(ordered[-1] * 1000, 1),
        "n": len(ordered),
    }


# First rows


def first_rows() -> None:
    with sandboxed("--synthetic-keys", str(KEYS)) as (_, store):
        pages, rows = [], []
        for _ in range(20):
            began = time.perf_counter()
            store.list_page("synthetic/")
            pages.append(time.perf_counter() - began)
            there = threading.Event()
            listing = Listing(store, "synthetic/", on_change=functools.partial(_set, there))
            began = time.perf_counter()
            listing.start()
            there.wait(10)
            rows.append(time.perf_counter() - began)
            listing.stop()
        ratio = statistics.median(rows) / statistics.median(pages)
        report("first-rows", page=milliseconds(pages), rows=milliseconds(rows), ratio=round(ratio, 2))


def _set(event: threading.Event, _: Listing) -> None:
    event.set()


# A million objects


class Terminal:
    """The console in a pty, with keys going in and the time until its answer comes out."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(sys.executable, [sys.executable, "-m", "ossconsole", *arguments], environment)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)

    def read(self, timeout: float) -> bool:
        """Takes in output; False when there was none in time."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return False
        try:
            self._stream.feed(os.read(self._fd, 1 << 16))
        except OSError:  # the console has left
            return False
        return True

    def press(self, key: bytes) -> float:
        """Seconds from the key to the first byte of the answer; waits until the repaint is over."""
        began = time.perf_counter()
        os.write(self._fd, key)
        select.select([self._fd], [], [], 5.0)
        answered = time.perf_counter() - began
        while self.read(_QUIET_S):
            pass
        return answered

    def wait_for(self, *texts: str, timeout: float) -> str:
        """The text that shows first."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.read(0.25)
            shown = "\n".join(self._screen.display)
            for text in texts:
                if text in shown:
                    return text
        raise TimeoutError(f"{texts} did not show:\n" + "\n".join(self._screen.display))

    def shows(self, text: str) -> bool:
        return text in "\n".join(self._screen.display)

    def close(self) -> None:
        os.write(self._fd, b"q")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and psutil.pid_exists(self.pid):
            if not self.read(0.1) and os.waitpid(self.pid, os.WNOHANG)[0]:
                return
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


def million() -> None:
    """A thousand keys first: what a key costs on this machine now, whatever the number of rows."""
    for keys in (1000, KEYS):
        _keys_of(keys)


def _keys_of(keys: int) -> None:
    with sandboxed("--synthetic-keys", str(keys)) as (sandbox, _):
        info = sandbox.info
        environment = os.environ | {
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "OSS_ACCESS_KEY_ID": info.access_key_id,  # of the sandbox, and gone with it
            "OSS_ACCESS_KEY_SECRET": info.access_key_secret.reveal(),
            "OSSCONSOLE_STATE_DIR": str(sandbox.directory / "state"),
            "OSSCONSOLE_CONFIG_DIR": str(sandbox.directory / "config"),
        }
        options = ["--bucket", info.bucket, "--region", info.region, "--standard-endpoint", info.endpoints["standard"]]
        terminal = Terminal(options, environment)
        try:
            terminal.wait_for("Browse", timeout=30)
            terminal.press(b"2")
            terminal.wait_for("synthetic/", timeout=30)
            process = _console(terminal.pid)
            before = process.memory_info().rss
            terminal.press(b"g")
            for letter in b"synthetic/":
                terminal.press(bytes([letter]))
            began = time.perf_counter()
            os.write(terminal._fd, b"\r")
            terminal.wait_for("000+ objects", "1,000 objects", timeout=10)
            first = time.perf_counter() - began
            while_loading = [terminal.press(key) for key in [b"j"] * 20 + [b"\x1b[6~"] * 20 + [b"k"] * 20]
            terminal.wait_for(f"{keys:,} objects", timeout=600)
            loaded = time.perf_counter() - began
            after = process.memory_info().rss
            report(
                "load",
                keys=keys,
                first_rows_s=round(first, 2),
                loaded_s=round(loaded, 1),
                rss_before_mb=round(before / 1e6),
                rss_loaded_mb=round(after / 1e6),
                keys_while_loading=milliseconds(while_loading),
            )
            report("keys", keys=keys, **_figures(terminal, process), rss_mb=round(process.memory_info().rss / 1e6))
            if keys == KEYS:
                report("refresh", keys=keys, **_refreshing(terminal, process))
        finally:
            terminal.close()


def _console(pid: int) -> psutil.Process:
    """The process that draws: of the tree below the terminal, the one with the most memory."""
    first = psutil.Process(pid)
    return max((first, *first.children(recursive=True)), key=lambda process: int(process.memory_info().rss))


def _figures(terminal: Terminal, process: psutil.Process) -> dict[str, Any]:
    """Every key here changes what shows: one that does not would be waited for in vain."""
    round_trip = [b"\x1b[6~", b"j", b"k", b"j", b"\x1b[5~", b"\x1b[F", b"k", b"\x1b[H", b" ", b"G", b"\x1b[H"]
    spent = sum(process.cpu_times()[:2])
    moving = [terminal.press(key) for key in round_trip * 12]
    spent = sum(process.cpu_times()[:2]) - spent
    sorting = [terminal.press(key) for _ in range(8) for key in (b"s", b"S")]
    sorted_moving = [terminal.press(key) for key in round_trip * 6]
    filtering = [terminal.press(key) for key in [b"/", b"0", b"0", b"9", b"\x7f", b"8", b"\r"]]
    filtered_moving = [terminal.press(key) for key in [b"\x1b[F", b"k", b"\x1b[H", b"j"] * 5]
    return {
        "all": milliseconds([*moving, *sorting, *sorted_moving, *filtering, *filtered_moving]),
        "moving": milliseconds(moving),
        "moving_cpu_ms_per_key": round(1000 * spent / len(moving), 1),
        "sorting": milliseconds(sorting),
        "moving_sorted": milliseconds(sorted_moving),
        "filtering": milliseconds(filtering),
        "moving_filtered": milliseconds(filtered_moving),
    }


def _refreshing(terminal: Terminal, process: psutil.Process) -> dict[str, Any]:
    """Keys while all is listed again behind what shows, sorted by size, and while the new rows take its place."""
    terminal.press(b"s")
    terminal.press(b"r")
    taken, most = [], 0
    while terminal.shows("refreshing"):
        taken.append(terminal.press(b"j"))
        most = max(most, process.memory_info().rss)
        terminal.read(_BETWEEN_KEYS_S)
    return {"moving": milliseconds(taken), "rss_most_mb": round(most / 1e6)}


# Download


def download() -> None:
    for shape in ("shaped", "unshaped"):
        with sandboxed(unshaped=shape == "unshaped") as (_, store):
            data = os.urandom(1 << 20)
            for number in range(100):
                store.put(f"small/{number:03d}", data[:150_528])
            store.put("large/one", data * 45)
            small = list(store.list_all("small/"))
            large = list(store.list_all("large/"))
            for name, objects in (("100 x 151 KB", small), ("1 x 47 MB", large)):
                _race(shape, name, store, objects)


def _race(shape: str, name: str, store: ObjectStore, objects: list[ObjectSummary]) -> None:
    arms: dict[str, Callable[[Path], None]] = {
        "ours": lambda folder: _ours(store, objects, folder),
        "oss2": lambda folder: _theirs(store, objects, folder),
    }
    taken: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(5):
        for arm, run in arms.items():
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                run(Path(folder))
                taken[arm].append(time.perf_counter() - began)
    ratios = sorted(theirs / ours for ours, theirs in zip(taken["ours"], taken["oss2"], strict=True))
    size = sum(each.size for each in objects) / 1e6
    report(
        "download",
        sandbox=shape,
        objects=name,
        ours_mb_s=round(size / statistics.median(taken["ours"]), 1),
        oss2_mb_s=round(size / statistics.median(taken["oss2"]), 1),
        times_faster=round(statistics.median(ratios), 2),
        spread=[round(ratios[0], 2), round(ratios[-1], 2)],
    )


def _ours(store: ObjectStore, objects: list[ObjectSummary], folder: Path) -> None:
    job = Download(store, objects, "", folder)
    job.start()
    job.wait()
    assert not job.failures, job.failures


def _theirs(store: ObjectStore, objects: list[ObjectSummary], folder: Path) -> None:
    keep = oss2.resumable.ResumableDownloadStore(root=str(folder))
    for each in objects:
        target = folder / each.key.replace("/", "_")
        # At its default threshold of 100 MB oss2 would fetch the large one as a single stream.
        oss2.resumable_download(
            store.sdk, each.key, str(target), store=keep, multiget_threshold=10 << 20, part_size=8 << 20, num_threads=8
        )


# Inspecting


def inspect() -> None:
    import torch
    import torchvision

    model = torchvision.models.resnet18(num_classes=1000)
    sink = io.BytesIO()
    torch.save(model.state_dict(), sink)
    data = sink.getvalue()
    with sandboxed(unshaped=False) as (_, store):
        store.put("checkpoints/resnet18.pt", data)
        began = time.perf_counter()
        found = inspect_checkpoint(store, "checkpoints/resnet18.pt", len(data))
        took = time.perf_counter() - began
    share = round(100 * found.fetched / len(data), 3)
    report("inspect", size=len(data), fetched=found.fetched, requests=found.requests, percent=share, s=round(took, 3))


PARTS = {"first-rows": first_rows, "million": million, "download": download, "inspect": inspect}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["first-rows", "inspect", "download", "million"]:
        PARTS[chosen]()
