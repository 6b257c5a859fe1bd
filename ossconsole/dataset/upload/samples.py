"""SampleUpload: every picture becomes one object, and a manifest lists them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

from ossconsole.config.errors import ConsoleError
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
from ossconsole.dataset.source.layout import Layout, SkippedFile
from ossconsole.dataset.upload.context import UploadContext
from ossconsole.dataset.upload.flow import Stopped
from ossconsole.dataset.upload.journal import Failure, Journal, Verdict, journal_path
from ossconsole.dataset.upload.pipeline import MAX_PARALLELISM, Item, Pipeline
from ossconsole.dataset.upload.progress import Counted, Failed, Phase, PlanEnded, Planned, Reopened, Unchanged
from ossconsole.dataset.upload.verify import Finding, Found, check_prefix, verify
from ossconsole.storage.client import ObjectStore

_COUNT_BATCH = 500


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


class SampleUpload:
    """Plans, prepares, sends and verifies; what is in the bucket is kept in a journal as it happens."""

    def __init__(self, context: UploadContext) -> None:
        self.parallelism = context.settings.parallelism
        self._context = context
        self._settings = context.settings
        self._board = context.board
        self._gate = context.gate
        self._store = context.store
        self._prefix = context.prefix
        self._pipeline: Pipeline | None = None

    def set_parallelism(self, number: int) -> None:
        """How many samples are sent at once, from now on."""
        self.parallelism = max(1, min(number, MAX_PARALLELISM))
        if self._pipeline:
            self._pipeline.set_parallelism(self.parallelism)

    def work(self) -> None:
        """Raises Stopped, ConsoleError."""
        context, settings = self._context, self._settings
        layout = Layout(settings.source)
        found = check_prefix(self._store, self._prefix, settings)
        self._foreign = _Foreign(self._store, self._prefix, found)
        with contextlib.closing(self._open_journal()) as journal:
            if found.empty:
                journal.forget_all()
            elif journal.fresh:
                journal.distrust()
            self._pipeline = pipeline = Pipeline(
                store=context.store,
                prefix=self._prefix,
                recipe=settings.recipe,
                journal=journal,
                board=self._board,
                gate=self._gate,
                cap=context.cap,
                workers=settings.worker_count,
                parallelism=self.parallelism,
            )
            if layout.countable:
                threading.Thread(target=self._count, args=(layout,), name="upload-count", daemon=True).start()
            self._board.phase = Phase.UPLOADING
            pipeline.run(self._plan(layout, journal))
            self._verify(pipeline, layout, journal)
            self._finish(layout, journal)

    def _open_journal(self) -> Journal:
        path = journal_path(self._store.profile, self._prefix)
        return Journal(path, source=str(self._settings.source), recipe=self._settings.recipe.digest)

    def _count(self, layout: Layout) -> None:
        """Counts ahead of the planner, which is held back by the pipeline, so that there is a total to go by."""
        found = 0
        with contextlib.suppress(Stopped, ConsoleError):  # of the planner, which meets the same
            for files in layout.counts():
                found += files
                if found >= _COUNT_BATCH:
                    self._gate.check()
                    self._board.happened(Counted(found))
                    found = 0
            self._board.happened(Counted(found))
            self._board.totals_known()

    def _plan(self, layout: Layout, journal: Journal) -> Iterator[Item]:
        """What is to be sent; every other file is settled here."""
        suffix = self._settings.format.suffix
        for item in layout.items():
            self._gate.check()
            self._board.happened(Planned())
            if isinstance(item, SkippedFile):
                self._context.skip(item)
                continue
            ruling = journal.rule(item, suffix)
            if ruling.verdict is Verdict.SEND:
                yield Item(item, ruling.key, ruling.crc64, ruling.doubtful)
            elif ruling.verdict is Verdict.UNCHANGED:
                self._board.happened(Unchanged())
            else:
                self._board.lost(item.path, ruling.verdict.reason)
        self._context.settle(layout)
        self._board.happened(PlanEnded())

    def _verify(self, pipeline: Pipeline, layout: Layout, journal: Journal) -> None:
        """Compares the bucket with the journal, sends what is missing once more, and compares again."""
        self._board.phase = Phase.VERIFYING
        if not self._compare(journal):
            return
        self._board.phase = Phase.UPLOADING
        pipeline.run(self._repairs(layout, journal))
        self._board.phase = Phase.VERIFYING
        self._compare(journal)
        for path in journal.unsettled():
            failure = Failure(path, "sent, and yet the bucket does not have it")
            journal.fail(failure)
            self._board.failed(failure, Failed(again=True))

    def _compare(self, journal: Journal) -> int:
        """How many samples have to be sent again."""
        reopened = 0
        self._context.unknown = 0
        for finding in verify(self._store, self._prefix, journal):
            self._gate.check()
            expected = finding.expected
            if expected is None:
                self._context.unknown += not self._foreign.adopt(finding, journal)
                continue
            journal.reopen(expected.path)
            if expected.present and not expected.failed:
                self._board.happened(Reopened(unchanged=not expected.this_run))
                reopened += 1
        return reopened

    def _repairs(self, layout: Layout, journal: Journal) -> Iterator[Item]:
        repaired: set[str] = set()  # a name may be in the source more than once
        for item in layout.items():
            self._gate.check()
            if isinstance(item, SkippedFile) or item.path in repaired:
                continue
            if key := journal.reopened_key(item.path):
                repaired.add(item.path)
                yield Item(item, key, again=True)

    def _finish(self, layout: Layout, journal: Journal) -> None:
        """Writes the manifest of all samples that are in the bucket."""
        self._board.phase = Phase.FINISHING
        journal.drop_unsent()
        context = self._context
        context.removed = list(journal.removed())
        if self._settings.prune:
            journal.forget(context.removed)
        classes = layout.label_order(journal.classes())
        labels = {name: label for label, name in enumerate(classes)}
        splits = {split: journal.samples(split, labels) for split in SPLITS if journal.has_samples(split)}
        if not splits:
            raise ConsoleError(
                context.no_samples(),
                remedy=layout.advice,
            )
        head = Manifest(
            format=self._settings.format,
            size=self._settings.size,
            classes=classes,
            preparation=self._settings.recipe.describe(),
            splits={},
        )
        self._store.put(manifest_key(self._prefix), encode_manifest(head, splits), content_type="application/json")
        context.manifest = self._store.uri(manifest_key(self._prefix))
        if self._settings.prune:
            # Last, so that no manifest ever lists an object that is gone.
            self._store.delete_many(object_key(self._prefix, key) for key in context.removed)
            context.pruned = True
