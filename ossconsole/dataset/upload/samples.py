"""SampleUpload: every picture becomes one object, and a manifest lists them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import (
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    ManifestError,
    Sample,
    encode_manifest,
    manifest_key,
    object_key,
    read_manifest,
)
from ossconsole.dataset.source.layout import Layout, SkippedFile
from ossconsole.dataset.upload.job import PrefixState, UploadJob, check_prefix
from ossconsole.dataset.upload.journal import ExpectedObject, Journal, PlanAction, journal_path
from ossconsole.dataset.upload.pipeline import Pipeline, UploadItem
from ossconsole.dataset.upload.progress import (
    Counted,
    Phase,
    PlanEnded,
    Planned,
    SampleFailed,
    SampleMissing,
    Unchanged,
)
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.job import Failure, Job
from ossconsole.storage.jobs.threads import Cancelled
from ossconsole.storage.objects import ObjectSummary

_COUNT_BATCH = 500


class _ExistingManifest:
    """The samples of the manifest that was there before, which may come from another source or machine."""

    def __init__(self, store: ObjectStore, prefix: str, found: PrefixState) -> None:
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

    def import_sample(self, finding: Mismatch, journal: Journal) -> bool:
        """Keeps an object that the journal does not know but the manifest lists; False for any other."""
        sample = self._samples.get(finding.key)
        if self._manifest is None or sample is None or finding.summary is None:
            return False
        if finding.summary.size != self._manifest.sample_bytes(sample):
            return False
        journal.import_sample(sample, self._manifest.classes[sample.label], finding.summary.size, finding.summary.etag)
        return True


class SampleUpload(UploadJob):
    """Plans, prepares, sends and verifies; what is in the bucket is kept in a journal as it happens."""

    def work(self) -> None:
        layout = Layout(self.settings.source)
        found = check_prefix(self.store, self.prefix, self.settings)
        existing = _ExistingManifest(self.store, self.prefix, found)
        with contextlib.closing(self._open_journal()) as journal:
            if found.empty:
                journal.forget_all()
            elif journal.is_empty:
                journal.assume_stale()
            pipeline = Pipeline(self, journal)
            if layout.countable:
                threading.Thread(target=self._count, args=(layout,), name="upload-count", daemon=True).start()
            self.stats.phase = Phase.UPLOADING
            pipeline.run(self._plan(layout, journal))
            self._verify(pipeline, layout, journal, existing)
            self._finish(layout, journal)

    def _open_journal(self) -> Journal:
        path = journal_path(self.store.profile, self.prefix)
        return Journal(path, source=str(self.settings.source), recipe=self.settings.preprocessing.digest)

    def _count(self, layout: Layout) -> None:
        """Counts ahead of the planner, which is held back by the pipeline, so that there is a total to go by."""
        found = 0
        with contextlib.suppress(Cancelled, ConsoleError):  # of the planner, which meets the same
            for files in layout.counts():
                found += files
                if found >= _COUNT_BATCH:
                    self.gate.check()
                    self.stats.apply(Counted(found))
                    found = 0
            self.stats.apply(Counted(found))
            self.stats.totals_known()

    def _plan(self, layout: Layout, journal: Journal) -> Iterator[UploadItem]:
        """What is to be sent; every other file is settled here."""
        suffix = self.settings.format.suffix
        for item in layout.items():
            self.gate.check()
            self.stats.apply(Planned())
            if isinstance(item, SkippedFile):
                self.skip(item)
                continue
            decision = journal.plan(item, suffix)
            if decision.action is PlanAction.SEND:
                yield UploadItem(item, decision.key, decision.crc64, decision.doubtful)
            elif decision.action is PlanAction.UNCHANGED:
                self.stats.apply(Unchanged())
            else:
                self.record_failure(Failure(item.path, decision.action.reason))
        self.planned(layout)
        self.stats.apply(PlanEnded())

    def _verify(self, pipeline: Pipeline, layout: Layout, journal: Journal, existing: _ExistingManifest) -> None:
        """Compares the bucket with the journal, sends what is missing once more, and compares again."""
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
            self.record_failure(failure, SampleFailed(resent=True))

    def _compare(self, journal: Journal, existing: _ExistingManifest) -> int:
        """How many samples have to be sent again."""
        missing = 0
        self.unknown = 0
        for finding in verify(self.store, self.prefix, journal):
            self.gate.check()
            expected = finding.expected
            if expected is None:
                self.unknown += not existing.import_sample(finding, journal)
                continue
            journal.mark_missing(expected.path)
            if expected.present and not expected.failed:
                self.stats.apply(SampleMissing(unchanged=not expected.this_run))
                missing += 1
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
        self.removed = list(journal.removed())
        if self.settings.prune:
            journal.forget(self.removed)
        classes = layout.label_order(journal.classes())
        labels = {name: label for label, name in enumerate(classes)}
        splits = {split: journal.samples(split, labels) for split in SPLITS if journal.has_samples(split)}
        if not splits:
            raise self.no_samples(layout)
        head = Manifest(
            format=self.settings.format,
            size=self.settings.size,
            classes=classes,
            preparation=self.settings.preprocessing.describe(),
            splits={},
        )
        self.store.put(manifest_key(self.prefix), encode_manifest(head, splits), content_type="application/json")
        self.manifest = self.store.uri(manifest_key(self.prefix))
        if self.settings.prune:
            # Last, so that no manifest ever lists an object that is gone.
            self.store.delete_many(object_key(self.prefix, key) for key in self.removed)
            self.pruned = True


class Mismatch(msgspec.Struct, frozen=True):
    """One difference: an object that is missing or has other content, or (`expected` None) one nobody expects."""

    key: str
    expected: ExpectedObject | None
    summary: ObjectSummary | None


def verify(store: ObjectStore, prefix: str, journal: Journal) -> Iterator[Mismatch]:
    """The differences between journal and bucket, from one listing and a HEAD for each object in doubt.

    Count, size and ETag are compared: OSS's ETag changes with the content, and the CRC64 was checked when the object
    with this ETag was written. Raises StorageError, JournalError.
    """
    below = object_key(prefix, "")
    there = ((summary.key[len(below) :], summary) for summary in store.list_all(below))
    for key, expected, summary in _merge(journal.expected(), there):
        if expected is None:
            if key != MANIFEST_NAME:
                yield Mismatch(key, None, summary)
        elif summary is None or not _same(store, expected, summary):
            yield Mismatch(key, expected, summary)


def _same(store: ObjectStore, expected: ExpectedObject, summary: ObjectSummary) -> bool:
    if summary.size != expected.bytes:
        return False
    if summary.etag.strip('"') == expected.etag.strip('"'):
        return True
    try:
        return str(store.head(summary.key).crc64) == expected.crc64
    except StorageError as error:
        if error.status == 404:
            return False
        raise


def _merge(
    expected: Iterator[ExpectedObject], there: Iterable[tuple[str, ObjectSummary]]
) -> Iterator[tuple[str, ExpectedObject | None, ObjectSummary | None]]:
    """Both, side by side by key; each comes in the order of its keys' UTF-8 bytes."""
    wanted = next(expected, None)
    for key, summary in there:
        while wanted is not None and wanted.key.encode() < key.encode():
            yield wanted.key, wanted, None
            wanted = next(expected, None)
        if wanted is not None and wanted.key == key:
            yield key, wanted, summary
            wanted = next(expected, None)
        else:
            yield key, None, summary
    while wanted is not None:
        yield wanted.key, wanted, None
        wanted = next(expected, None)


_MAX_EXAMPLES = 20


class ManifestFindings(msgspec.Struct, frozen=True, kw_only=True):
    """What differs; `examples` are some lines of each kind, in words."""

    samples: int = 0
    present: int = 0
    missing: int = 0
    wrong_size: int = 0
    unlisted: int = 0
    examples: tuple[str, ...] = ()


class ManifestCheck(Job):
    """Walks the listing and the manifest side by side, both in the order of keys; `findings` may be read any time."""

    def __init__(self, store: ObjectStore, prefix: str, manifest: Manifest) -> None:
        super().__init__(f"Check of {store.uri(prefix)}", threads=1)
        self.findings = ManifestFindings()
        self._store = store.pausing(self.wait_to_retry)
        self._prefix = prefix
        self._manifest = manifest

    def work(self) -> None:
        expected = self._expected()
        total = sum(map(len, self._manifest.splits.values()))
        self.tracker.add_total(total, 0)
        self.tracker.totals_known()
        counts = dict.fromkeys(("present", "missing", "wrong_size", "unlisted"), 0)
        examples: list[str] = []
        wanted = next(expected, None)

        def note(kind: str, text: str) -> None:
            counts[kind] += 1
            if counts[kind] <= _MAX_EXAMPLES:
                examples.append(text)

        for number, found in enumerate(self._store.list_all(object_key(self._prefix, ""))):
            self.check_cancelled()
            while wanted and wanted[0] < found.key:
                note("missing", f"missing: {wanted[0]}")
                self.tracker.complete(wanted[0], 0, failed=True)
                wanted = next(expected, None)
            if wanted and wanted[0] == found.key:
                if found.size == wanted[1]:
                    counts["present"] += 1
                else:
                    note("wrong_size", f"{found.size:,} bytes instead of {wanted[1]:,}: {found.key}")
                self.tracker.complete(found.key, 0)
                wanted = next(expected, None)
            elif not found.key.endswith(("/", MANIFEST_NAME)):
                note("unlisted", f"not in the manifest: {found.key}")
            if number % 500 == 0:
                self.findings = ManifestFindings(samples=total, examples=tuple(examples), **counts)
        while wanted:
            note("missing", f"missing: {wanted[0]}")
            wanted = next(expected, None)
        self.findings = ManifestFindings(samples=total, examples=tuple(examples), **counts)

    def _expected(self) -> Iterator[tuple[str, int]]:
        samples = [sample for split in self._manifest.splits.values() for sample in split]
        samples.sort(key=lambda sample: sample.key)
        for sample in samples:
            yield object_key(self._prefix, sample.key), self._manifest.sample_bytes(sample)
