"""UploadJob: prepares a source's pictures and uploads them as a dataset, in threads of its own."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profile import Profile
from ossconsole.dataset.flow import BandwidthCap, Gate, Stopped
from ossconsole.dataset.journal import Failure, Journal, Verdict, journal_path
from ossconsole.dataset.layout import Layout, SkippedFile
from ossconsole.dataset.manifest import (
    SPLITS,
    Manifest,
    ManifestError,
    Sample,
    encode_manifest,
    manifest_key,
    object_key,
    read_manifest,
)
from ossconsole.dataset.pipeline import Item, Pipeline
from ossconsole.dataset.prefix import Found, check_prefix
from ossconsole.dataset.progress import Counted, Failed, Ignored, PlanEnded, Planned, Reopened, Unchanged
from ossconsole.dataset.scoreboard import Phase, Picture, Scoreboard, UploadProgress
from ossconsole.dataset.settings import UploadSettings
from ossconsole.dataset.verify import Finding, verify
from ossconsole.storage.client import ObjectStore

_log = logging.getLogger(__name__)

_COUNT_BATCH = 500
_KEPT_NAMES = 1000


class UploadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How an upload ended. Counts are of files: `uploaded + skipped + failed` is all there were in the source.

    `skipped` are `unchanged` samples and `ignored` files that are no pictures; `bytes` were sent for `uploaded`
    samples. `removed` are keys in the bucket whose files are gone from the source (at most a thousand), `pruned` tells
    whether they were deleted; `unknown` objects below the prefix are none of this dataset's samples.
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
    pruned: bool = False
    unknown: int = 0
    cancelled: bool = False
    manifest: str = ""
    failures: tuple[Failure, ...] = ()
    ignored_files: tuple[Failure, ...] = ()


class _Foreign:
    """The samples of the manifest that was there before, which may come from another source or machine."""

    def __init__(self, store: ObjectStore, prefix: str, found: Found) -> None:
        self._store = store
        self._prefix = prefix
        self._found = found

    @functools.cached_property
    def _manifest(self) -> Manifest | None:
        """Read when the first unknown object turns up, which is rare: a long one takes memory."""
        try:
            return read_manifest(self._store, self._prefix) if self._found.has_manifest else None
        except ManifestError:
            return None

    @functools.cached_property
    def _samples(self) -> dict[str, Sample]:
        splits = self._manifest.splits.values() if self._manifest else ()
        return {sample.key: sample for samples in splits for sample in samples}

    def adopt(self, finding: Finding, journal: Journal) -> bool:
        """Keeps an object that the journal does not know but the manifest lists; False for any other."""
        sample = self._samples.get(finding.key)
        if self._manifest is None or sample is None or finding.summary is None:
            return False
        if finding.summary.size != self._manifest.sample_bytes(sample):
            return False
        journal.adopt(sample, self._manifest.classes[sample.label], finding.summary.size, finding.summary.etag)
        return True


class UploadJob:
    """One upload, from `start` to its summary. It belongs to no screen and goes on without one."""

    elsewhere = False
    """Another process's upload, as the console sees it, has True here."""

    def __init__(self, profile: Profile, credentials: CredentialSource, settings: UploadSettings) -> None:
        """Raises SettingsError when the settings make no sense."""
        settings.recipe.check()
        self.profile = profile
        self.settings = settings
        self.error: ConsoleError | None = None
        """Why the upload ended early."""
        self._credentials = credentials
        self._prefix = profile.dataset_prefix
        self._gate = Gate()
        self._cap = BandwidthCap(settings.bandwidth, self._gate)
        self._board = Scoreboard(settings.worker_count)
        self._parallelism = settings.parallelism
        self._pipeline: Pipeline | None = None
        self._ended = threading.Event()
        self._ignored: list[Failure] = []
        self._removed: list[str] = []
        self._pruned = False
        self._unknown = 0
        self._manifest = ""

    def start(self) -> None:
        threading.Thread(target=self._main, name="upload", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    @property
    def source(self) -> str:
        return str(self.settings.source)

    def pause(self) -> None:
        """Stops after the pictures and samples in hand."""
        self._gate.pause()

    def resume(self) -> None:
        self._gate.resume()

    def cancel(self) -> None:
        """Ends the upload; what was sent stays, and the next upload goes on from there."""
        self._gate.stop()

    def set_parallelism(self, number: int) -> None:
        """How many samples are sent at once (1 to 64), from now on."""
        self._parallelism = number
        if self._pipeline:
            self._pipeline.set_parallelism(number)

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Caps what is sent, from now on; None for no cap."""
        self._cap.set(bytes_per_s)

    def progress(self) -> UploadProgress:
        """Where the upload stands now; cheap."""
        return self._board.snapshot(
            paused=self._gate.paused,
            parallelism=self._pipeline.parallelism if self._pipeline else self._parallelism,
            bandwidth=self._cap.limit,
            error=str(self.error or ""),
        )

    def picture(self) -> Picture | None:
        """The newest prepared sample, for a look at it."""
        return self._board.picture

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False on timeout."""
        return self._ended.wait(timeout_s)

    def wait(self, timeout_s: float | None = None) -> UploadSummary:
        """The summary, once the upload has ended. Raises the ConsoleError that ended it early, TimeoutError."""
        if not self._ended.wait(timeout_s):
            raise TimeoutError("the upload is still running")
        if self.error is not None:
            raise self.error
        return self.summary()

    def summary(self) -> UploadSummary:
        """What has happened so far."""
        tally, seconds = self._board.tally, self._board.seconds
        return UploadSummary(
            uploaded=tally.uploaded,
            skipped=tally.unchanged + tally.ignored,
            failed=tally.failed,
            bytes=tally.bytes,
            seconds=seconds,
            samples_per_s=tally.uploaded / seconds if seconds > 0 else 0.0,
            unchanged=tally.unchanged,
            ignored=tally.ignored,
            retries=self._board.retries,
            removed=tuple(self._removed[:_KEPT_NAMES]),
            pruned=self._pruned,
            unknown=self._unknown,
            cancelled=self._board.phase is Phase.CANCELLED,
            manifest=self._manifest,
            failures=tuple(self._board.failures),
            ignored_files=tuple(self._ignored),
        )

    # The job's own thread

    def _main(self) -> None:
        phase = Phase.FAILED
        try:
            self._work()
            phase = Phase.DONE
        except Stopped:
            phase = Phase.CANCELLED
        except ConsoleError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  a thread has nobody above it who would report
            _log.exception("the upload ended with an unexpected error")
            self.error = ConsoleError(f"The upload ended with an unexpected {type(error).__name__}: {error}.")
        finally:
            self._board.end(phase)
            self._ended.set()

    def _work(self) -> None:
        settings = self.settings
        layout = Layout(settings.source)
        store = ObjectStore(self.profile, self._credentials)
        # The pipeline retries by itself, where it can be stopped and seen.
        sender = ObjectStore(self.profile, self._credentials, attempts=1, pool_size=64)
        found = check_prefix(store, self._prefix, settings)
        self._foreign = _Foreign(store, self._prefix, found)
        with contextlib.closing(self._open_journal()) as journal:
            if found.empty:
                journal.forget_all()
            elif journal.fresh:
                journal.distrust()
            self._pipeline = Pipeline(
                store=sender,
                prefix=self._prefix,
                recipe=settings.recipe,
                journal=journal,
                board=self._board,
                gate=self._gate,
                cap=self._cap,
                workers=settings.worker_count,
                parallelism=self._parallelism,
            )
            if layout.countable:
                threading.Thread(target=self._count, args=(layout,), name="upload-count", daemon=True).start()
            self._board.phase = Phase.UPLOADING
            self._pipeline.run(self._plan(layout, journal))
            self._verify(store, layout, journal)
            self._finish(store, layout, journal)

    def _open_journal(self) -> Journal:
        path = journal_path(self.profile, self._prefix)
        return Journal(path, source=str(self.settings.source), recipe=self.settings.recipe.digest)

    def _count(self, layout: Layout) -> None:
        """Counts ahead of the planner, which is held back by the pipeline, so that there is a total to go by."""
        files = 0
        with contextlib.suppress(Stopped, ConsoleError):  # of the planner, which meets the same
            for _ in layout.items():
                files += 1
                if files == _COUNT_BATCH:
                    self._gate.check()
                    self._board.happened(Counted(files))
                    files = 0
            self._board.happened(Counted(files))
            self._board.totals_known()

    def _plan(self, layout: Layout, journal: Journal) -> Iterator[Item]:
        """What is to be sent; every other file is settled here."""
        suffix = self.settings.format.suffix
        for item in layout.items():
            self._gate.check()
            self._board.happened(Planned())
            if isinstance(item, SkippedFile):
                self._skip(item)
                continue
            ruling = journal.rule(item, suffix)
            if ruling.verdict is Verdict.SEND:
                yield Item(item, ruling.key, ruling.crc64, ruling.doubtful)
            elif ruling.verdict is Verdict.UNCHANGED:
                self._board.happened(Unchanged())
            else:
                reason = f"the keys {item.key}{suffix} and {item.spare_key}{suffix} belong to other files"
                self._board.failed(Failure(item.path, reason), Failed())
        self._board.happened(PlanEnded())

    def _skip(self, item: SkippedFile) -> None:
        note = Failure(item.path, item.reason)
        if item.lost:
            self._board.failed(note, Failed())
            return
        if len(self._ignored) < _KEPT_NAMES:
            self._ignored.append(note)
        self._board.happened(Ignored())

    def _verify(self, store: ObjectStore, layout: Layout, journal: Journal) -> None:
        """Compares the bucket with the journal, sends what is missing once more, and compares again."""
        self._board.phase = Phase.VERIFYING
        if not self._compare(store, journal):
            return
        assert self._pipeline is not None  # noqa: S101
        self._board.phase = Phase.UPLOADING
        self._pipeline.run(self._repairs(layout, journal))
        self._board.phase = Phase.VERIFYING
        self._compare(store, journal)
        for path in journal.unsettled():
            failure = Failure(path, "sent, and yet the bucket does not have it")
            journal.fail(failure)
            self._board.failed(failure, Failed(again=True))

    def _compare(self, store: ObjectStore, journal: Journal) -> int:
        """How many samples have to be sent again."""
        reopened = 0
        self._unknown = 0
        for finding in verify(store, self._prefix, journal):
            self._gate.check()
            expected = finding.expected
            if expected is None:
                self._unknown += not self._foreign.adopt(finding, journal)
                continue
            journal.reopen(expected.path)
            if expected.present and not expected.failed:
                self._board.happened(Reopened(unchanged=not expected.this_run))
                reopened += 1
        return reopened

    def _repairs(self, layout: Layout, journal: Journal) -> Iterator[Item]:
        for item in layout.items():
            self._gate.check()
            if not isinstance(item, SkippedFile) and (key := journal.reopened_key(item.path)):
                yield Item(item, key, again=True)

    def _finish(self, store: ObjectStore, layout: Layout, journal: Journal) -> None:
        """Writes the manifest of all samples that are in the bucket."""
        self._board.phase = Phase.FINISHING
        journal.drop_unsent()
        self._removed = list(journal.removed())
        if self.settings.prune:
            journal.forget(self._removed)
        classes = layout.label_order(journal.classes())
        labels = {name: label for label, name in enumerate(classes)}
        splits = {split: journal.samples(split, labels) for split in SPLITS if journal.has_samples(split)}
        if not splits:
            raise ConsoleError(
                f"No picture in {self.settings.source} became a sample ({self._board.tally.failed} failed).",
                remedy="See the failures; pictures belong into train/<class>/ and val/<class>/.",
            )
        head = Manifest(
            format=self.settings.format,
            size=self.settings.size,
            classes=classes,
            preparation=self.settings.recipe.describe(),
            splits={},
        )
        store.put(manifest_key(self._prefix), encode_manifest(head, splits), content_type="application/json")
        self._manifest = store.uri(manifest_key(self._prefix))
        if self.settings.prune:
            # Last, so that no manifest ever lists an object that is gone.
            store.delete_many(object_key(self._prefix, key) for key in self._removed)
            self._pruned = True
