"""Everything the console works with, outside of it: the bucket, the run, the upload, the sampler. Outlives the App."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from ossconsole.cli.options import OpenTarget, Target
from ossconsole.cli.sample import DEMO_SETTINGS, FillProgress, FillStage, fill_sandbox
from ossconsole.config.credentials import Credentials
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.config.resolve import Resolution
from ossconsole.terminal.logs import register_secret
from ossconsole.training.checkpoints.claim import ClaimedError
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.console import (
    ConsoleState,
    Failed,
    NoCredentials,
    Ready,
    RunHandle,
    Setting,
    Stage,
    StageState,
    Starting,
    UploadHandle,
)

if TYPE_CHECKING:
    from ossconsole.cli.bucket_setup import BucketSetup
    from ossconsole.dataset.upload.job import UploadJob, UploadSettings
    from ossconsole.dataset.upload.plan import UploadPlan
    from ossconsole.storage.client import ObjectStore
    from ossconsole.telemetry.sampler import Sampler, TelemetrySample
    from ossconsole.training.remote.attached import AttachedUpload
    from ossconsole.training.remote.control import ControlServer
    from ossconsole.training.run import TrainingRun

log = logging.getLogger(__name__)

_PREFLIGHT_TIMEOUT_S = 5.0
_STAGES = ("sandbox", *map(str, FillStage))


class Application:
    """The services of the screens (see `ossconsole.tui.console.Services`), made of real parts.

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
        self._state: ConsoleState = Starting()
        self._run: RunHandle | None = None
        self._upload: UploadJob | AttachedUpload | None = None
        # What this process does itself, and lets others see and steer (`ossconsole.training.remote.control.Workplace`).
        self.own_run: TrainingRun | None = None
        self.own_upload: UploadJob | None = None
        self._control: ControlServer | None = None
        self._sampler: Sampler | None = None
        self._stores: dict[EndpointKind, ObjectStore] = {}
        self._resources = contextlib.ExitStack()
        self._lock = threading.Lock()
        # Held while a run or an upload is started or another profile is opened, which takes as long as other processes
        # take to answer.
        self._changing = threading.Lock()

    def open(self) -> None:
        """Finds out what to open. Raises SettingsError when flags, environment or files contradict each other."""
        self._start_on(self._target, self._target.resolve())

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
            upload.wait(timeout_s)

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

        self._sampler = Sampler()
        self._sampler.start()
        self._make_ready_behind()

    @property
    def state(self) -> ConsoleState:
        return self._state

    @property
    def profile(self) -> Profile | None:
        state = self._state
        return state.profile if state.usable else None

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
        from ossconsole.storage.retry import NO_RETRY

        opened = self._ready()
        store = ObjectStore(opened.profile, opened.credentials, kind, timeout_s=_PREFLIGHT_TIMEOUT_S, retry=NO_RETRY)
        try:
            store.list_page(f"{opened.profile.dataset_prefix}/", delimiter="", max_keys=1)
        finally:
            store.close()

    def use_profile(self, name: str) -> None:
        self._reopen(self._target.with_profile(name))

    def reload(self) -> None:
        self._reopen(self._target)

    def bucket_setup(self) -> BucketSetup:
        from ossconsole.cli.bucket_setup import BucketSetup
        from ossconsole.config.credential_sources import find_credentials

        opened, resolution = self._opened, self._resolution
        if opened is not None:
            return BucketSetup(opened.profile, opened.credentials, self.readonly)
        if resolution is None:
            raise self._not_usable()
        profile = resolution.profile

        def credentials() -> Credentials:
            return find_credentials(profile)()

        return BucketSetup(profile, credentials, self.readonly)

    def start_run(self, settings: TrainSettings) -> RunHandle:
        self._refuse_readonly()
        self._refuse_unprepared()
        return self._start_run(settings)

    def _start_run(self, settings: TrainSettings) -> RunHandle:
        from ossconsole.training.run import TrainingRun

        with self._changing:
            opened = self._ready()
            assert self._sampler is not None  # noqa: S101 - nothing is ready before `begin`
            if self._run is not None and self._run.alive:
                name = self._run.record_path.stem
                raise ConsoleError(f"The run {name} is still going on.", remedy="Stop it first (s).")
            try:
                run = TrainingRun(opened.profile, opened.credentials, settings, self._sampler, attended=True)
            except ClaimedError:
                self._meet_others(opened)
                raise
            run.start()
            self._run = self.own_run = run
            return run

    def plan_upload(
        self, settings: UploadSettings, stop: threading.Event, on_progress: Callable[[int], None]
    ) -> UploadPlan:
        from ossconsole.dataset.upload.plan import plan_upload

        opened = self._ready()
        return plan_upload(opened.profile, opened.credentials, settings, stop=stop, on_progress=on_progress)

    def start_upload(self, settings: UploadSettings) -> UploadHandle:
        self._refuse_readonly()
        self._refuse_unprepared()
        return self._start_upload(settings)

    # Making ready

    def _start_on(self, target: Target, resolution: Resolution | None) -> None:
        stages = tuple(Stage(label, StageState.WAITING) for label in _STAGES) if resolution is None else ()
        self._target, self._resolution = target, resolution
        self._state = Starting(profile=resolution.profile if resolution else None, stages=stages)

    def _reopen(self, target: Target) -> None:
        """Works on `target` from now on. Raises ConsoleError, and changes nothing, where that cannot be done now."""
        with self._changing, self._lock:
            if self.busy:
                raise ConsoleError(
                    "A run or an upload is still going on.", remedy="Stop it before changing the profile."
                )
            if isinstance(self._state, Starting):
                raise ConsoleError("The profile in use is still being made ready.", remedy="Wait a moment.")
            self._start_on(target, target.resolve())
            for store in self._stores.values():
                store.close()
            self._stores.clear()
            self._opened = self._run = self._upload = None
            self._demo = False
            self._resources.close()
        self._make_ready_behind()

    def _make_ready_behind(self) -> None:
        threading.Thread(target=self._make_ready, name="make-ready", daemon=True).start()

    def _make_ready(self) -> None:
        from ossconsole.config.credential_sources import NoCredentialsError

        try:
            opened = self._open_target()
            self._meet_others(opened)  # the bucket can be used meanwhile: a silent process is waited for
            if opened.sandbox is not None:
                self._prepare_sandbox(opened)
                self._state = Ready(profile=opened.profile, stages=self._state.stages)
        except NoCredentialsError as error:
            log.info("Making ready failed: %s", error)
            self._state = NoCredentials(profile=self._state.profile, looked=tuple(error.looked))
        except ConsoleError as error:
            log.error("Making ready failed: %s", error)  # noqa: TRY400 - the message says it all
            self._fail(str(error))
        except Exception as error:
            log.exception("Making ready failed")  # no state may be left at "starting" for ever
            self._fail(f"Unexpected {type(error).__name__}: {error}. The log (f12) has the traceback.")

    def _open_target(self) -> OpenTarget:
        uses_sandbox = self._resolution is None
        if uses_sandbox:
            self._stage(_STAGES[0], StageState.ACTIVE)
        opened = self._resources.enter_context(self._target.open(say=log.info))
        self._register_secrets(opened)
        self._opened = opened
        if opened.sandbox is not None:
            opened.sandbox.tell = self._tell_of_sandbox
            self._state = Starting(profile=opened.profile, stages=self._state.stages, opened=True)
            self._stage(_STAGES[0], StageState.DONE, f"{opened.profile.standard_endpoint}, speeds are simulated")
        else:
            self._state = Ready(profile=opened.profile)
        return opened

    def _prepare_sandbox(self, opened: OpenTarget) -> None:
        """Fills it, and starts the run of the demo."""
        self._fill_sandbox(opened)
        if self._demo and self._run is None:
            with contextlib.suppress(ClaimedError):  # another demo was faster: its run is shown
                self._start_run(DEMO_SETTINGS)

    def _meet_others(self, opened: OpenTarget) -> None:
        """Lets other processes find this one, and shows what they do with the same bucket. Raises ConsoleError."""
        from ossconsole.training.remote.attached import AttachedRun, AttachedUpload
        from ossconsole.training.remote.control import ControlServer, peers

        self._control = self._control or ControlServer(self)
        profile = opened.profile
        for report in peers():
            if self._opened is not opened:
                return  # another profile has been opened while they were asked
            if (report.region, report.bucket) != (profile.region, profile.bucket):
                continue
            if report.run and not (self._run is not None and self._run.alive):
                self._run = AttachedRun(report.run, report.pid)
            upload = report.upload
            if upload is not None and not upload.progress.phase.final and not (self._upload and self._upload.alive):
                self._upload = AttachedUpload(report.pid, upload)

    def _fill_sandbox(self, opened: OpenTarget) -> None:
        """Makes the sandbox's sample dataset where it is missing, stage by stage. Raises ConsoleError."""
        if self._demo and self._run is None:
            threading.Thread(target=_load_training, name="load-training", daemon=True).start()
        self._stage(str(FillStage.PICTURES), StageState.ACTIVE, "looking for a dataset")
        fill_sandbox(opened, self._show_filling, start_upload=self._start_upload)

    def _show_filling(self, progress: FillProgress) -> None:
        self._stage(str(progress.stage), StageState.DONE if progress.over else StageState.ACTIVE, progress.words)

    def _tell_of_sandbox(self, message: str, remedy: str) -> None:
        """The sandbox's process ended, or runs again."""
        log.warning("%s %s", message, remedy)
        run = self.own_run
        if run is not None and run.alive:
            run.warn(message, remedy)

    def _start_upload(self, settings: UploadSettings) -> UploadJob:
        from ossconsole.dataset.upload.plan import create_upload

        with self._changing:
            opened = self._ready()
            if self._upload is not None and self._upload.alive:
                raise ConsoleError(
                    "An upload is still going on.", remedy="Wait for it, or cancel it on the Upload screen."
                )
            job = create_upload(opened.profile, opened.credentials, settings)
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
            raise self._not_usable()
        return self._opened

    def _not_usable(self) -> SettingsError:
        """Why there is no bucket to work on."""
        state = self._state
        if isinstance(state, NoCredentials):
            return SettingsError("There are no credentials yet.", remedy="Press 1, then k, to enter an AccessKey.")
        remedy = state.reason if isinstance(state, Failed) else "Wait a moment."
        return SettingsError("There is no bucket to work on yet.", remedy=remedy)

    def _refuse_readonly(self) -> None:
        if self.readonly:
            raise SettingsError("The console was started with --readonly.", remedy="Start it without.")

    def _refuse_unprepared(self) -> None:
        if isinstance(self._state, Starting) and self._state.opened:
            raise ConsoleError("The sample dataset is still being prepared.", remedy="Wait until it is uploaded.")

    def _stage(self, label: str, state: StageState, detail: str = "") -> None:
        stages = {stage.label: stage for stage in self._state.stages} | {label: Stage(label, state, detail)}
        self._state = msgspec.structs.replace(self._state, stages=tuple(stages.values()))

    def _fail(self, reason: str) -> None:
        """Marks the stage that was active as failed; the bucket stays usable where it was opened."""
        for stage in self._state.stages:
            if stage.state is StageState.ACTIVE:
                self._stage(stage.label, StageState.FAILED, reason)
        opened = self._opened
        if opened is None:
            self._state = Failed(profile=self._state.profile, stages=self._state.stages, reason=reason)
            return
        if not self._state.stages:
            self._stage("profile", StageState.FAILED, reason)
        self._state = Ready(profile=opened.profile, stages=self._state.stages)


def _load_training() -> None:
    """Imports torch while the samples are still being uploaded; the run's thread then finds it loaded."""
    importlib.import_module("ossconsole.training.session")
