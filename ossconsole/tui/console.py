"""What the screens need from the rest of the program, as protocols: the CLI composes the real ones, tests fakes.

Attributes, and the methods that say so, return at once. Every other method may block (a request, another process, a
lock): it is called in a thread, never on the event loop, and raises ConsoleError. Runs, uploads and the sampler belong
to their own threads and outlive the App.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:  # types only: the first paint does not wait for the layers below
    from ossconsole.config.credentials import Credentials
    from ossconsole.config.endpoints import EndpointKind
    from ossconsole.config.metadata import Instance
    from ossconsole.config.profiles import Profile
    from ossconsole.dataset.upload.job import UploadSettings, UploadSummary
    from ossconsole.dataset.upload.plan import UploadPlan
    from ossconsole.dataset.upload.progress import SamplePreview, UploadProgress
    from ossconsole.storage.accelerator import Accelerator
    from ossconsole.storage.objects import ListPage, ObjectInfo
    from ossconsole.storage.probe.report import OnStep, ProbeReport
    from ossconsole.telemetry.events import Event, RunState
    from ossconsole.telemetry.sampler import TelemetrySample
    from ossconsole.training.settings import TrainSettings


class RunHandle(Protocol):
    """A training run in progress or done; `ossconsole.training.run.TrainingRun` is one."""

    @property
    def elsewhere(self) -> bool:
        """True where another process does the run: it goes on when this console leaves."""

    @property
    def state(self) -> RunState: ...

    @property
    def alive(self) -> bool:
        """False once the run's thread has ended."""

    @property
    def record_path(self) -> Path: ...

    def drain(self) -> list[Event]:
        """The events since the last call, oldest first."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def stop(self) -> None:
        """Asks the run to write a checkpoint and end; may block, as other processes of the run are told."""

    def switch(self, kind: EndpointKind, reason: str) -> None:
        """Reads what is fetched from now on through `kind`; `reason` goes into the event log."""

    def checkpoint(self) -> None:
        """Asks for a checkpoint now, without ending."""

    def set_lr(self, lr: float) -> None: ...


class UploadHandle(Protocol):
    """An upload in progress or done; `ossconsole.dataset.upload.job.UploadJob` is one."""

    @property
    def elsewhere(self) -> bool:
        """True where another process does it: it goes on when this console leaves."""

    @property
    def alive(self) -> bool: ...

    @property
    def source(self) -> str: ...

    def progress(self) -> UploadProgress: ...

    def summary(self) -> UploadSummary: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None: ...


class OwnUploadHandle(UploadHandle, Protocol):
    """An upload that this process does."""

    @property
    def settings(self) -> UploadSettings: ...

    def preview(self) -> SamplePreview | None:
        """The newest prepared sample."""

    def set_parallelism(self, number: int) -> None: ...

    def set_bandwidth(self, bytes_per_s: float | None) -> None: ...


class Store(Protocol):
    """The part of `ossconsole.storage.client.ObjectStore` that the screens use; every method may block."""

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage: ...

    def head(self, key: str) -> ObjectInfo: ...

    def uri(self, key: str = "") -> str: ...


class Setting(msgspec.Struct, frozen=True):
    """One setting of the profile in use, and where its value came from (command line, environment, file, default)."""

    name: str
    value: str
    origin: str


class StageState(str, enum.Enum):
    """How far one piece of work before the first run is."""

    WAITING = "waiting"
    ACTIVE = "active"
    DONE = "done"
    FAILED = "failed"


class Stage(msgspec.Struct, frozen=True):
    """One piece of work before the first run (the sandbox, the sample pictures, their upload)."""

    label: str
    state: StageState
    detail: str = ""


class ConsoleState(msgspec.Struct, frozen=True, kw_only=True):
    """How the console stands with the bucket it works on: one of the four states below.

    `profile` is None only while the sandbox, which makes it, has not started. `stages` is the work before the first
    run, also after its end; empty where there is none.
    """

    profile: Profile | None = None
    stages: tuple[Stage, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the bucket can be listed, written and trained on."""
        return False


class Starting(ConsoleState, frozen=True, kw_only=True):
    """The credentials are looked for, or the sandbox starts; once it is `opened`, its sample dataset is prepared."""

    opened: bool = False

    @property
    def usable(self) -> bool:
        return self.opened


class Ready(ConsoleState, frozen=True, kw_only=True):
    """There is nothing to wait for."""

    @property
    def usable(self) -> bool:
        return True


class NoCredentials(ConsoleState, frozen=True, kw_only=True):
    """No source has a key pair for the profile; `looked` tells of each, in a line."""

    looked: tuple[str, ...] = ()


class Failed(ConsoleState, frozen=True, kw_only=True):
    """The profile, or the sandbox, cannot be used; `reason` says why and what to do."""

    reason: str


class AcceleratorState(msgspec.Struct, frozen=True):
    """The bucket's accelerator, None where it has none, and what to know before training through it."""

    accelerator: Accelerator | None
    cautions: tuple[str, ...] = ()


class BucketSetup(Protocol):
    """What the Setup screen does with the bucket of the profile in use; every method blocks, raises ConsoleError."""

    def probe(self, on_step: OnStep) -> ProbeReport:
        """Proves both endpoints and the permissions; `on_step` is called from other threads."""

    def instance(self) -> Instance:
        """Where this machine runs. Raises MetadataError off an instance."""

    def accelerator(self) -> AcceleratorState: ...

    def create_accelerator(self, wanted: Accelerator) -> None:
        """Creates it, or changes the one there is."""

    def delete_accelerator(self) -> None: ...

    def create_bucket(self) -> None: ...


class Services(Protocol):
    """Everything outside the App. Attributes change at any time, from any thread; reading one is always cheap."""

    readonly: bool
    """True where nothing may be written, deleted or started."""

    def begin(self) -> None:
        """Begins to make ready what takes time; called once, when the console has painted its first screen.

        Returns at once.
        """

    @property
    def state(self) -> ConsoleState: ...

    @property
    def profile(self) -> Profile | None:
        """The profile of the state where it is usable, else None."""

    @property
    def run(self) -> RunHandle | None:
        """The newest run, also after its end."""

    @property
    def upload(self) -> UploadHandle | None:
        """The newest upload, also after its end."""

    @property
    def own_upload(self) -> OwnUploadHandle | None:
        """The newest upload of this process, also after its end."""

    @property
    def sample(self) -> TelemetrySample | None:
        """The sampler's latest look at the GPUs and the host, None before the first."""

    def settings(self) -> Sequence[Setting]:
        """The profile in use, setting by setting; returns at once."""

    def credentials(self) -> Credentials:
        """The key pair in use. Raises ConsoleError where there is none."""

    def store(self, kind: EndpointKind) -> Store:
        """The bucket through an endpoint. Raises ConsoleError where the profile has no such endpoint."""

    def preflight(self, kind: EndpointKind) -> None:
        """Looks whether the endpoint answers a signed request. Raises ConsoleError with the reason."""

    def start_run(self, settings: TrainSettings) -> RunHandle:
        """Starts a run and makes it `run`. Raises ConsoleError while another is alive."""

    def plan_upload(
        self, settings: UploadSettings, stop: threading.Event, on_progress: Callable[[int], None]
    ) -> UploadPlan:
        """Goes through the source until `stop` is set. Raises ConsoleError, or Stopped."""

    def start_upload(self, settings: UploadSettings) -> UploadHandle:
        """Starts an upload and makes it `upload`. Raises ConsoleError while another is alive."""

    def use_profile(self, name: str) -> None:
        """Works on another profile from now on, "sandbox" for the embedded server; every command-line option stays.

        Returns before it is ready. Raises ConsoleError, and changes nothing, while a run or an upload is alive.
        """

    def reload(self) -> None:
        """Reads the settings and looks for the credentials again, like `use_profile` with the profile in use."""

    def bucket_setup(self) -> BucketSetup:
        """Returns at once. Raises ConsoleError while no profile is known; credentials are not needed yet."""
