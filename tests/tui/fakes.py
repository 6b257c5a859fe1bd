"""Stand-ins for the services: no threads, no clock, no network; everything the tests want to see is set by hand."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.upload.job import UploadSettings, UploadSummary
from ossconsole.dataset.upload.plan import UploadPlan
from ossconsole.dataset.upload.progress import Phase, PipelineStage, SamplePreview, UploadProgress
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.job import Failure
from ossconsole.storage.jobs.threads import Cancelled
from ossconsole.storage.jobs.warm import WarmUp
from ossconsole.storage.objects import ListPage, ObjectInfo, ObjectSummary
from ossconsole.storage.retry import Pause
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.sampler import TelemetrySample
from ossconsole.telemetry.samples import GpuSample, GpuSnapshot, HostSample
from ossconsole.training.run_evaluation import EvaluationJob
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.console import BucketAdmin, ConsoleState, PreparationStage, Ready, Setting, StageState, Starting

START = 1_750_000_000.0
SECRET = "planted-secret-that-must-never-show"
SIMULATED = Profile(
    name="sandbox",
    region="cn-hangzhou",
    bucket="127",
    standard_endpoint="http://0.0.1:9000",
    accelerated_endpoint="http://0.0.2:9000",
    simulated=True,
)
REAL = Profile(
    name="imagenet-hz",
    region="cn-hangzhou",
    bucket="imagenet-train",
    standard_endpoint="https://oss-cn-hangzhou-internal.aliyuncs.com",
    accelerated_endpoint="https://cn-hangzhou-internal.oss-data-acc.aliyuncs.com",
)


@dataclass
class FakeRun:
    """Gives the events put in `waiting` and notes what it was asked."""

    waiting: list[Event] = field(default_factory=list)
    state: RunState = RunState.RUNNING
    alive: bool = True
    is_remote: bool = False
    reading: float | None = None
    refused: int = 0
    record_path: Path = Path("/nowhere/run.jsonl")
    asked: list[tuple[object, ...]] = field(default_factory=list)

    def drain(self) -> list[Event]:
        found, self.waiting = self.waiting, []
        return found

    def pause(self) -> None:
        self.asked.append(("pause",))

    def resume(self) -> None:
        self.asked.append(("resume",))

    def stop(self) -> None:
        self.asked.append(("stop",))

    def switch(self, kind: EndpointKind, reason: str) -> None:
        self.asked.append(("switch", kind, reason))

    def checkpoint(self) -> None:
        self.asked.append(("checkpoint",))

    def profile(self) -> None:
        self.asked.append(("profile",))

    def set_lr(self, lr: float) -> None:
        self.asked.append(("set_lr", lr))


_NOTHING = UploadSummary(uploaded=0, skipped=0, failed=0, bytes=0, seconds=0.0, samples_per_s=0.0)
_PICTURES = UploadSettings(source=Path("/data/pictures"))
_NO_FILES = UploadPlan()


@dataclass
class FakeUpload:
    """Stands where it is put, and notes what it was asked."""

    shown: UploadProgress
    ended: UploadSummary = _NOTHING
    settings: UploadSettings = _PICTURES
    sample: SamplePreview | None = None
    alive: bool = True
    is_remote: bool = False
    asked: list[object] = field(default_factory=list)

    @property
    def source(self) -> str:
        return str(self.settings.source)

    @property
    def target(self) -> str:
        return "oss://127/dataset/sample"

    def progress(self) -> UploadProgress:
        return self.shown

    def summary(self) -> UploadSummary:
        return self.ended

    def preview(self) -> SamplePreview | None:
        return self.sample

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def cancel(self) -> None:
        self.asked.append("cancel")

    def set_parallelism(self, number: int) -> None:
        self.asked.append(("parallelism", number))

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        self.asked.append(("bandwidth", bytes_per_s))


def upload_progress(**changes: object) -> UploadProgress:
    """An upload of 400 files in full swing."""
    figures: dict[str, object] = {
        "phase": Phase.UPLOADING,
        "paused": False,
        "total": 400,
        "total_known": True,
        "done": 100,
        "uploaded": 90,
        "unchanged": 7,
        "skipped": 8,
        "failed": 2,
        "retries": 5,
        "bytes": 13_547_520,
        "seconds": 12.0,
        "samples_per_s": 8.1,
        "bytes_per_s": 1_219_277.0,
        "eta_s": 37.0,
        "bottleneck": PipelineStage.PREPARE,
        "workers": ("train/ants/0013035.jpg", "train/bees/1092977343_cb42b38d62.jpg"),
        "sending": 3,
        "parallelism": 16,
        "bandwidth": None,
        "recent_failures": (
            Failure("train/ants/broken.jpg", "image file is truncated (5 bytes not processed)"),
            Failure("train/bees/12.jpg", "AccessDenied while writing it", "AccessDenied", "674F3C6A4D3E4A3130A1B2C3"),
        ),
        "error": "",
    }
    return UploadProgress(**{**figures, **changes})  # type: ignore[arg-type]


@dataclass
class FakeStore:
    """Lists `keys` as OSS would, in pages of `page_size`; `error` is raised instead where set."""

    keys: dict[str, int] = field(default_factory=dict)
    profile: Profile = SIMULATED
    error: ConsoleError | None = None
    page_size: int = 1000
    before_page: Callable[[str], None] | None = None
    waiting: str = ""

    def pausing(self, _pause: Pause) -> FakeStore:
        return self

    def uri(self, key: str = "") -> str:
        return f"oss://127/{key}"

    def head(self, key: str) -> ObjectInfo:
        raise StorageError(f"oss://127/{key}: The specified key does not exist.", code="NoSuchKey", status=404)

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        if self.before_page is not None:
            self.before_page(prefix)
        if self.error is not None:
            raise self.error
        rows: dict[str, int | None] = {}
        for key, length in sorted(self.keys.items()):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                rows[prefix + rest.split(delimiter, 1)[0] + delimiter] = None
            else:
                rows[key] = length
        names = list(rows)
        first = int(token or 0)
        page = names[first : first + self.page_size]
        objects = [
            ObjectSummary(name, size, int(START) + 60 * at)
            for at, name in enumerate(page)
            if (size := rows[name]) is not None
        ]
        last = first + self.page_size
        return ListPage(objects, [name for name in page if rows[name] is None], str(last) if last < len(names) else "")


def may_block() -> None:
    """What begins each method that may block in the real services: the event loop must not wait for it."""
    assert asyncio._get_running_loop() is None, "called on the event loop"


@dataclass
class FakeServices:
    """The state follows from `profile` and `stages` where no `standing` is given."""

    profile: Profile | None = SIMULATED
    stages: Sequence[PreparationStage] = ()
    standing: ConsoleState | None = None
    run: FakeRun | None = None
    upload: FakeUpload | None = None
    sample: TelemetrySample | None = None
    readonly: bool = False
    stores: dict[EndpointKind, FakeStore] = field(default_factory=lambda: {kind: FakeStore() for kind in EndpointKind})
    unreachable: dict[EndpointKind, ConsoleError] = field(default_factory=dict)
    started: list[TrainSettings] = field(default_factory=list)
    started_on: list[str] = field(default_factory=list)
    own_upload: FakeUpload | None = None
    plan: UploadPlan | ConsoleError = _NO_FILES
    planned: list[UploadSettings] = field(default_factory=list)
    uploads: list[UploadSettings] = field(default_factory=list)
    warm_up: WarmUp | ConsoleError | None = None
    of_checkpoint: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationJob | None = None
    next_evaluation: EvaluationJob | ConsoleError | None = None
    warm_ups: list[bool] = field(default_factory=list)
    begun: int = 0
    demos: int = 0
    sandbox_speeds: list[float] = field(default_factory=list)
    is_demo: bool = False
    _last: ConsoleState = Starting()  # noqa: RUF009 - it is immutable

    def __post_init__(self) -> None:
        if self.standing is not None:
            self.stand(self.standing)

    def stand(self, state: ConsoleState) -> None:
        """Take another state."""
        self.standing = state
        self.profile = state.profile if state.usable else None

    def begin(self) -> None:
        self.begun += 1

    def bucket_setup(self) -> BucketAdmin:
        raise ConsoleError("The tests of other screens have no bucket to set up.")

    @property
    def state(self) -> ConsoleState:
        """One object as long as nothing changes, like that of the real services."""
        stages = tuple(self.stages)
        preparing = any(stage.state in {StageState.WAITING, StageState.ACTIVE} for stage in stages)
        found: ConsoleState = Ready(profile=self.profile, stages=stages)
        if self.profile is None or preparing:
            found = Starting(profile=self.profile, stages=stages, opened=self.profile is not None)
        found = self.standing or found
        if found != self._last:
            self._last = found
        return self._last

    def settings(self) -> list[Setting]:
        if self.profile is None:
            return []
        return [
            Setting("profile", self.profile.name, "built in"),
            Setting("region", self.profile.region, "default"),
            Setting("bucket", self.profile.bucket, "command line"),
            Setting("dataset prefix", self.profile.dataset_prefix, "default"),
            Setting("checkpoint prefix", self.profile.checkpoint_prefix, "/home/me/.config/ossconsole/profiles.toml"),
        ]

    def credentials(self) -> Credentials:
        may_block()
        return Credentials("LTAI5tExampleKeyId9Qz", Secret(SECRET), source="OSS_ACCESS_KEY_ID in the environment")

    def store(self, kind: EndpointKind) -> FakeStore:
        may_block()
        return self.stores[kind]

    def preflight(self, kind: EndpointKind) -> None:
        may_block()
        if kind in self.unreachable:
            raise self.unreachable[kind]

    def plan_warm_up(self, *, again: bool = False) -> WarmUp:
        may_block()
        self.warm_ups.append(again)
        if isinstance(self.warm_up, ConsoleError):
            raise self.warm_up
        assert self.warm_up is not None
        return self.warm_up

    def start_evaluation(self, record: Path) -> EvaluationJob:
        may_block()
        if isinstance(self.next_evaluation, ConsoleError):
            raise self.next_evaluation
        assert self.next_evaluation is not None
        assert self.next_evaluation.record == record
        self.evaluation = self.next_evaluation
        self.evaluation.start()
        return self.evaluation

    def settings_to_resume(self, settings: TrainSettings) -> dict[str, Any]:
        may_block()
        assert settings.resume
        return self.of_checkpoint

    def start_run(self, settings: TrainSettings, dataset_prefix: str = "") -> FakeRun:
        may_block()
        self.started.append(settings)
        self.started_on.append(dataset_prefix)
        self.run = FakeRun(state=RunState.STARTING)
        return self.run

    def slow_down_sandbox(self, objects_per_s: float) -> None:
        self.sandbox_speeds.append(objects_per_s)

    def start_demo(self) -> None:
        may_block()
        self.demos += 1

    def plan_upload(
        self, settings: UploadSettings, stop: threading.Event, on_progress: Callable[[int], None]
    ) -> UploadPlan:
        may_block()
        self.planned.append(settings)
        on_progress(12_345)
        if isinstance(self.plan, ConsoleError):
            raise self.plan
        if stop.is_set():
            raise Cancelled
        return self.plan

    def start_upload(self, settings: UploadSettings) -> FakeUpload:
        may_block()
        self.uploads.append(settings)
        started = FakeUpload(upload_progress(phase=Phase.STARTING), settings=settings)
        self.upload = self.own_upload = started
        return started


class Script:
    """Writes the events of a made-up run: steady rates with a small ripple, so that figures are the same every time."""

    def __init__(self, *, epochs: int = 5, steps_per_epoch: int = 80, batch: int = 64, simulated: bool = True) -> None:
        self.time = START
        self.events: list[Event] = []
        self.step = 0
        self.epoch = 1
        self.batch = batch
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.endpoint = EndpointKind.STANDARD
        self.add(
            events.Run(
                time=self.time,
                run="20250615-150640-a1b2",
                version="0.1.0",
                settings={"batch_size": batch, "workers": 2, "endpoint": "standard", "device": "cpu", "max_steps": 0},
                pid=4242,
                host="gpu-1",
                simulated=simulated,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
            )
        )

    def add(self, *found: Event) -> Script:
        self.events.extend(found)
        return self

    def state(self, state: RunState, after: float = 0.0) -> Script:
        self.time += after
        return self.add(events.State(time=self.time, state=state, step=self.step))

    def steps(
        self, count: int, *, wait: float = 0.40, compute: float = 0.20, fetch: float = 0.5, loss: float | None = -1.0
    ) -> Script:
        """`loss` -1 gives a falling one."""
        for _ in range(count):
            self.step += 1
            ripple = 1 + 0.06 * math.sin(self.step * 1.7) + 0.03 * math.sin(self.step * 0.31)
            waited, copied = wait * ripple, 0.004
            total = waited + compute + copied
            self.time += total
            self.add(
                events.Step(
                    time=self.time,
                    step=self.step,
                    epoch=self.epoch,
                    samples=self.batch,
                    loss=2.4 * math.exp(-self.step / 150) + 0.05 * math.sin(self.step) + 0.2 if loss == -1.0 else loss,
                    lr=0.05 * min(1.0, self.step / 20),
                    endpoint=self.endpoint,
                    data_wait_s=waited,
                    step_time_s=total,
                    fetch_s=fetch * ripple,
                    single_s=fetch * ripple,
                    bytes=self.batch * 12288,
                    samples_per_s=self.batch / total,
                    copy_s=copied,
                    compute_s=compute,
                )
            )
        return self

    def end_epoch(self) -> Script:
        self.state(RunState.VALIDATING)
        self.time += 1.5
        top1 = min(0.95, 0.3 + 0.12 * self.epoch)
        self.add(
            events.Epoch(
                time=self.time,
                epoch=self.epoch,
                train_loss=2.0 / self.epoch,
                val_loss=2.1 / self.epoch,
                top1=top1,
                top5=min(1.0, top1 + 0.3),
                seconds=50.0,
                step=self.step,
                samples=self.batch * self.steps_per_epoch,
                val_samples=400,
            )
        )
        key = f"checkpoints/20250615-150640-a1b2/epoch-{self.epoch:04d}.pt"
        self.add(
            events.Checkpoint(
                time=self.time,
                key=key,
                bytes=44_812_345,
                seconds=1.2,
                stable_key="checkpoints/resnet18.pt",
                epoch=self.epoch,
                step=self.step,
                top1=top1,
            )
        )
        self.epoch += 1
        return self.state(RunState.RUNNING)

    def switch(self, kind: EndpointKind, reason: str = "by hand", ahead: int = 2) -> Script:
        """`ahead` batches of the old endpoint were read before."""
        self.add(events.Switch(time=self.time, endpoint=kind, reason=reason, step=self.step))
        self.steps(ahead)
        self.endpoint = kind
        return self

    def summary(self, state: RunState = RunState.FINISHED, error: str = "") -> Script:
        self.add(
            events.Summary(
                time=self.time,
                run="20250615-150640-a1b2",
                state=state,
                epochs=self.epoch - 1,
                steps=self.step,
                samples=self.step * self.batch,
                bytes=self.step * self.batch * 12288,
                seconds=self.time - START,
                samples_per_s=151.0,
                wait_fraction=0.4,
                error=error,
            )
        )
        return self


def host() -> HostSample:
    return HostSample(
        cores=8,
        cpu=62.0,
        load=5.1,
        own_cpu=412.0,
        own_memory=3_221_225_472,
        own_processes=4,
        own_open_files=96,
        memory_used=9_663_676_416,
        memory_total=33_285_996_544,
        receive_rate=18_400_000.0,
        send_rate=420_000.0,
        loopback_rate=6_100_000.0,
    )


def gpu(index: int = 0, **changes: object) -> GpuSample:
    figures: dict[str, object] = {
        "index": index,
        "name": "Tesla T4",
        "utilization": 38.0,
        "memory_used": 4_402_341_478,
        "memory_total": 16_106_127_360,
        "power": 41.0,
        "power_limit": 70.0,
        "temperature": 58,
        "sm_clock": 1590,
        "memory_clock": 5000,
    }
    return GpuSample(**{**figures, **changes})  # type: ignore[arg-type]


def sample(gpus: Iterable[GpuSample] = (), problem: str = "", at: float = START) -> TelemetrySample:
    return TelemetrySample(time=at, gpu=GpuSnapshot(tuple(gpus), problem), host=host())
