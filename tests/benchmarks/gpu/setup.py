"""What the parts of the GPU script share: sizes, servers, runs to their end, and how much memory the GPU has in use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from ossconsole.telemetry.sampler import Sampler
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.run import TrainingRun
from ossconsole.training.settings import TrainSettings
from tests.benchmarks.gpu.server import MadeUpDataset, static_servers

CORES = len(os.sched_getaffinity(0))
WARMUP_STEPS = 20
_RUN_TIMEOUT_S = 120.0


@dataclass
class Part:
    """The outcome of one part: whether every check in it held, and its figures by name."""

    ok: bool
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Setup:
    """Sizes for this device, and a sandbox in a folder of its own. `small` is the form that tests run on a CPU."""

    small: bool
    seconds: float
    limit_s: float
    folder: Path
    sandbox: SandboxProcess
    cuda: bool = field(default_factory=torch.cuda.is_available)
    profile: Profile = field(init=False)
    credentials: CredentialSource = field(init=False)

    def __post_init__(self) -> None:
        self.profile = self.sandbox.profile()
        self.credentials = FixedSource(self.sandbox.credentials())

    @property
    def side(self) -> int:
        """Pixels of a picture."""
        return 32 if self.small else 224

    @property
    def batch(self) -> int:
        return 8 if self.small else 64

    @property
    def batches(self) -> tuple[int, ...]:
        return (8,) if self.small else (64, 256, 1024)

    @property
    def workers(self) -> tuple[int, ...]:
        """Numbers of reader processes to try: a part of the cores is the servers'."""
        return (1,) if self.small else tuple(n for n in (4, 8, 12) if n <= max(4, CORES - 4))

    @property
    def servers(self) -> int:
        return 1 if self.small else max(1, min(6, CORES // 3))

    def many(self, count: int) -> int:
        """`count`, or a fraction of it in the small form."""
        return max(16, count // 20) if self.small else count

    def dataset(self, fmt: SampleFormat, side: int, samples: int, *, val_samples: int = 0) -> MadeUpDataset:
        return MadeUpDataset(fmt, side, samples, val_samples)

    def store(self) -> ObjectStore:
        return ObjectStore(self.profile, self.credentials)

    def connector(self, profile: Profile) -> ConnectorSettings:
        return ConnectorSettings(profile, self.credentials, checked_connector_config(), self.folder / "native.log")

    def serve(
        self, *datasets: MadeUpDataset, kinds: tuple[EndpointKind, ...] = (EndpointKind.ACCELERATED,)
    ) -> contextlib.AbstractContextManager[Profile]:
        """The static servers behind the endpoints of `kinds`."""
        return static_servers(self.sandbox, datasets, self.servers, kinds=kinds)


@contextlib.contextmanager
def prepared(*, small: bool, seconds: float, limit_s: float) -> Iterator[Setup]:
    """A setup with folders of its own for configuration, state and the sandbox."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name)
        before = dict(os.environ)
        os.environ[STATE_DIR_VARIABLE] = str(folder / "state")
        os.environ[CONFIG_DIR_VARIABLE] = str(folder / "config")
        try:
            with SandboxProcess.start(folder / "sandbox", unshaped=True) as sandbox:
                yield Setup(small=small, seconds=seconds, limit_s=limit_s, folder=folder, sandbox=sandbox)
        finally:
            os.environ.clear()
            os.environ.update(before)


def run_to_end(
    setup: Setup,
    *,
    dataset: MadeUpDataset,
    kinds: tuple[EndpointKind, ...] = (EndpointKind.ACCELERATED,),
    **settings: Any,
) -> tuple[TrainingRun, list[events.Event]]:
    """A run on a made-up dataset through the static servers, with its events. Raises TimeoutError."""
    found: list[events.Event] = []
    settings = {"endpoint": EndpointKind.ACCELERATED, **settings}
    with setup.serve(dataset, kinds=kinds) as served:
        profile = msgspec.structs.replace(served, dataset_prefix=dataset.prefix, checkpoint_prefix=dataset.prefix)
        run = TrainingRun(profile, setup.credentials, TrainSettings(**settings), Sampler(), on_event=found.append)
        run.start()
        if not run.wait(_RUN_TIMEOUT_S):
            run.stop()
            raise TimeoutError(f"A run did not end within {_RUN_TIMEOUT_S:.0f} s")
    return run, found


def steady_steps(found: list[events.Event]) -> list[events.Step]:
    """The training steps after the first ones."""
    steps = [event for event in found if isinstance(event, events.Step)]
    return steps[min(WARMUP_STEPS, len(steps) // 2) :]


def used_memory() -> int:
    """Bytes of the first GPU in use by all processes."""
    free, total = torch.cuda.mem_get_info(0)
    return total - free


@contextlib.contextmanager
def held_by_others(share: float) -> Iterator[None]:
    """Another process holds this share of the GPU's free memory."""
    code = (
        "import torch, sys\n"
        "free, _ = torch.cuda.mem_get_info(0)\n"
        f"held = torch.empty(int(free * {share}), dtype=torch.uint8, device='cuda')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    torch.cuda.empty_cache()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.kill()
