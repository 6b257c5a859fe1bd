"""`ossconsole sandbox`: the embedded OSS-compatible server; and the creation of its sample dataset."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from ossconsole.cli.options import FiniteRange, OpenTarget
from ossconsole.cli.output import say, say_json
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import READ_WRITE, exposure, open_private, state_dir, try_lock
from ossconsole.config.text import StrEnum, counted
from ossconsole.sandbox.process import DATASET_PREFIX, RunningSandbox, Shaping
from ossconsole.training.settings import TrainSettings

if TYPE_CHECKING:
    from ossconsole.dataset.upload.job import UploadJob, UploadSettings

log = logging.getLogger(__name__)

FC = TypeVar("FC", bound=Callable[..., Any])
_DEFAULTS = Shaping()


def _speed_option(name: str, text: str) -> Callable[[FC], FC]:
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    return click.option(f"--{name}", type=FiniteRange(0), show_default=f"{default:g}", help=text)


@click.command(short_help="Serve an OSS-compatible bucket on loopback.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of its objects, keys and log; created where it is missing.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1 and 127.0.0.2; 0 = a free one."
)
@click.option("--region", default="cn-sandbox", show_default=True, help="Region of the signatures.")
@click.option("--unshaped", is_flag=True, help="Disable all simulated delays and limits, and the cache.")
@_speed_option("standard-first-byte-ms", "Delay of a GET's first byte from the bucket, ms.")
@_speed_option("standard-objects-per-s", "GETs per second of the bucket, over all connections.")
@_speed_option("accelerated-first-byte-ms", "Delay of a GET's first byte from the accelerator's cache, ms.")
@_speed_option("cache-mb", "Size of the accelerator's cache, MB.")
@_speed_option("bandwidth-mb-s", "Bandwidth of the bucket, over all connections, MB/s.")
@_speed_option("put-first-byte-ms", "Delay of the reply to a write, ms.")
@click.option(
    "--faults",
    "fault_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file of the faults to inject from the start.",
)
@click.option(
    "--synthetic-keys",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="List this number of synthetic keys below synthetic/, for benchmarks.",
)
@click.option(
    "--metadata",
    type=click.Choice(["off", "v1", "v2"]),
    default="off",
    show_default=True,
    help="Instance metadata service on 127.0.0.3: both versions (v1), or with tokens only (v2).",
)
@click.option(
    "--metadata-credential-ttl-s",
    type=FiniteRange(1),
    default=3600.0,
    show_default=True,
    help="Lifetime of the metadata service's credentials, seconds.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.option("--until-unused", is_flag=True, hidden=True)
def sandbox(*, directory: Path, unshaped: bool, fault_file: Path | None, **options: Any) -> None:
    """Serve an OSS-compatible bucket on loopback, with a standard and an accelerated endpoint.

    Prints one JSON line when it is ready. The endpoints' speeds are simulated and say nothing about the real service:
    each one is an option, 0 disables it, and --unshaped disables all that are not given.
    """
    from ossconsole.sandbox.app import SandboxSettings, run
    from ossconsole.sandbox.faults import FaultPlan, read_plan

    given = {name: options.pop(name) for name in Shaping.__struct_fields__}
    speeds = {name: speed for name, speed in given.items() if speed is not None}
    settings = SandboxSettings(
        directory=directory.absolute(),
        shaping=msgspec.structs.replace(Shaping.none() if unshaped else _DEFAULTS, **speeds),
        faults=read_plan(fault_file) if fault_file else FaultPlan(),
        **options,
    )
    problem = exposure(settings.directory)
    if problem:
        say(f"Warning: the folder {settings.directory} {problem}: other users can replace the files in it.", err=True)
    run(settings, lambda info: say_json(msgspec.json.decode(info.encode())))


_STORED_SIZE = 32  # px: the short side of the sample dataset's JPEGs
_TRAINING_SIZE = 16  # px: small enough that two slow cores train faster than the standard endpoint reads

DEMO_SETTINGS = TrainSettings(
    epochs=130,
    batch_size=16,
    image_size=_TRAINING_SIZE,
    workers=1,
    learning_rate=0.02,
    endpoint=EndpointKind.ACCELERATED,
)
"""The demo's run: I/O-bound on the (simulated) standard endpoint, compute-bound on the accelerated one.

The first epoch fills the accelerator's cache. A machine that computes less than twice what the standard endpoint reads
then gets a slower one, see `slowed_standard`. The run lasts longer than auto A/B needs at most: about ten minutes on
two slow cores (estimated).
"""

_POLL_S = 0.1
_LINE_EVERY_S = 2.0


def start_slow_down(wait: Callable[[], object], sandbox: RunningSandbox, objects_per_s: float) -> threading.Thread:
    """Slows down a sandbox's standard endpoint until `wait` returns, in a thread, which is returned."""
    arguments = (wait, sandbox, objects_per_s)
    thread = threading.Thread(target=slow_down_until, args=arguments, name="sandbox-speed", daemon=True)
    thread.start()
    return thread


def slow_down_until(wait: Callable[[], object], sandbox: RunningSandbox, objects_per_s: float) -> None:
    """Slows down a sandbox's standard endpoint until `wait` returns; a failure is logged, and the demo continues."""
    from ossconsole.sandbox.shared import slowed_down

    try:
        with slowed_down(sandbox, objects_per_s):
            wait()
    except ConsoleError as error:
        log.warning("The sandbox's speed is unchanged: %s", error)


class FillStage(StrEnum):
    """The stages of creating the sample dataset, by their names on the screen."""

    IMAGES = "sample images"
    UPLOAD = "upload"


class FillProgress(msgspec.Struct, frozen=True):
    """The progress of a stage as text, and as a share of 0 to 1 where it is known; `over` with its last report."""

    stage: FillStage
    text: str
    over: bool = False
    share: float | None = None


OnProgress = Callable[[FillProgress], None]


def fill_sandbox(
    opened: OpenTarget,
    on_progress: OnProgress | None = None,
    *,
    start_upload: Callable[[UploadSettings], UploadJob] | None = None,
) -> None:
    """Draws and uploads sample images where the sandbox's own prefix has no dataset; changes no other prefix.

    One process creates the dataset, the others wait for it; an interrupted one is resumed. `on_progress` is called from
    this thread (default: prints lines on stderr while it works). `start_upload` lets a screen show and control the
    upload. Raises ConsoleError.
    """
    sandbox, report = opened.sandbox, on_progress or _Lines()
    prefix = (opened.profile.bucket, opened.profile.dataset_prefix)
    if sandbox is None or prefix != (sandbox.info.bucket, DATASET_PREFIX):
        for stage in FillStage:
            report(FillProgress(stage, f"not needed for {opened.profile.dataset_prefix}/", over=True))
        return
    with _only_one(sandbox.directory / "filling", report):
        if not _has_dataset(opened):
            _create(opened, report, start_upload)
            return
    report(FillProgress(FillStage.IMAGES, "drawn before", over=True))
    report(FillProgress(FillStage.UPLOAD, "the samples are in the bucket", over=True))


@contextmanager
def _only_one(path: Path, report: OnProgress) -> Iterator[None]:
    """Holds the lock for creating the dataset; the kernel releases it with the process."""
    descriptor = open_private(path, READ_WRITE)
    try:
        while not try_lock(descriptor):
            report(FillProgress(FillStage.IMAGES, "another process draws them"))
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _has_dataset(opened: OpenTarget) -> bool:
    """Whether the prefix can be trained on: it has a manifest, a shard list, or samples to list."""
    from ossconsole.dataset.listing import is_sample_key
    from ossconsole.dataset.manifest import SHARDS_NAME, TRAIN, manifest_key, object_key
    from ossconsole.storage.client import ObjectStore

    prefix = opened.profile.dataset_prefix
    store = ObjectStore(opened.profile, opened.credentials)
    try:
        if store.exists(manifest_key(prefix)) or store.exists(object_key(prefix, SHARDS_NAME)):
            return True
        page = store.list_page(object_key(prefix, f"{TRAIN}/"), delimiter="")
        return any(is_sample_key(found.key) for found in page.objects)
    finally:
        store.close()


def _create(opened: OpenTarget, report: OnProgress, start_upload: Callable[[UploadSettings], UploadJob] | None) -> None:
    from ossconsole.dataset.formats import SampleFormat
    from ossconsole.dataset.sample_data import make_sample_images
    from ossconsole.dataset.upload.job import UploadSettings
    from ossconsole.dataset.upload.plan import create_upload

    def drawn(count: int, total: int) -> None:
        report(FillProgress(FillStage.IMAGES, f"{count} of {total} drawn", share=count / total))

    source = state_dir() / "sample-pictures"
    count = make_sample_images(source, on_drawn=drawn)
    report(FillProgress(FillStage.IMAGES, f"{count} drawn", over=True))
    report(FillProgress(FillStage.UPLOAD, f"0 of {count} sent"))
    settings = UploadSettings(source=source, format=SampleFormat.IMAGE_JPEG, size=_STORED_SIZE)
    if start_upload is None:
        job = create_upload(opened.profile, opened.credentials, settings)
        job.start()
    else:
        job = start_upload(settings)
    try:
        while not job.wait(_POLL_S):
            done = job.progress().done
            report(FillProgress(FillStage.UPLOAD, f"{done} of {count} sent", share=done / max(1, count)))
    except BaseException:  # such as Ctrl-C
        job.cancel()
        raise
    summary = job.result()
    if summary.cancelled or summary.failed:
        failed = f"{summary.failed} of the sample images could not be uploaded."
        message = "The upload of the sample dataset was cancelled." if summary.cancelled else failed
        raise ConsoleError(message, remedy="Start the command or the console again to resume it.")
    report(FillProgress(FillStage.UPLOAD, f"{counted(count, 'sample')} in {summary.seconds:.1f} s", over=True))


class _Lines:
    """Prints progress on stderr: the first and the last report of each stage, and one every two seconds in between."""

    def __init__(self) -> None:
        self._stage: FillStage | None = None
        self._printed = 0.0
        self._working = False

    def __call__(self, progress: FillProgress) -> None:
        self._working |= not progress.over
        now = time.monotonic()
        begins = progress.stage is not self._stage
        if self._working and (begins or progress.over or now - self._printed >= _LINE_EVERY_S):
            say(f"Creating the sandbox's sample dataset: {progress.stage}: {progress.text}.", err=True)
            self._printed = now
        self._stage = progress.stage
