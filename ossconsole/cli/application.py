"""Everything the console works with, outside of it: the bucket, the run, the upload, the sampler. Outlives the App."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ossconsole.cli.options import OpenTarget, Target
from ossconsole.config.credentials import Credentials
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.paths import state_dir
from ossconsole.config.profile import Profile
from ossconsole.config.resolve import Resolution
from ossconsole.terminal.logs import register_secret
from ossconsole.training.claim import ClaimedError
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.services import RunHandle, Setting, Stage, StageState, UploadHandle

if TYPE_CHECKING:
    from ossconsole.cli.bucket_setup import BucketSetup
    from ossconsole.dataset.plan import UploadPlan
    from ossconsole.dataset.settings import UploadSettings
    from ossconsole.dataset.upload import UploadJob
    from ossconsole.storage.client import ObjectStore
    from ossconsole.telemetry.sampler import Sampler, TelemetrySample
    from ossconsole.training.attached import AttachedUpload
    from ossconsole.training.control import ControlServer
    from ossconsole.training.run import TrainingRun

log = logging.getLogger(__name__)

DEMO_SETTINGS = TrainSettings(epochs=30, batch_size=100, image_size=24, workers=1, learning_rate=0.03)
"""A run of a few minutes, small enough that two cores train faster than the simulated standard endpoint delivers."""

_SAMPLE_SIZE = 32
_PREFLIGHT_TIMEOUT_S = 5.0
_STAGES = ("sandbox", "sample pictures", "upload")


class Application:
    """The services of the screens (see `ossconsole.tui.services.Services`), made of real parts.

    `begin` returns at once; what takes time (the sandbox, its sample dataset) goes on in a thread and shows as stages.
    With `demo` a run starts when the dataset is there. What another process does with the same bucket is shown and
    steered as if it were done here; it goes on when this console leaves.
    """

    def __init__(self, target: Target, *, readonly: bool = False, demo: bool = False) -> None:
        self.readonly = readonly
        self._target = target
        self._demo = demo
        self._opened: OpenTarget | None = None
        self._resolution: Resolution | None = None
        self._stages: dict[str, Stage] = {}
        self._run: RunHandle | None = None
        self._upload: UploadJob | AttachedUpload | None = None
        # What this process does itself, and lets others see and steer (`ossconsole.training.control.Workplace`).
        self.own_run: TrainingRun | None = None
        self.own_upload: UploadJob | None = None
        self._control: ControlServer | None = None
        self._sampler: Sampler | None = None
        self._stores: dict[EndpointKind, ObjectStore] = {}
        self._resources = contextlib.ExitStack()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Finds out what to open. Raises SettingsError when flags, environment or files contradict each other."""
        self._resolution = self._target.resolve()
        uses_sandbox = self._resolution is None
        self._stages = {label: Stage(label, StageState.WAITING) for label in _STAGES} if uses_sandbox else {}

    @property
    def busy(self) -> bool:
        """True while work of this process goes on."""
        run, upload = self.own_run, self.own_upload
        return (run is not None and run.alive) or (upload is not None and upload.alive)

    def leave_alone(self) -> None:
        """Nobody watches any more: a run that cannot go on ends instead of waiting, and no other is started."""
        self._demo = False
        if self.own_run is not None:
            self.own_run.attended = False

    def wait(self, timeout_s: float) -> None:
        """Waits for the end of the work of this process, at most so long."""
        run, upload = self.own_run, self.own_upload
        if run is not None and run.alive:
            run.wait(timeout_s)
        elif upload is not None and upload.alive:
            upload.join(timeout_s)

    def end_work(self) -> None:
        """Asks the run to end with a checkpoint, and the upload to end; returns at once."""
        if self.own_upload is not None:
            self.own_upload.cancel()
        if self.own_run is not None:
            self.own_run.stop()

    def close(self, say: Callable[[str], None]) -> None:
        """Ends everything in order: an upload keeps its journal, a run writes a checkpoint. Says what it waits for."""
        run, upload = self.own_run, self.own_upload
        if upload is not None and upload.alive:
            say("Stopping the upload; it goes on where it stopped when it is started again.")
            upload.cancel()
        if run is not None and run.alive:
            say("Stopping the run, with a checkpoint.")
            run.stop()
            run.wait_for_stop()
            say(f"Its record is {run.record_path}.")
        if self._control is not None:
            self._control.close()
        if self._sampler is not None:
            self._sampler.stop()
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._resources.close()

    # Services

    def begin(self) -> None:
        gc.enable()  # which `open_console` has put off
        from ossconsole.telemetry.sampler import Sampler

        self._make_ready_behind()
        self._sampler = Sampler()
        self._sampler.start()

    @property
    def profile(self) -> Profile | None:
        return self._opened.profile if self._opened else None

    @property
    def stages(self) -> Sequence[Stage]:
        return tuple(self._stages.values())

    @property
    def run(self) -> RunHandle | None:
        return self._run

    @property
    def upload(self) -> UploadHandle | None:
        return self._upload

    @property
    def sample(self) -> TelemetrySample | None:
        return self._sampler.latest() if self._sampler is not None else None

    def settings(self) -> Sequence[Setting]:
        found = self._opened or self._resolution
        if found is None:
            return ()
        profile = found.profile
        return [
            Setting("profile", profile.name, "simulated, on this machine" if profile.simulated else ""),
            *(Setting(name, str(getattr(profile, name) or ""), str(origin)) for name, origin in found.origins.items()),
        ]

    def credentials(self) -> Credentials:
        return self._ready().credentials()

    def store(self, kind: EndpointKind) -> ObjectStore:
        from ossconsole.storage.client import ObjectStore

        opened = self._ready()
        with self._lock:
            if kind not in self._stores:
                self._stores[kind] = ObjectStore(opened.profile, opened.credentials, kind)
            return self._stores[kind]

    def preflight(self, kind: EndpointKind) -> None:
        from ossconsole.storage.client import ObjectStore

        opened = self._ready()
        store = ObjectStore(opened.profile, opened.credentials, kind, timeout_s=_PREFLIGHT_TIMEOUT_S, attempts=1)
        try:
            store.list_page(f"{opened.profile.dataset_prefix}/", delimiter="", max_keys=1)
        finally:
            store.close()

    def use_profile(self, name: str) -> None:
        states = [stage.state for stage in self.stages]
        if self.busy:
            raise ConsoleError("A run or an upload is still going on.", remedy="Stop it before changing the profile.")
        if StageState.ACTIVE in states or (self._opened is None and StageState.FAILED not in states):
            raise ConsoleError("The profile in use is still being made ready.", remedy="Wait a moment.")
        target = Target({"profile": name})
        target.resolve()
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()
            self._opened = None
            self._resources.close()
        self._run = self._upload = None
        self._target, self._demo = target, False
        self.open()
        self._make_ready_behind()

    def bucket_setup(self) -> BucketSetup:
        from ossconsole.cli.bucket_setup import BucketSetup

        opened = self._ready()
        return BucketSetup(opened.profile, opened.credentials, self.readonly)

    def start_run(self, settings: TrainSettings) -> RunHandle:
        from ossconsole.training.run import TrainingRun

        self._refuse_readonly()
        opened = self._ready()
        if self._run is not None and self._run.alive:
            name = self._run.record_path.stem
            raise ConsoleError(f"The run {name} is still going on.", remedy="Stop it first (s).")
        try:
            run = TrainingRun(opened.profile, opened.credentials, settings, attended=True)
        except ClaimedError:
            self._meet_others(opened)
            raise
        run.start()
        self._run = self.own_run = run
        return run

    def plan_upload(
        self, settings: UploadSettings, stop: threading.Event, on_progress: Callable[[int], None]
    ) -> UploadPlan:
        from ossconsole.dataset.plan import plan_upload

        opened = self._ready()
        return plan_upload(opened.profile, opened.credentials, settings, stop=stop, on_progress=on_progress)

    def start_upload(self, settings: UploadSettings) -> UploadHandle:
        self._refuse_readonly()
        return self._start_upload(settings)

    # Making ready

    def _make_ready_behind(self) -> None:
        threading.Thread(target=self._make_ready, name="make-ready", daemon=True).start()

    def _make_ready(self) -> None:
        uses_sandbox = self._resolution is None
        stage = _STAGES[0] if uses_sandbox else "profile"
        try:
            if uses_sandbox:
                self._stage(stage, StageState.ACTIVE)
            opened = self._resources.enter_context(self._target.open(say=log.info))
            self._register_secrets(opened)
            self._opened = opened
            self._meet_others(opened)
            if opened.sandbox is None:
                return
            self._stage(stage, StageState.DONE, f"{opened.profile.standard_endpoint}, speeds are simulated")
            self._fill_sandbox(opened)
            if self._demo and self._run is None:
                with contextlib.suppress(ClaimedError):  # another demo was faster: its run is shown
                    self.start_run(DEMO_SETTINGS)
        except ConsoleError as error:
            log.error("Making ready failed: %s", error)  # noqa: TRY400 - the message says it all
            self._fail_stage(stage, error)

    def _meet_others(self, opened: OpenTarget) -> None:
        """Lets other processes find this one, and shows what they do with the same bucket. Raises ConsoleError."""
        from ossconsole.training.attached import AttachedRun, AttachedUpload
        from ossconsole.training.control import ControlServer, peers

        self._control = self._control or ControlServer(self)
        profile = opened.profile
        for report in peers():
            if (report.region, report.bucket) != (profile.region, profile.bucket):
                continue
            if report.run and not (self._run is not None and self._run.alive):
                self._run = AttachedRun(report.run, report.pid)
            upload = report.upload
            if upload is not None and not upload.progress.phase.final and not (self._upload and self._upload.alive):
                self._upload = AttachedUpload(report.pid, upload)

    def _fill_sandbox(self, opened: OpenTarget) -> None:
        """Draws and uploads the sample pictures where the sandbox has no dataset yet. Raises ConsoleError."""
        from ossconsole.dataset.formats import SampleFormat
        from ossconsole.dataset.manifest import ManifestMissingError, read_manifest
        from ossconsole.dataset.sample_data import make_sample_pictures
        from ossconsole.dataset.settings import UploadSettings

        _, pictures, upload = _STAGES
        if self._upload is not None:
            self._stage(upload, StageState.ACTIVE, "by another console")
            self._upload.join()
        if self._demo and self._run is None:
            threading.Thread(target=_load_training, name="load-training", daemon=True).start()
        try:
            manifest = read_manifest(self.store(EndpointKind.STANDARD), opened.profile.dataset_prefix)
        except ManifestMissingError:
            self._stage(pictures, StageState.ACTIVE)
            source = state_dir() / "sample-pictures"
            count = make_sample_pictures(source)
            self._stage(pictures, StageState.DONE, f"{count} drawn")
            self._stage(upload, StageState.ACTIVE)
            settings = UploadSettings(source=source, format=SampleFormat.IMAGE_U8, size=_SAMPLE_SIZE)
            summary = self._start_upload(settings).wait()
            self._stage(upload, StageState.DONE, f"{summary.uploaded} samples in {summary.seconds:.1f} s")
        else:
            count = sum(len(samples) for samples in manifest.splits.values())
            self._stage(pictures, StageState.DONE, "from last time")
            self._stage(upload, StageState.DONE, f"{count} samples are in the bucket")

    def _start_upload(self, settings: UploadSettings) -> UploadJob:
        from ossconsole.dataset.upload import UploadJob

        opened = self._ready()
        if self._upload is not None and self._upload.alive:
            raise ConsoleError("An upload is still going on.", remedy="Wait for it, or cancel it on the Upload screen.")
        job = UploadJob(opened.profile, opened.credentials, settings)
        job.start()
        self.own_upload = self._upload = job
        return job

    def _register_secrets(self, opened: OpenTarget) -> None:
        """Lets the log's filter know what must never be written."""
        credentials = opened.credentials()
        register_secret(credentials.access_key_secret)
        if credentials.security_token is not None:
            register_secret(credentials.security_token)

    def _ready(self) -> OpenTarget:
        if self._opened is None:
            failed = [stage.detail for stage in self._stages.values() if stage.state is StageState.FAILED]
            raise SettingsError("There is no bucket to work on yet.", remedy=failed[0] if failed else "Wait a moment.")
        return self._opened

    def _refuse_readonly(self) -> None:
        if self.readonly:
            raise SettingsError("The console was started with --readonly.", remedy="Start it without.")

    def _stage(self, label: str, state: StageState, detail: str = "") -> None:
        self._stages = {**self._stages, label: Stage(label, state, detail)}

    def _fail_stage(self, otherwise: str, error: ConsoleError) -> None:
        """Marks the stage that was going on, or `otherwise`, as failed."""
        active = [label for label, stage in self._stages.items() if stage.state is StageState.ACTIVE]
        self._stage(active[0] if active else otherwise, StageState.FAILED, str(error))


def _load_training() -> None:
    """Imports torch while the samples are still being uploaded; the run's thread then finds it loaded."""
    importlib.import_module("ossconsole.training.session")
