"""The sandbox's sample dataset: made once, by the first command or console that needs it."""

from __future__ import annotations

import enum
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ossconsole.cli.options import OpenTarget
from ossconsole.cli.output import say
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import state_dir
from ossconsole.config.text import counted
from ossconsole.sandbox.process import DATASET_PREFIX
from ossconsole.training.settings import TrainSettings

if TYPE_CHECKING:
    from ossconsole.config.profiles import Profile
    from ossconsole.dataset.upload.job import UploadJob, UploadSettings
    from ossconsole.sandbox.shared import SharedSandbox

SAMPLE_SIZE = 16
"""Side of the stored samples in pixels: two slow cores then train faster than the simulated standard endpoint reads."""

DEMO_SETTINGS = TrainSettings(epochs=40, batch_size=50, image_size=SAMPLE_SIZE, workers=1, learning_rate=0.03)
"""The demo's run, a few minutes long: reading bounds it on the standard endpoint, computing on the accelerated one."""

_LOOK_S = 0.1
_LINE_EVERY_S = 2.0


class FillStage(str, enum.Enum):
    """The parts of making the sample dataset, by the names that a screen shows."""

    PICTURES = "sample pictures"
    UPLOAD = "upload"

    def __str__(self) -> str:
        return self.value


class FillProgress(msgspec.Struct, frozen=True):
    """How far a stage is, in words; `over` with the last report of a stage."""

    stage: FillStage
    words: str
    over: bool = False


OnProgress = Callable[[FillProgress], None]


def fill_sandbox(
    opened: OpenTarget,
    on_progress: OnProgress | None = None,
    *,
    start_upload: Callable[[UploadSettings], UploadJob] | None = None,
) -> None:
    """Draws and uploads the sample pictures where the sandbox's own prefix has no dataset; no other prefix is touched.

    Only one process makes the dataset, and the others wait for it. What a killed one has left is completed.
    `on_progress` is called from this thread (default: lines on stderr while there is something to make).
    `start_upload` lets a screen show and steer the upload. Raises ConsoleError.
    """
    sandbox, tell = opened.sandbox, on_progress or _Lines()
    if sandbox is None or not _is_own_prefix(opened.profile, sandbox):
        for stage in FillStage:
            tell(FillProgress(stage, f"not needed for {opened.profile.dataset_prefix}/", over=True))
        return
    with _only_one(sandbox.directory / "filling", tell):
        if not _has_dataset(opened):
            _make(opened, tell, start_upload)
            return
    tell(FillProgress(FillStage.PICTURES, "drawn before", over=True))
    tell(FillProgress(FillStage.UPLOAD, "the samples are in the bucket", over=True))


def _is_own_prefix(profile: Profile, sandbox: SharedSandbox) -> bool:
    return (profile.bucket, profile.dataset_prefix) == (sandbox.info.bucket, DATASET_PREFIX)


@contextmanager
def _only_one(path: Path, tell: OnProgress) -> Iterator[None]:
    """Holds the lock of making the dataset, which the kernel releases however its process ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConsoleError(
            f"The sample dataset cannot be made: {path}: {error.strerror}.",
            remedy="Set OSSCONSOLE_STATE_DIR to a folder you may write.",
        ) from error
    try:
        while not _locked(descriptor):
            tell(FillProgress(FillStage.PICTURES, "another process makes them"))
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_dataset(opened: OpenTarget) -> bool:
    """Whether there is something to train on: a manifest, a list of shards, or objects that training lists itself."""
    from ossconsole.dataset.formats import SampleFormat
    from ossconsole.dataset.manifest import SHARDS_NAME, TRAIN, manifest_key, object_key
    from ossconsole.storage.client import ObjectStore

    prefix = opened.profile.dataset_prefix
    store = ObjectStore(opened.profile, opened.credentials)
    try:
        if store.exists(manifest_key(prefix)) or store.exists(object_key(prefix, SHARDS_NAME)):
            return True
        page = store.list_page(object_key(prefix, f"{TRAIN}/"), delimiter="", max_keys=1)
        return any(found.key.endswith(SampleFormat.TENSOR_F32.suffix) for found in page.objects)
    finally:
        store.close()


def _make(opened: OpenTarget, tell: OnProgress, start_upload: Callable[[UploadSettings], UploadJob] | None) -> None:
    from ossconsole.dataset.formats import SampleFormat
    from ossconsole.dataset.sample_data import make_sample_images
    from ossconsole.dataset.upload.job import UploadSettings
    from ossconsole.dataset.upload.plan import create_upload

    def drawn(count: int, total: int) -> None:
        tell(FillProgress(FillStage.PICTURES, f"{count} of {total} drawn"))

    source = state_dir() / "sample-pictures"
    count = make_sample_images(source, on_drawn=drawn)
    tell(FillProgress(FillStage.PICTURES, f"{count} drawn", over=True))
    tell(FillProgress(FillStage.UPLOAD, f"0 of {count} sent"))
    settings = UploadSettings(source=source, format=SampleFormat.IMAGE_U8, size=SAMPLE_SIZE)
    if start_upload is not None:
        job = start_upload(settings)
    else:
        job = create_upload(opened.profile, opened.credentials, settings)
        job.start()
    try:
        while not job.wait(_LOOK_S):
            tell(FillProgress(FillStage.UPLOAD, f"{job.progress().done} of {count} sent"))
    except BaseException:  # such as Ctrl-C
        job.cancel()
        raise
    summary = job.result()
    if summary.cancelled or summary.failed:
        raise ConsoleError(
            "The upload of the sample dataset was cancelled."
            if summary.cancelled
            else f"{summary.failed} of the sample pictures could not be uploaded.",
            remedy="Start the command or the console again: the upload resumes.",
        )
    tell(FillProgress(FillStage.UPLOAD, f"{counted(count, 'sample')} in {summary.seconds:.1f} s", over=True))


class _Lines:
    """Prints progress on stderr: the first and the last report of each stage, and one every two seconds between."""

    def __init__(self) -> None:
        self._stage: FillStage | None = None
        self._told = 0.0
        self._making = False

    def __call__(self, progress: FillProgress) -> None:
        self._making |= not progress.over
        now = time.monotonic()
        begins = progress.stage is not self._stage
        if self._making and (begins or progress.over or now - self._told >= _LINE_EVERY_S):
            say(f"Making the sandbox's sample dataset: {progress.stage}: {progress.words}.", err=True)
            self._told = now
        self._stage = progress.stage
