"""The faults of the machine itself: what each operation meets, and what must come of it."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import psutil
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.files import make_folder
from ossconsole.dataset.upload import worker as workers
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import FaultPlan, Rule, Stall
from ossconsole.telemetry.runs import record_path
from ossconsole.training import run as running
from tests.dataset.conftest import make_pictures
from tests.faults.operations import EPOCHS, Checkpointing, Downloading, Listing, Operation, Training, Upload

SOON_S = 20.0
# No resolver asks anybody about a name this long, so nothing leaves the machine.
UNRESOLVABLE = ".".join(["no-such-host-as-the-name-is-longer-than-any-may-be"] * 6)
_FILE_LIMIT = 4096


@dataclass(frozen=True)
class Struck:
    """An operation under a fault, and what steers the sandbox and the test."""

    operation: Operation
    control: SandboxControl
    patch: pytest.MonkeyPatch


@dataclass(frozen=True)
class MachineFault:
    """`strike` holds while the operation runs. `words`: one of them is in the message.

    `outlasted` are the operations that end well all the same.
    """

    name: str
    strike: Callable[[Struck], AbstractContextManager[None]]
    words: tuple[str, ...]
    operations: tuple[type[Operation], ...]
    outlasted: tuple[type[Operation], ...] = ()


@contextlib.contextmanager
def _no_name(struck: Struck) -> Iterator[None]:
    """A run in mid-flight is switched to the endpoint without a name; everything else begins with it."""
    operation, world = struck.operation, struck.operation.world
    nowhere = f"http://{UNRESOLVABLE}"
    if isinstance(operation, Training):
        operation.world = world.with_profile(msgspec.structs.replace(world.profile, accelerated_endpoint=nowhere))
        operation.switch_to, operation.fall_back = EndpointKind.ACCELERATED, True
    else:
        operation.world = world.with_profile(msgspec.structs.replace(world.profile, standard_endpoint=nowhere))
    yield
    operation.world = world
    if isinstance(operation, Training):
        operation.switch_to, operation.fall_back = None, False


@contextlib.contextmanager
def _gone(struck: Struck) -> Iterator[None]:
    """Twelve seconds stand for minutes, which only the patience of a run tells apart; the soak has five minutes."""
    operation = struck.operation

    def take_down() -> None:
        struck.control.set_faults(FaultPlan(outages={EndpointKind.STANDARD: 12.0}))

    if isinstance(operation, Training):
        operation.patience_s, operation.epochs, operation.midway = 60.0, 20, take_down
        yield
        operation.patience_s, operation.epochs, operation.midway = Training.patience_s, EPOCHS, lambda: None
    else:
        take_down()
        yield


@contextlib.contextmanager
def _full_disk(struck: Struck) -> Iterator[None]:
    """No file grows beyond a few kilobytes; the record of a run is on a device that is always full."""
    if isinstance(struck.operation, Training):
        path = record_path("full")
        make_folder(path.parent)
        path.symlink_to("/dev/full")
        struck.patch.setattr(running, "new_run_id", lambda: "full")
        yield
        path.unlink()
        struck.patch.undo()
        return
    with _limited(struck.operation, resource.RLIMIT_FSIZE, _FILE_LIMIT):
        yield


@contextlib.contextmanager
def _no_descriptors(struck: Struck) -> Iterator[None]:
    """Every descriptor below the limit is taken."""
    taken: list[int] = []
    gc.collect()  # otherwise descriptors of earlier tests' garbage become free in mid-operation
    limit = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + 2

    def give_back() -> None:
        while taken:
            os.close(taken.pop())

    with _limited(struck.operation, resource.RLIMIT_NOFILE, limit, give_back):
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        yield


@contextlib.contextmanager
def _no_shared_memory(struck: Struck) -> Iterator[None]:
    with _limited(struck.operation, resource.RLIMIT_FSIZE, _FILE_LIMIT):
        yield


@contextlib.contextmanager
def _limited(operation: Operation, kind: int, limit: int, also: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A limit of this process and those it starts, until the operation is calm or the block ends."""
    soft, hard = resource.getrlimit(kind)
    world = operation.world

    def lift() -> None:
        resource.setrlimit(kind, (soft, hard))
        also()

    def calm() -> None:
        lift()
        world.calm()

    operation.world = replace(world, calm=calm)
    resource.setrlimit(kind, (limit, hard))
    try:
        yield
    finally:
        lift()
        operation.world = world


def _signalled(number: signal.Signals) -> Callable[[Struck], AbstractContextManager[None]]:
    """A process that works for the operation gets a signal in the middle of it."""

    @contextlib.contextmanager
    def strike(struck: Struck) -> Iterator[None]:
        operation = struck.operation
        if isinstance(operation, Upload):
            many = make_pictures(operation.world.folder / "many", 60)
            operation.world = replace(operation.world, pictures=many)
            operation.settings = msgspec.structs.replace(operation.settings, source=many, bandwidth=30_000.0)
            struck.patch.setattr(workers, "DEADLINE_S", 1.0)
        if isinstance(operation, Checkpointing):
            struck.control.set_faults(FaultPlan(rules=[Rule(action=Stall(), operation="UploadPart", times=1)]))
            threading.Thread(target=_when_stalled, args=(struck, number), daemon=True).start()
        else:
            operation.midway = lambda: _hurt(operation, number)
        yield
        operation.midway = lambda: None
        struck.patch.undo()

    return strike


def _when_stalled(struck: Struck, number: signal.Signals) -> None:
    until = time.monotonic() + SOON_S
    while not sum(struck.control.status().fault_hits) and time.monotonic() < until:
        time.sleep(0.02)
    _hurt(struck.operation, number)


def _hurt(operation: Operation, number: signal.Signals) -> None:
    """The newest process of those that do the work: it is at it, or about to be."""
    mark = "ossconsole.dataset.upload.worker" if isinstance(operation, Upload) else "spawn_main"
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    ]
    max(found, key=lambda process: process.create_time()).send_signal(number)


_EVERY = (Listing, Upload, Training, Checkpointing, Downloading)
_WITH_PROCESSES = (Upload, Training, Checkpointing)

MACHINE_FAULTS = (
    MachineFault("endpoint gone for minutes", _gone, ("refused", "errno"), _EVERY, outlasted=(Training,)),
    MachineFault("DNS failure", _no_name, ("resol", "Name", "name", "not known"), _EVERY, outlasted=(Training,)),
    MachineFault(
        "full disk",
        _full_disk,
        ("File too large", "No space left", "disk"),
        (Upload, Training, Downloading),
        outlasted=(Training,),
    ),
    MachineFault("descriptors used up", _no_descriptors, ("Too many open files", "unable to open"), _EVERY),
    MachineFault("out of shared memory", _no_shared_memory, ("memory",), (Training,)),
    MachineFault(
        "worker SIGKILLed",
        _signalled(signal.SIGKILL),
        ("SIGKILL", "died", "ended unexpectedly"),
        _WITH_PROCESSES,
        outlasted=_WITH_PROCESSES,
    ),
    MachineFault(
        "worker stopped (SIGSTOP)",
        _signalled(signal.SIGSTOP),
        ("within",),
        _WITH_PROCESSES,
        outlasted=_WITH_PROCESSES,
    ),
)
