"""SampleUpload: every image becomes one object, and a manifest lists them once journal and bucket agree."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import (
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    ManifestError,
    Sample,
    merge_by_key,
    object_key,
    read_manifest,
    write_manifest,
)
from ossconsole.dataset.source.files import SkippedFile
from ossconsole.dataset.source.layout import Layout
from ossconsole.dataset.upload.job import PrefixState, UploadJob, check_prefix
from ossconsole.dataset.upload.journal import ExpectedObject, Journal, PlanAction, journal_path
from ossconsole.dataset.upload.pipeline import Pipeline, UploadItem
from ossconsole.dataset.upload.progress import (
    REJECTED,
    UNCHANGED,
    Counts,
    Phase,
    sample_failed,
    sample_missing,
)
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.job import Failure
from ossconsole.storage.jobs.threads import Cancelled, PauseGate, ThreadPool
from ossconsole.storage.objects import ObjectSummary

_COUNT_BATCH = 500


class _ExistingManifest:
    """The samples of an earlier manifest, which may be of another source or machine."""

    def __init__(self, job: SampleUpload, state: PrefixState) -> None:
        self._job = job
        self._found = state
        self._lock = threading.Lock()

    def lists(self, key: str) -> bool:
        """Whether it has a sample of this relative key; for any thread."""
        with self._lock:
            return key in self._samples

    @functools.cached_property
    def _samples(self) -> dict[str, tuple[Sample, str, int]]:
        """Class name and bytes by key. Read at the first unknown object, which is rare: this takes memory."""
        try:
            manifest = read_manifest(self._job.store, self._job.prefix) if self._found.has_manifest else None
        except ManifestError:
            manifest = None
        return {
            sample.key: (sample, manifest.classes[sample.label], manifest.sample_bytes(sample))
            for samples in (manifest.splits.values() if manifest else ())
            for sample in samples
            if manifest
        }

    def import_sample(self, mismatch: Mismatch, journal: Journal) -> bool:
        """Adds an object to the journal that only the manifest lists; False for any other."""
        sample, class_name, size = self._samples.get(mismatch.key, (None, "", 0))
        if sample is None or mismatch.summary is None or mismatch.summary.size != size:
            return False
        journal.import_sample(sample, class_name, size, mismatch.summary.etag)
        return True


class SampleUpload(UploadJob):
    """Plans, prepares, sends and verifies; a journal records each sample as it reaches the bucket."""

    def work(self) -> None:
        """Uploads all samples and the manifest. Raises Cancelled, ConsoleError."""
        layout = self.open_source()
        found = check_prefix(self.store, self.prefix, self.settings)
        existing = _ExistingManifest(self, found)
        with contextlib.closing(self._open_journal()) as journal:
            if found.empty:
                journal.forget_all()
                journal.set_beside_others(False)
            elif journal.is_empty:
                journal.set_beside_others(True)
            pipeline = Pipeline(self, journal, lambda key: not journal.beside_others or existing.lists(key))
            if layout.countable:
                threading.Thread(target=self._count, args=(layout,), name="upload-count", daemon=True).start()
            self.stats.phase = Phase.UPLOADING
            pipeline.run(self._plan(layout, journal))
            if not found.has_manifest:
                journal.forget_other_settings()
            self._verify(pipeline, layout, journal, existing)
            self._finish(layout, journal)

    def _open_journal(self) -> Journal:
        path = journal_path(self.store.profile, self.prefix)
        return Journal(path, source=str(self.settings.source), recipe=self.settings.preprocessing.digest)

    def _count(self, layout: Layout) -> None:
        """Counts the files ahead of the planner, which waits for the pipeline, so that the total is known early."""
        found = 0
        with contextlib.suppress(Cancelled, ConsoleError):  # the planner raises the same
            for files in layout.counts():
                found += files
                if found >= _COUNT_BATCH:
                    self.gate.check()
                    self.stats.add(Counts(counted=found))
                    found = 0
            self.stats.add(Counts(counted=found))
            self.stats.totals_known()

    def _plan(self, layout: Layout, journal: Journal) -> Iterator[UploadItem]:
        """The samples to send; those that are in the bucket already, or cannot be sent, are counted here."""
        suffix = self.settings.preprocessing.suffix
        for item in self.samples_of(layout, on_lost=journal.keep_lost):
            decision = journal.plan(item, suffix)
            if decision.action is PlanAction.SEND:
                yield UploadItem(item, decision.key, decision.crc64, decision.doubtful)
            elif decision.action is PlanAction.UNCHANGED:
                self.stats.add(UNCHANGED)
                self.stats.count_class(item.class_name)
            else:
                self.record_failure(Failure(item.path, decision.action.reason), REJECTED)

    def _verify(self, pipeline: Pipeline, layout: Layout, journal: Journal, existing: _ExistingManifest) -> None:
        """Compares the bucket with the journal, sends missing samples again, and compares again."""
        self.stats.phase = Phase.VERIFYING
        if not self._compare(journal, existing):
            return
        self.stats.phase = Phase.UPLOADING
        pipeline.run(self._repairs(layout, journal))
        self.stats.phase = Phase.VERIFYING
        self._compare(journal, existing)
        for path in journal.unfinished():
            failure = Failure(path, "uploaded, but missing from the bucket listing")
            journal.fail(failure)
            self.record_failure(failure, sample_failed(resent=True))

    def _compare(self, journal: Journal, existing: _ExistingManifest) -> int:
        """Returns the number of samples to send again."""
        missing = 0
        self.unknown = 0

        def report(mismatch: Mismatch) -> None:
            nonlocal missing
            expected = mismatch.expected
            if expected is None:
                self.unknown += not existing.import_sample(mismatch, journal)
                return
            journal.mark_missing(expected.path)
            if expected.present and not expected.failed:
                self.stats.add(sample_missing(unchanged=not expected.this_run))
                missing += 1

        verify(self.store, self.prefix, journal, report, gate=self.gate, threads=self.parallelism)
        return missing

    def _repairs(self, layout: Layout, journal: Journal) -> Iterator[UploadItem]:
        repaired: set[str] = set()  # a name may be in the source more than once
        for item in layout.items():
            self.gate.check()
            if isinstance(item, SkippedFile) or item.path in repaired:
                continue
            if key := journal.missing_key(item.path):
                repaired.add(item.path)
                yield UploadItem(item, key, resent=True)

    def _finish(self, layout: Layout, journal: Journal) -> None:
        """Writes the manifest of all samples that are in the bucket."""
        self.stats.phase = Phase.FINISHING
        journal.drop_unsent()
        if not self.unknown:
            journal.set_beside_others(False)
        self.removed, moved = list(journal.removed()), list(journal.moved())
        if self.settings.prune:
            self.removed += moved
            journal.leave_out_removed()
        else:
            self.unknown += len(moved)
        classes = layout.label_order(journal.classes())
        labels = {name: label for label, name in enumerate(classes)}
        fmt = self.settings.format
        splits = {split: journal.samples(split, labels, fmt) for split in SPLITS if journal.has_samples(split)}
        if not splits:
            raise self.no_samples(layout)
        head = Manifest(
            format=fmt,
            size=self.settings.size,
            classes=classes,
            preparation=self.settings.preprocessing.describe(),
            splits={},
        )
        self.manifest = write_manifest(self.store, self.prefix, head, splits)
        self.prune()
        if self.pruned:  # not before: a deletion that fails is repeated by the next upload
            journal.forget(self.removed)


# The verification: what the journal says was sent, compared with what the bucket lists


class Mismatch(msgspec.Struct, frozen=True):
    """One difference: an object that is missing or has other content, or (`expected` None) an unknown object."""

    key: str
    expected: ExpectedObject | None
    summary: ObjectSummary | None


class _Doubt(msgspec.Struct, frozen=True):
    """An object of the expected size whose ETag is not the one in the journal."""

    key: str
    expected: ExpectedObject
    summary: ObjectSummary


def verify(
    store: ObjectStore,
    prefix: str,
    journal: Journal,
    report: Callable[[Mismatch], None],
    *,
    gate: PauseGate,
    threads: int,
) -> None:
    """Reports the differences between journal and bucket, from one listing and a HEAD for each object in doubt.

    Count, size and ETag are compared: OSS's ETag changes with the content, and the CRC64 was checked when the object
    with this ETag was written. An ETag need not be an MD5, and changes without the content where a bucket was copied or
    encrypted again: then the CRC64 decides, in `threads` requests simultaneously, and the journal gets the new ETag, so
    that the next verification needs no request. `report` is called by one thread at a time.

    Raises Cancelled, StorageError, JournalError.
    """
    reporting = threading.Lock()

    def resolve(doubt: _Doubt) -> None:
        if _has_content(store, doubt):
            journal.set_etag(doubt.expected.path, doubt.summary.etag)
            return
        with reporting:
            report(Mismatch(doubt.key, doubt.expected, doubt.summary))

    def doubts() -> Iterator[_Doubt]:
        for found in _differences(store, prefix, journal):
            gate.check()
            if isinstance(found, _Doubt):
                yield found
            elif found is not None:
                with reporting:
                    report(found)

    ThreadPool(resolve, gate, threads, limit=threads * 2, name="upload-verify").run(doubts())


def _differences(store: ObjectStore, prefix: str, journal: Journal) -> Iterator[Mismatch | _Doubt | None]:
    """What one listing says of each object; None for one that is as expected."""
    below = object_key(prefix, "")
    listed = ((summary.key[len(below) :], summary) for summary in store.list_all(below))
    for key, expected, summary in merge_by_key(((each.key, each) for each in journal.expected()), listed):
        if expected is None:
            yield Mismatch(key, None, summary) if key != MANIFEST_NAME else None
        elif summary is None or summary.size != expected.bytes:
            yield Mismatch(key, expected, summary)
        else:
            same = summary.etag.strip('"') == expected.etag.strip('"')
            yield None if same else _Doubt(key, expected, summary)


def _has_content(store: ObjectStore, doubt: _Doubt) -> bool:
    """Whether the object has the CRC64 of the bytes that were sent. Raises StorageError."""
    try:
        return str(store.head(doubt.summary.key).crc64) == doubt.expected.crc64
    except StorageError as error:
        if error.status == 404:
            return False
        raise
