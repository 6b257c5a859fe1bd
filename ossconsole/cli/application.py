"""The services behind the screens: the bucket, the run, the upload, the sampler. They outlive the App."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ossconsole.cli.options import OpenTarget, Target
from ossconsole.cli.sandbox import DEMO_SETTINGS, FillProgress, FillStage, fill_sandbox, start_slow_down
from ossconsole.config.credentials import Credentials, register_credentials
from ossconsole.config.endpoints import EndpointKind, sdk_endpoint
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.config.resolve import Resolution
from ossconsole.training.run import ClaimedError
from ossconsole.training.settings import TrainSettings, settings_of_checkpoint
from ossconsole.tui.console import (
    ConsoleState,
    NoCredentials,
    PreparationStage,
    Ready,
    RunHandle,
    Setting,
    StageState,
    Starting,
    Unavailable,
    UploadHandle,
)

if TYPE_CHECKING:
    from ossconsole.cli.bucket_setup import BucketSetupService
    from ossconsole.dataset.upload.job import UploadJob, UploadSettings
    from ossconsole.dataset.upload.plan import UploadPlan
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.jobs.warm import WarmUp
    from ossconsole.telemetry.sampler import Sampler, TelemetrySample
    from ossconsole.training.remote.attached import AttachedUpload
    from ossconsole.training.remote.control import ControlServer
    from ossconsole.training.run import TrainingRun
    from ossconsole.training.run_evaluation import EvaluationJob

log = logging.getLogger(__name__)

_PREFLIGHT_TIMEOUT_S = 5.0
_RESTORE_TIMEOUT_S = 5.0  # for the end of a demo's slow-down of the sandbox
_STAGES = ("sandbox", *map(str, FillStage))


class Application:
    """Implements `ossconsole.tui.console.Services`; its docstrings there say what each method does.

    The sandbox and its sample dataset are prepared in a thread, and shown as stages. With `demo` a run starts when the
    dataset is ready. A run or an upload of another process on the same bucket is shown and controlled like one of this
    process; it continues when this console exits.
    """

    def __init__(self, target: Target, *, readonly: bool = False, demo: bool = False) -> None:
        self.readonly = readonly
        self._target = target
        self._demo = demo
        self._opened: OpenTarget | None = None
        self._resolution: Resolution | None = None
        self.state: ConsoleState = Starting()
        self.run: RunHandle | None = None
        self.upload: UploadJob | AttachedUpload | None = None
        self.evaluation: EvaluationJob | None = None
        # The work of this process that others can see and control: a `training.remote.control.ControlTarget`.
        self.own_run: TrainingRun | None = None
        self.own_upload: UploadJob | None = None
        self._control: ControlServer | None = None
        self._sampler: Sampler | None = None
        self._stores: dict[EndpointKind, ObjectStore] = {}
        self._resources = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._demo_run: RunHandle | None = None
        self._slowing: threading.Thread | None = None
        self._demo_starts = threading.Lock()
        # Held while a run or an upload starts or another profile is opened; that waits for other processes' answers.
        self._changing = threading.Lock()

    def open(self) -> None:
        """Resolves the target. Raises SettingsError where flags, environment or files contradict each other."""
        self._start_on(self._target, self._target.resolve())

    @property
    def busy(self) -> bool:
        """True while a run or an upload of this process is active."""
        run, upload = self.own_run, self.own_upload
        return (run is not None and run.alive) or (upload is not None and upload.alive)

    def detach(self) -> None:
        """The console is closed: a run that cannot continue ends instead of pausing, and no other is started."""
        self._demo = False
        if self.own_run is not None:
            self.own_run.interactive = False

    def wait(self, timeout_s: float) -> None:
        """Waits for the end of this process's work, at most `timeout_s`."""
        run, upload = self.own_run, self.own_upload
        if run is not None and run.alive:
            run.wait(timeout_s)
        elif upload is not None and upload.alive:
            upload.wait(timeout_s)

    def end_work(self) -> None:
        """Requests the run to end with a checkpoint, and the upload to end; returns immediately."""
        if self.own_upload is not None:
            self.own_upload.cancel()
        if self.own_run is not None:
            self.own_run.stop()

    def close(self, say: Callable[[str], None]) -> None:
        """Ends everything in order: an upload keeps its journal, a run writes a checkpoint. Reports through `say`."""
        run, upload = self.own_run, self.own_upload
        if upload is not None and upload.alive:
            say("Stopping the upload; start it again to resume it.")
            upload.cancel()
        if run is not None and run.alive:
            say("Stopping the run, with a checkpoint.")
            run.stop()
            run.wait_for_stop()
            say(f"Its record is {run.record_path}.")
        if self._slowing is not None:
            self._slowing.join(_RESTORE_TIMEOUT_S)
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
        """Starts the sampler and the preparation of the target."""
        gc.enable()  # disabled by `open_console`
        from ossconsole.telemetry.sampler import Sampler

        self._sampler = Sampler()
        self._sampler.start()
        self._prepare_in_background()

    @property
    def profile(self) -> Profile | None:
        """The profile in use, None while it is not usable."""
        state = self.state
        return state.profile if state.usable else None

    @property
    def is_demo(self) -> bool:
        """Whether the newest run is the demo's."""
        return self.run is not None and self.run is self._demo_run

    @property
    def sample(self) -> TelemetrySample | None:
        """The newest sample of GPUs and host; None before the first."""
        return self._sampler.latest() if self._sampler is not None else None

    def settings(self) -> Sequence[Setting]:
        """Each setting with its value and origin."""
        found = self._opened or self._resolution
        if found is None:
            return ()
        profile = found.profile
        return [
            Setting("profile", profile.name, "simulated, on this machine" if profile.simulated else ""),
            *(Setting(name, str(getattr(profile, name) or ""), str(origin)) for name, origin in found.origins.items()),
        ]

    def credentials(self) -> Credentials:
        """The key pair in use. Raises ConsoleError."""
        return self._ready().credentials()

    def store(self, kind: EndpointKind) -> ObjectStore:
        """A client for one endpoint, shared by all screens. Raises ConsoleError."""
        from ossconsole.storage.client import ObjectStore

        opened = self._ready()
        with self._lock:
            if kind not in self._stores:
                self._stores[kind] = ObjectStore(opened.profile, opened.credentials, kind)
            return self._stores[kind]

    def preflight(self, kind: EndpointKind) -> None:
        """Lists one object through the endpoint. Raises ConsoleError within about 5 s."""
        from ossconsole.storage.client import ObjectStore
        from ossconsole.storage.retry import NO_RETRY

        opened = self._ready()
        store = ObjectStore(opened.profile, opened.credentials, kind, timeout_s=_PREFLIGHT_TIMEOUT_S, retry=NO_RETRY)
        try:
            store.list_page(f"{opened.profile.dataset_prefix}/", delimiter="", max_keys=1)
        finally:
            store.close()

    def plan_warm_up(self, *, again: bool = False) -> WarmUp:
        """A warm-up of the dataset, not started. Raises ConsoleError."""
        from ossconsole.dataset.warm import dataset_source
        from ossconsole.storage.jobs.warm import WarmUp, plan_warm

        accelerated = self.store(EndpointKind.ACCELERATED)
        source = dataset_source(self.store(EndpointKind.STANDARD), accelerated.profile.dataset_prefix)
        return WarmUp(accelerated, plan_warm(source, accelerated, again=again))

    def start_evaluation(self, record: Path) -> EvaluationJob:
        """Evaluates the checkpoint of a run. Raises ConsoleError while a run or another evaluation is alive."""
        from ossconsole.training.run_evaluation import EvaluationJob

        with self._changing:
            opened = self._ready()
            if self.run is not None and self.run.alive:
                raise ConsoleError(
                    "A run is active, and an evaluation would share the processor and the GPU with it.",
                    remedy="Wait for its end, or press 0, then s, to stop it.",
                )
            if self.evaluation is not None:
                self.evaluation.refuse_others("another evaluation")
            self.evaluation = EvaluationJob(record, opened.profile, opened.credentials)
            self.evaluation.start()
            return self.evaluation

    def use_profile(self, name: str) -> None:
        """Opens another profile. Raises ConsoleError while work is active."""
        self._reopen(self._target.with_profile(name))

    def reload(self) -> None:
        """Opens the profile again, after a change of its settings."""
        self._reopen(self._target)

    def start_demo(self) -> None:
        """Starts the demo's run, where the sample dataset is missing once it is complete. Raises ConsoleError."""
        self._refuse_readonly()
        if self._resolution is not None:
            raise ConsoleError("The demo uses the sandbox.", remedy="Press 1, then p, and select sandbox.")
        if isinstance(self.state, Unavailable):
            raise self._not_usable()
        self._demo = True
        if isinstance(self.state, Ready):
            self._start_demo_run()

    def slow_down_sandbox(self, objects_per_s: float) -> None:
        """Changes the speed of the sandbox's standard endpoint until the run ends; nothing without a sandbox."""
        sandbox, run = self._opened.sandbox if self._opened is not None else None, self.own_run
        if sandbox is not None and run is not None:
            self._slowing = start_slow_down(run.wait, sandbox, objects_per_s)

    def bucket_setup(self) -> BucketSetupService:
        """The operations of the Setup screen on the profile's bucket."""
        from ossconsole.cli.bucket_setup import BucketSetupService
        from ossconsole.config.credential_sources import find_credentials

        if self._opened is not None:
            return BucketSetupService(self._opened.profile, self._opened.credentials, self.readonly)
        if self._resolution is None:
            raise self._not_usable()
        profile = self._resolution.profile

        def credentials() -> Credentials:  # no source may exist yet
            return find_credentials(profile)()

        return BucketSetupService(profile, credentials, self.readonly)

    def settings_to_resume(self, settings: TrainSettings) -> dict[str, Any]:
        """What the checkpoint to resume needs and `settings` have otherwise. Raises ConsoleError."""
        from ossconsole.training.checkpoints.store import resumed_fields

        found = resumed_fields(self.store(EndpointKind.STANDARD), settings.resume, settings.model)
        known = settings_of_checkpoint(found.content, processes=settings.processes)
        return {name: value for name, value in known.items() if value != getattr(settings, name)}

    def start_run(self, settings: TrainSettings, dataset_prefix: str = "") -> RunHandle:
        """Starts a run on a dataset, the profile's where the prefix is "". Raises ConsoleError."""
        self._refuse_readonly()
        self._refuse_unprepared()
        sandbox = self._opened.sandbox if self._opened is not None else None
        return self._start_run(settings, dataset_prefix, warning=sandbox.slowed_words() if sandbox is not None else "")

    def _start_run(self, settings: TrainSettings, dataset_prefix: str = "", *, warning: str = "") -> RunHandle:
        from ossconsole.telemetry import events
        from ossconsole.training.run import TrainingRun

        def warn_first(event: events.Event) -> None:
            if warning and isinstance(event, events.Run):  # the first event of a record
                run.warn(warning, "")

        with self._changing:
            opened = self._ready()
            assert self._sampler is not None  # noqa: S101 - nothing is ready before `begin`
            if self.run is not None and self.run.alive:
                name = self.run.record_path.stem
                raise ConsoleError(f"The run {name} is still running.", remedy="Stop it first (s).")
            if self.evaluation is not None:
                self.evaluation.refuse_others("a run")
            prefix = dataset_prefix or opened.profile.dataset_prefix
            profile = msgspec.structs.replace(opened.profile, dataset_prefix=prefix)
            try:
                run = TrainingRun(
                    profile, opened.credentials, settings, self._sampler, interactive=True, on_event=warn_first
                )
            except ClaimedError:
                self._find_peers(opened)
                raise
            run.start()
            self.run = self.own_run = run
            return run

    def plan_upload(
        self, settings: UploadSettings, stop: threading.Event, on_progress: Callable[[int], None]
    ) -> UploadPlan:
        """Plans an upload without sending anything. Raises ConsoleError."""
        from ossconsole.dataset.upload.plan import plan_upload

        opened = self._ready()
        return plan_upload(opened.profile, opened.credentials, settings, stop=stop, on_progress=on_progress)

    def start_upload(self, settings: UploadSettings) -> UploadHandle:
        """Starts an upload. Raises ConsoleError."""
        self._refuse_readonly()
        self._refuse_unprepared()
        return self._start_upload(settings)

    # Preparing

    def _start_on(self, target: Target, resolution: Resolution | None) -> None:
        stages = tuple(PreparationStage(label, StageState.WAITING) for label in _STAGES) if resolution is None else ()
        self._target, self._resolution = target, resolution
        self.state = Starting(profile=resolution.profile if resolution else None, stages=stages)

    def _reopen(self, target: Target) -> None:
        """Opens another target. Raises ConsoleError, and changes nothing, while this process is busy."""
        with self._changing, self._lock:
            if self.busy:
                raise ConsoleError(
                    "A run or an upload is still running.", remedy="Stop it before changing the profile."
                )
            if isinstance(self.state, Starting):
                raise ConsoleError("The profile in use is still being prepared.", remedy="Wait a moment.")
            self._start_on(target, target.resolve())
            for store in self._stores.values():
                store.close()
            self._stores.clear()
            self._opened = self.run = self.upload = None
            self._demo = False
            self._resources.close()
        self._prepare_in_background()

    def _prepare_in_background(self) -> None:
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()

    def _prepare(self) -> None:
        from ossconsole.config.credentials import NoCredentialsError

        try:
            opened = self._open_target()
            self._find_peers(opened)  # takes seconds for a silent process; the bucket can be used meanwhile
            if opened.sandbox is not None:
                self._fill_sandbox(opened)
                self.state = Ready(profile=opened.profile, stages=self.state.stages)
                if self._demo:
                    self._start_demo_run()
        except NoCredentialsError as error:
            log.info("Preparing failed: %s", error)
            self.state = NoCredentials(profile=self.state.profile, searched=tuple(error.looked))
        except ConsoleError as error:
            log.error("Preparing failed: %s", error)  # noqa: TRY400 - the message says it all
            self._fail(str(error))
        except Exception as error:
            log.exception("Preparing failed")  # so that no state stays "starting" for ever
            self._fail(f"Unexpected {type(error).__name__}: {error}. The log (L) has the traceback.")

    def _open_target(self) -> OpenTarget:
        uses_sandbox = self._resolution is None
        if uses_sandbox:
            self._stage(_STAGES[0], StageState.ACTIVE)
        opened = self._resources.enter_context(self._target.open(say=log.info))
        register_credentials(opened.credentials())
        self._opened = opened
        if opened.sandbox is not None:
            opened.sandbox.notify = self._on_sandbox_event
            self.state = Starting(profile=opened.profile, stages=self.state.stages, opened=True)
            address = sdk_endpoint(opened.profile.bucket, opened.profile.standard_endpoint)
            self._stage(_STAGES[0], StageState.DONE, f"{address}, speeds are simulated")
        else:
            self.state = Ready(profile=opened.profile)
        return opened

    def _start_demo_run(self) -> None:
        """Starts the demo's run unless there is one."""
        with self._demo_starts:  # the preparation and `start_demo` may both come here
            if self.run is None or not self.run.alive:
                with contextlib.suppress(ClaimedError):  # another demo has started one: that is shown
                    self._demo_run = self._start_run(DEMO_SETTINGS)

    def _find_peers(self, opened: OpenTarget) -> None:
        """Makes this process visible to others, and shows their work on the same bucket. Raises ConsoleError."""
        from ossconsole.training.remote.attached import AttachedRun, AttachedUpload
        from ossconsole.training.remote.control import ControlServer, peers

        self._control = self._control or ControlServer(self)
        profile = opened.profile
        for report in peers():
            if self._opened is not opened:
                return  # another profile was opened meanwhile
            if report.bucket and (report.region, report.bucket) != (profile.region, profile.bucket):
                continue
            if report.run and not (self.run is not None and self.run.alive):
                self.run = AttachedRun(report.run, report.pid)
            upload = report.upload
            if upload is not None and not upload.progress.phase.final and not (self.upload and self.upload.alive):
                self.upload = AttachedUpload(report.pid, upload)

    def _fill_sandbox(self, opened: OpenTarget) -> None:
        """Creates the sandbox's sample dataset where it is missing, stage by stage. Raises ConsoleError."""
        if self._demo and self.run is None:
            # The run's thread then finds torch imported.
            load = functools.partial(importlib.import_module, "ossconsole.training.session")
            threading.Thread(target=load, name="load-training", daemon=True).start()
        self._stage(str(FillStage.IMAGES), StageState.ACTIVE, "looking for a dataset")
        fill_sandbox(opened, self._show_filling, start_upload=self._start_upload)

    def _show_filling(self, progress: FillProgress) -> None:
        state = StageState.DONE if progress.over else StageState.ACTIVE
        self._stage(str(progress.stage), state, progress.text, progress.share)

    def _on_sandbox_event(self, message: str, remedy: str) -> None:
        """Logs that the sandbox's process ended or was restarted, also in the run's record."""
        log.warning("%s %s", message, remedy)
        run = self.own_run
        if run is not None and run.alive:
            run.warn(message, remedy)

    def _start_upload(self, settings: UploadSettings) -> UploadJob:
        from ossconsole.dataset.upload.plan import create_upload

        with self._changing:
            opened = self._ready()
            if self.upload is not None and self.upload.alive:
                raise ConsoleError(
                    "An upload is still running.", remedy="Wait for it, or cancel it on the Upload screen."
                )
            job = create_upload(opened.profile, opened.credentials, settings)
            job.start()
            self.own_upload = self.upload = job
            return job

    def _ready(self) -> OpenTarget:
        if self._opened is None:
            raise self._not_usable()
        return self._opened

    def _not_usable(self) -> SettingsError:
        """The reason why there is no bucket to work on."""
        state = self.state
        if isinstance(state, NoCredentials):
            helps = "enter an AccessKey" if state.key == "k" else "use another source of credentials"
            return SettingsError("There are no credentials yet.", remedy=f"Press 1, then {state.key}, to {helps}.")
        remedy = state.reason if isinstance(state, Unavailable) else "Wait a moment."
        return SettingsError("There is no bucket to work on yet.", remedy=remedy)

    def _refuse_readonly(self) -> None:
        if self.readonly:
            raise SettingsError("The console was started with --readonly.", remedy="Start it without.")

    def _refuse_unprepared(self) -> None:
        if isinstance(self.state, Starting) and self.state.opened:
            raise ConsoleError("The sample dataset is still being prepared.", remedy="Wait until it is uploaded.")

    def _stage(self, label: str, state: StageState, detail: str = "", share: float | None = None) -> None:
        changed = PreparationStage(label, state, detail, share)
        stages = {stage.label: stage for stage in self.state.stages} | {label: changed}
        self.state = msgspec.structs.replace(self.state, stages=tuple(stages.values()))

    def _fail(self, reason: str) -> None:
        """Marks the active stage as failed; the bucket stays usable where it was opened."""
        for stage in self.state.stages:
            if stage.state is StageState.ACTIVE:
                self._stage(stage.label, StageState.FAILED, reason)
        opened = self._opened
        if opened is None:
            self.state = Unavailable(profile=self.state.profile, stages=self.state.stages, reason=reason)
            return
        if not self.state.stages:
            self._stage("profile", StageState.FAILED, reason)
        self.state = Ready(profile=opened.profile, stages=self.state.stages)
