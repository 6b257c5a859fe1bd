"""UploadJob: prepares the images of a source and uploads them as a dataset; settings, summary, and the prefix check.

Its subclasses are the two ways to store a dataset: SampleUpload (an object per sample) and ShardUpload (tar shards).
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile, checked
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.labels import LabelFiles
from ossconsole.dataset.manifest import (
    SHARDS_NAME,
    ManifestError,
    ManifestMissingError,
    Unused,
    UnusedCounter,
    object_key,
    read_manifest_head,
)
from ossconsole.dataset.source.files import PlannedSample, SkippedFile
from ossconsole.dataset.source.layout import Layout, SourceOptions
from ossconsole.dataset.upload.prepare import DEFAULT_QUALITY, PreprocessConfig
from ossconsole.dataset.upload.progress import (
    IGNORED,
    PLAN_ENDED,
    PLANNED,
    REJECTED,
    Counts,
    Phase,
    SamplePreview,
    UploadProgress,
    UploadStats,
    sample_failed,
)
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import BackgroundJob, Failure, JobState
from ossconsole.storage.jobs.threads import BandwidthCap, ThreadPool
from ossconsole.storage.retry import RetryPolicy, Wait

DEFAULT_PARALLELISM = 32
MAX_PARALLELISM = 64
KEPT_FAILURES = 1000
RETRIES = RetryPolicy(attempts=6)
"""Of each request of an upload: it may run unattended."""


class UploadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to upload and how.

    `size` and `quality` are as in PreprocessConfig (0: the format's default), `seed` fixes the random crops of
    tensor-f32. With `originals` (image-jpeg) the files are sent as they are. `workers` are preparation processes
    (0: one per core), `parallelism` samples sent simultaneously, `bandwidth` bytes per second
    (None: no cap). With `prune`, samples whose files are missing from the source are deleted from the bucket.
    `per_shard` samples go into one tar (0: each becomes an object). `prefix` is the dataset's ("": the profile's).
    `labels`, `names` and `val_split` are as in SourceOptions.
    """

    source: Path
    format: SampleFormat = SampleFormat.IMAGE_JPEG
    size: int = 0
    quality: int = 0
    originals: bool = False
    keep_ratio: bool = False
    seed: int = 0
    workers: int = 0
    parallelism: int = DEFAULT_PARALLELISM
    bandwidth: float | None = None
    prune: bool = False
    per_shard: int = 0
    prefix: str = ""
    labels: LabelFiles = LabelFiles()
    names: str = ""
    val_split: float = 0.0

    def __post_init__(self) -> None:
        if self.originals:
            return
        msgspec.structs.force_setattr(self, "size", self.size or self.format.default_size)
        if self.format is SampleFormat.IMAGE_JPEG:
            msgspec.structs.force_setattr(self, "quality", self.quality or DEFAULT_QUALITY)

    @property
    def preprocessing(self) -> PreprocessConfig:
        """How images become samples."""
        return PreprocessConfig(self.format, self.size, self.keep_ratio, self.seed, self.quality, self.originals)

    @property
    def stored_as(self) -> str:
        """The format and the size of the samples, for people."""
        if self.originals:
            return f"{self.format}, the original files"
        return self.format.at_size(self.size) + (", ratio kept" if self.keep_ratio else "")

    @property
    def worker_count(self) -> int:
        """Preparation processes, at least 1."""
        return self.workers or len(os.sched_getaffinity(0))

    def layout(self) -> Layout:
        """The layout of the source. Raises ConsoleError when it is not one."""
        options = SourceOptions(labels=self.labels, names=self.names, val_split=self.val_split, seed=self.seed)
        return Layout(self.source, options)

    def with_prefix(self, profile: Profile) -> Profile:
        """The profile with the dataset prefix of these settings. Raises SettingsError."""
        return checked(msgspec.structs.replace(profile, dataset_prefix=self.prefix)) if self.prefix else profile


class UploadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an upload. Counts are of files: `uploaded + skipped + failed` are all files of the source.

    `skipped` are `unchanged` samples and `ignored` files that are not used; `bytes` were sent for `uploaded` samples.
    `removed` are keys in the bucket whose files are missing from the source (the first thousand of `removed_count`);
    `pruned` says whether they were deleted; `unknown` objects below the prefix do not belong to this dataset. `unused`
    says by reason which files of the source are not used, `cautions` which names may be a mistake.
    """

    uploaded: int
    skipped: int
    failed: int
    bytes: int
    seconds: float
    samples_per_s: float
    unchanged: int = 0
    ignored: int = 0
    retries: int = 0
    removed: tuple[str, ...] = ()
    removed_count: int = 0
    pruned: bool = False
    unknown: int = 0
    cancelled: bool = False
    manifest: str = ""
    failures: tuple[Failure, ...] = ()
    ignored_files: tuple[Failure, ...] = ()
    unused: tuple[Unused, ...] = ()
    cautions: tuple[Unused, ...] = ()


class UploadJob(BackgroundJob):
    """One upload, from `start` to its summary. `failures` are the first thousand; the journal has all of them."""

    is_remote = False
    """True for the console's view of an upload in another process."""
    max_parallelism: ClassVar[int] = MAX_PARALLELISM

    def __init__(self, profile: Profile, credentials: CredentialSource, settings: UploadSettings) -> None:
        """Raises SettingsError when the settings make no sense."""
        super().__init__(f"Upload of {safe_text(str(settings.source))}")
        settings.preprocessing.check()
        self.profile = settings.with_prefix(profile)
        self.settings = settings
        self.parallelism = min(settings.parallelism, self.max_parallelism)
        self.cap = BandwidthCap(settings.bandwidth, self.gate)
        self.stats = UploadStats(settings.worker_count)
        self.removed: list[str] = []
        self.pruned = False
        self.unknown = 0
        self.manifest = ""
        self.understood = ""
        """How the source is understood; known before anything is sent."""
        self.sender_pool: ThreadPool[Any] | None = None
        self.on_cancel: Callable[[], None] = lambda: None
        """Ends what does not look at the gate, such as the wait for a preparation process."""
        self._credentials = credentials
        self._ignored: list[Failure] = []
        self._unused = UnusedCounter()
        self._layout: Layout | None = None
        self._recording = threading.Lock()

    @property
    def prefix(self) -> str:
        """The dataset prefix."""
        return self.profile.dataset_prefix

    @property
    def source(self) -> str:
        """The path of the source."""
        return str(self.settings.source)

    @property
    def target(self) -> str:
        """The URI of the dataset."""
        return f"oss://{self.profile.bucket}/{self.prefix}"

    @functools.cached_property
    def store(self) -> ObjectStore:
        """For any number of threads. `cancel` ends the waits before its retries."""
        return ObjectStore(
            self.profile, self._credentials, retry=RETRIES, pause=self.wait_to_retry, pool_size=MAX_PARALLELISM
        )

    def wait_to_retry(self, wait: Wait) -> None:
        """Counts the retry and spends the wait before it. Raises Cancelled."""
        self.stats.add_retry()
        super().wait_to_retry(wait)

    # Control and results

    def cancel(self) -> None:
        """Ends the upload after the samples that are being sent; no image is waited for."""
        super().cancel()
        self.on_cancel()

    def pause(self) -> None:
        """Pauses after the images and samples in progress."""
        self.gate.pause()

    def resume(self) -> None:
        """Ends the pause."""
        self.gate.resume()

    def set_parallelism(self, number: int) -> None:
        """Changes how many samples (or parts of a tar) are sent simultaneously."""
        self.parallelism = max(1, min(number, self.max_parallelism))
        if self.sender_pool:
            self.sender_pool.resize(self.parallelism)

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Caps the bytes sent per second; None for no cap."""
        self.cap.set_limit(bytes_per_s)

    def progress(self) -> UploadProgress:
        """The figures of this moment; cheap."""
        return self.stats.snapshot(
            paused=self.gate.paused,
            parallelism=self.parallelism,
            bandwidth=self.cap.limit,
            error=str(self.error or ""),
            waiting=self.waiting,
        )

    def preview(self) -> SamplePreview | None:
        """The newest prepared sample; None before the first."""
        return self.stats.preview

    def result(self, timeout_s: float | None = None) -> UploadSummary:
        """The summary, after the end. Raises the ConsoleError that ended the upload early, TimeoutError."""
        if not self.wait(timeout_s):
            raise TimeoutError("the upload is still running")
        if self.error is not None:
            raise self.error
        return self.summary()

    def prune(self) -> None:
        """Deletes `removed` from the bucket if the settings say so. Raises StorageError.

        It comes after the manifest, so that none ever lists a deleted object.
        """
        if self.settings.prune:
            self.store.delete_many(object_key(self.prefix, key) for key in self.removed)
            self.pruned = True

    def summary(self) -> UploadSummary:
        """The results so far."""
        counts, seconds = self.stats.counts, self.stats.seconds
        return UploadSummary(
            uploaded=counts.uploaded,
            skipped=counts.unchanged + counts.ignored,
            failed=counts.failed,
            bytes=counts.bytes,
            seconds=seconds,
            samples_per_s=counts.uploaded / seconds if seconds > 0 else 0.0,
            unchanged=counts.unchanged,
            ignored=counts.ignored,
            retries=self.stats.retries,
            removed=tuple(self.removed[:KEPT_FAILURES]),
            removed_count=len(self.removed),
            pruned=self.pruned,
            unknown=self.unknown,
            cancelled=self.state is JobState.CANCELLED,
            manifest=self.manifest,
            failures=tuple(self.failures),
            ignored_files=tuple(self._ignored),
            unused=(*self._unused.groups(), *(self._layout.unused if self._layout else ())),
            cautions=self._layout.cautions if self._layout else (),
        )

    # For the subclasses and their threads

    def record_failure(self, failure: Failure, change: Counts | None = None) -> None:
        """Records a file that did not become a sample."""
        with self._recording:
            if len(self.failures) < KEPT_FAILURES:
                self.failures.append(failure)
        self.stats.add_failure(failure, change or sample_failed())

    def skip(self, item: SkippedFile) -> None:
        """Records a file that becomes no sample."""
        note = Failure(item.path, item.reason)
        if item.lost:
            self.record_failure(note, REJECTED)
            return
        if len(self._ignored) < KEPT_FAILURES:
            self._ignored.append(note)
        self._unused.add(item.path, item.reason)
        self.stats.add(IGNORED)

    def open_source(self) -> Layout:
        """The layout of the source. Raises ConsoleError when it cannot be read."""
        layout = self.settings.layout()
        self.understood = layout.describe()
        return layout

    def samples_of(
        self, layout: Layout, on_lost: Callable[[SkippedFile], object] = lambda _: None
    ) -> Iterator[PlannedSample]:
        """The samples of the source; counts every file, and records those that become no sample.

        `on_lost` gets those of them that may have been samples before. Raises Cancelled, and ConsoleError when the
        source cannot be read.
        """
        for item in layout.items():
            self.gate.check()
            self.stats.add(PLANNED)
            if isinstance(item, SkippedFile):
                self.skip(item)
                if item.lost:
                    on_lost(item)
            else:
                yield item
        self._layout = layout  # its list of unused files is complete now
        self.stats.add(PLAN_ENDED)

    def no_samples(self, layout: Layout) -> ConsoleError:
        """The error of an upload that has nothing to list."""
        counts = self.stats.counts
        text = (
            f"No image in {self.source} became a sample "
            f"({counts.failed} failed, {counted(counts.ignored, 'file')} not used)."
        )
        if self.failures:
            first = self.failures[0]
            text += f" The first failure: {safe_text(first.path)}: {first.reason.rstrip('.')}."
        return ConsoleError(text, remedy=layout.advice or "Correct what was refused, then run the upload again.")

    def _on_end(self) -> None:
        if self.state is JobState.CANCELLED:
            self.stats.end(Phase.CANCELLED)
        else:
            self.stats.end(Phase.FAILED if self.error else Phase.DONE)


class PrefixTakenError(SettingsError):
    """The dataset prefix holds a dataset of another kind."""


class PrefixState(msgspec.Struct, frozen=True):
    """What is below the prefix before an upload: nothing, a dataset with its manifest, or other objects."""

    empty: bool
    has_manifest: bool = False


def check_prefix(store: ObjectStore, prefix: str, settings: UploadSettings, *, shards: bool = False) -> PrefixState:
    """What is below the prefix; with `shards` a dataset of shards may be there.

    Raises PrefixTakenError when its dataset has another format or size, StorageError.
    """
    try:
        head = read_manifest_head(store, prefix)
    except ManifestMissingError as error:
        if not shards and not error.empty and store.exists(object_key(prefix, SHARDS_NAME)):
            raise PrefixTakenError(
                f"{store.uri(prefix)} holds a dataset of shards.",
                remedy="Use another prefix for this one with --dataset-prefix.",
            ) from error
        return PrefixState(empty=error.empty)
    except ManifestError:  # the upload replaces it
        return PrefixState(empty=False)
    if (head.format, head.size) != (settings.format, settings.size):
        same = f"--format {head.format} " + (f"--size {head.size}" if head.size else "--originals")
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds a dataset of {head.format.at_size(head.size)}, not of {settings.stored_as}.",
            remedy=f"Use another prefix for this one with --dataset-prefix, or add to that one with {same}.",
        )
    return PrefixState(empty=False, has_manifest=True)
