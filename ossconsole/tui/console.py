"""What a screen may ask of the console, and the console of the rest of the program, as protocols.

The CLI composes the real services, tests use fakes. Attributes, and the methods that say so, return immediately. Every
other method of a service may block (a request, another process, a lock): it is called in a thread, never on the event
loop, and raises ConsoleError. Runs, uploads and the sampler belong to their own threads and outlive the App.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:  # types only: the first paint does not wait for the layers below
    from textual.worker import Worker

    from ossconsole.config.credentials import Credentials
    from ossconsole.config.endpoints import EndpointKind
    from ossconsole.config.errors import ConsoleError
    from ossconsole.config.metadata import Instance
    from ossconsole.config.profiles import Profile
    from ossconsole.dataset.upload.job import UploadSettings, UploadSummary
    from ossconsole.dataset.upload.plan import UploadPlan
    from ossconsole.dataset.upload.progress import SamplePreview, UploadProgress
    from ossconsole.storage.accelerator import Accelerator
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.jobs.job import Job
    from ossconsole.storage.jobs.warm import WarmUp
    from ossconsole.storage.probe.report import OnStep, ProbeReport
    from ossconsole.telemetry.events import Event, RunState
    from ossconsole.telemetry.sampler import TelemetrySample
    from ossconsole.training.run_evaluation import EvaluationJob
    from ossconsole.training.settings import TrainSettings


class WorkHandle(Protocol):
    """A run or an upload, in progress or ended."""

    @property
    def is_remote(self) -> bool:
        """True for the work of another process, which continues when this console quits."""

    @property
    def alive(self) -> bool:
        """False once the work has ended."""

    def pause(self) -> None:
        """Stops after the step or the samples in progress, until `resume`."""

    def resume(self) -> None:
        """Continues after `pause`."""


class RunHandle(WorkHandle, Protocol):
    """A training run in progress or ended; `ossconsole.training.run.TrainingRun` is one."""

    @property
    def state(self) -> RunState:
        """The last state that the run reported."""

    @property
    def reading(self) -> float | None:
        """How much of a long record was read, 0 to 1, while `drain` gives what happened before; else None."""

    @property
    def refused(self) -> int:
        """The number of requests that were refused or not answered; `drain` gives the reasons as warnings."""

    @property
    def record_path(self) -> Path:
        """The run record, a JSON lines file."""

    def drain(self) -> list[Event]:
        """The events since the last call, oldest first."""

    def stop(self) -> None:
        """Requests a checkpoint and the end of the run; may block, as the request also goes to its other processes."""

    def switch(self, kind: EndpointKind, reason: str) -> None:
        """Fetches all further batches through `kind`; `reason` goes into the event log."""

    def checkpoint(self) -> None:
        """Requests a checkpoint; the run continues."""

    def profile(self) -> None:
        """Requests a profile of the next steps."""

    def set_lr(self, lr: float) -> None:
        """Sets the peak learning rate; the schedule continues from it."""


class UploadHandle(WorkHandle, Protocol):
    """An upload in progress or ended; `ossconsole.dataset.upload.job.UploadJob` is one."""

    @property
    def source(self) -> str:
        """The folder, archive or table that is uploaded."""

    @property
    def target(self) -> str:
        """The URI of the dataset; "" where it is not known."""

    def progress(self) -> UploadProgress:
        """The counts and rates at this moment."""

    def summary(self) -> UploadSummary:
        """The result; complete once the upload has ended."""

    def cancel(self) -> None:
        """Ends the upload; the journal keeps what was sent."""

    def set_parallelism(self, number: int) -> None:
        """Sets how many samples are sent simultaneously."""

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Caps the bytes sent per second; None removes the cap."""


class OwnUploadHandle(UploadHandle, Protocol):
    """An upload that this process does."""

    @property
    def settings(self) -> UploadSettings:
        """The settings it was started with."""

    def preview(self) -> SamplePreview | None:
        """The newest prepared sample; None before the first."""


class Setting(msgspec.Struct, frozen=True):
    """One setting of the profile in use, and the origin of its value (command line, environment, file, default)."""

    name: str
    value: str
    origin: str


class StageState(str, enum.Enum):
    """The progress of a stage."""

    WAITING = "waiting"
    ACTIVE = "active"
    DONE = "done"
    FAILED = "failed"


class PreparationStage(msgspec.Struct, frozen=True):
    """One part of the work before the first run (the sandbox, the sample images, their upload).

    `share` is the part that is done, 0 to 1; None where unknown.
    """

    label: str
    state: StageState
    detail: str = ""
    share: float | None = None


class ConsoleState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the bucket of the profile can be used: one of the four states below.

    `profile` is None only until the sandbox, which makes it, has started. `stages` is the work before the first run,
    also after its end; empty where there is none.
    """

    profile: Profile | None = None
    stages: tuple[PreparationStage, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the bucket can be listed, written and trained on."""
        return isinstance(self, Ready) or (isinstance(self, Starting) and self.opened)


class Starting(ConsoleState, frozen=True, kw_only=True):
    """The credentials are being read, or the sandbox starts; once it is `opened`, its sample dataset is prepared."""

    opened: bool = False


class Ready(ConsoleState, frozen=True, kw_only=True):
    """The bucket can be used and all preparation is done."""


class NoCredentials(ConsoleState, frozen=True, kw_only=True):
    """No source has a key pair for the profile; `searched` has a line for each source."""

    searched: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of the Setup screen that helps: `k`, or `e` where an AccessKey entered there would not be used."""
        return "k" if self.profile is None or self.profile.reads_key_file else "e"


class Unavailable(ConsoleState, frozen=True, kw_only=True):
    """The profile, or the sandbox, cannot be used; `reason` says why and what to do."""

    reason: str


class AcceleratorState(msgspec.Struct, frozen=True):
    """The accelerator of the endpoint's zone, None where it has none, and warnings before training through it.

    `others` are those of other zones: they are billed, too.
    """

    accelerator: Accelerator | None
    accelerator_warnings: tuple[str, ...] = ()
    others: tuple[Accelerator, ...] = ()


class BucketAdmin(Protocol):
    """Tests and changes the bucket of the profile in use; every method blocks and raises ConsoleError."""

    def probe(self, on_step: OnStep) -> ProbeReport:
        """Tests both endpoints and the permissions of the key; `on_step` is called from other threads."""

    def instance(self) -> Instance:
        """Instance type, region and zone of this machine. Raises MetadataError outside Alibaba Cloud."""

    def accelerator(self) -> AcceleratorState:
        """Reads the accelerator of the bucket."""

    def save_accelerator(self, wanted: Accelerator, present: Accelerator | None) -> None:
        """Creates an accelerator, or changes `present`, which was read before and must not have changed since."""

    def delete_accelerator(self, zone: str) -> None:
        """Deletes the accelerator of a zone; its billing ends."""

    def create_bucket(self) -> None:
        """Creates the bucket, private, storage class Standard."""


class Services(Protocol):
    """Everything outside the App. Attributes change at any time, from any thread; reading one is always cheap."""

    readonly: bool
    """True where all writes are disabled: no upload, run, deletion or change of the bucket."""

    def begin(self) -> None:
        """Starts the slow preparation in a thread; called once, after the first paint. Returns immediately."""

    @property
    def state(self) -> ConsoleState:
        """The same object until something changes."""

    @property
    def profile(self) -> Profile | None:
        """The profile of the state where it is usable, else None."""

    @property
    def run(self) -> RunHandle | None:
        """The newest run, also after its end; None before the first."""

    @property
    def is_demo(self) -> bool:
        """True where `run` is the demo's, which this process started."""

    @property
    def upload(self) -> UploadHandle | None:
        """The newest upload, also after its end; None before the first."""

    @property
    def own_upload(self) -> OwnUploadHandle | None:
        """The newest upload of this process, also after its end; None before the first."""

    @property
    def sample(self) -> TelemetrySample | None:
        """The newest sample of GPUs and host, None before the first."""

    def settings(self) -> Sequence[Setting]:
        """The settings of the profile in use; returns immediately."""

    def credentials(self) -> Credentials:
        """The key pair in use. Raises ConsoleError where there is none."""

    def store(self, kind: EndpointKind) -> ObjectStore:
        """The bucket through an endpoint. Raises ConsoleError where the profile has no such endpoint."""

    def preflight(self, kind: EndpointKind) -> None:
        """Tests that the endpoint answers a signed request. Raises ConsoleError with the reason."""

    def settings_to_resume(self, settings: TrainSettings) -> dict[str, Any]:
        """The settings that the checkpoint of `settings.resume` needs and that differ from `settings`."""

    def start_run(self, settings: TrainSettings, dataset_prefix: str = "") -> RunHandle:
        """Starts a run and makes it `run`. Raises ConsoleError while another is alive.

        An empty `dataset_prefix` is the profile's.
        """

    def plan_upload(
        self, settings: UploadSettings, stop: threading.Event, on_progress: Callable[[int], None]
    ) -> UploadPlan:
        """Scans the source until `stop` is set. Raises ConsoleError, or Stopped.

        `on_progress` gets the number of files scanned, in the calling thread.
        """

    def start_upload(self, settings: UploadSettings) -> UploadHandle:
        """Starts an upload and makes it `upload`. Raises ConsoleError while another is alive."""

    def plan_warm_up(self, *, again: bool = False) -> WarmUp:
        """A warm-up of the profile's dataset with its plan, not started; `again` also reads what was read before.

        Raises ConsoleError where nothing of it can be cached.
        """

    @property
    def evaluation(self) -> EvaluationJob | None:
        """The newest evaluation of this process, also after its end; None before the first."""

    def start_evaluation(self, record: Path) -> EvaluationJob:
        """Evaluates the checkpoint of the run with this record, and makes that `evaluation`.

        Raises ConsoleError while a run or another evaluation is alive, and where the profile cannot read the
        checkpoint.
        """

    def use_profile(self, name: str) -> None:
        """Opens another profile, "sandbox" for the embedded server; command-line options still take precedence.

        Returns before it is ready. Raises ConsoleError, without any change, while a run or an upload is alive.
        """

    def reload(self) -> None:
        """Reads settings and credentials again, like `use_profile` with the profile in use."""

    def start_demo(self) -> None:
        """Starts the demo's run on the sandbox once its sample dataset is complete. Raises ConsoleError."""

    def slow_down_sandbox(self, objects_per_s: float) -> None:
        """Changes the simulated speed of the sandbox's standard endpoint; returns immediately."""

    def bucket_setup(self) -> BucketAdmin:
        """Returns immediately. Raises ConsoleError while no profile is known; credentials are not needed yet."""


class WorkChip(msgspec.Struct, frozen=True):
    """A run, an upload or the jobs on objects in the mode bar: a long and a short variant, and the mode that shows it.

    Both are pieces of text with the names of their styles. `names_endpoint` is True where the text names the endpoint
    in use; `failed` where the work needs attention.
    """

    mode: str
    long: Sequence[tuple[str, str]]
    short: Sequence[tuple[str, str]]
    failed: bool = False
    names_endpoint: bool = False


class Console(Protocol):
    """The part of the App (`ossconsole.tui.app.ConsoleApp`) that a screen may use; call it on the event loop."""

    services: Services
    price_per_hour: float
    """What an hour of the training machine costs in CNY; 0 where that is not known."""
    jobs: list[Job]
    """Downloads and other jobs on objects, oldest first; they outlive the screen that started them."""

    @property
    def current_mode(self) -> str:
        """The mode that shows: setup, browse, upload or train."""

    @property
    def endpoint(self) -> EndpointKind | None:
        """The endpoint that delivers the batches of the run, or will; None without a usable profile."""

    @property
    def last_checkpoint(self) -> str:
        """The key of the checkpoint that the run has written last; "" before the first."""

    @property
    def chips(self) -> Sequence[WorkChip]:
        """The run, the upload and the jobs in progress, and those that failed."""

    @property
    def now(self) -> float:
        """The time in Unix seconds."""

    def show_error(self, error: ConsoleError) -> None:
        """Shows an error as a toast: what happened, and what to do next."""

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Reports a failed worker of any screen."""

    def action_mode(self, mode: str) -> None:
        """Shows another mode; ignored while a dialog is open."""

    def action_work(self) -> None:
        """Shows the work in progress, the failed one first; further calls show the others."""

    def new_run(self, resume: str = "", known: Mapping[str, Any] | None = None) -> object:
        """Opens the form of a new run and starts the run; `resume` is the key of a checkpoint, which shows Train.

        `known` are the settings of the run that wrote the checkpoint, as far as they are known.
        """

    def remember(self, form: str, profile: str, values: dict[str, Any]) -> bool:
        """Keeps the values of a form for the next session. False, after a toast with the reason, where that fails."""
