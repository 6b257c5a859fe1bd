"""Verification of a dataset: the journal, or the manifest, compared with one listing of its prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.dataset.manifest import (
    MANIFEST_NAME,
    SHARDS_NAME,
    Manifest,
    ManifestError,
    ManifestMissingError,
    object_key,
    read_manifest_head,
)
from ossconsole.dataset.upload.journal import Expected, Journal
from ossconsole.dataset.upload.settings import UploadSettings
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.job import Job
from ossconsole.storage.objects import ObjectSummary

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore


class Finding(msgspec.Struct, frozen=True):
    """One difference: an object that is missing or has other content, or (`expected` None) one nobody expects."""

    key: str
    expected: Expected | None
    summary: ObjectSummary | None


def verify(store: ObjectStore, prefix: str, journal: Journal) -> Iterator[Finding]:
    """The differences between journal and bucket, from one listing and a HEAD for each object in doubt.

    Count, size and ETag are compared: OSS's ETag changes with the content, and the CRC64 was checked when the object
    with this ETag was written. Raises StorageError, JournalError.
    """
    below = object_key(prefix, "")
    there = ((summary.key[len(below) :], summary) for summary in store.list_all(below))
    for key, expected, summary in _merge(journal.expected(), there):
        if expected is None:
            if key != MANIFEST_NAME:
                yield Finding(key, None, summary)
        elif summary is None or not _same(store, expected, summary):
            yield Finding(key, expected, summary)


def _same(store: ObjectStore, expected: Expected, summary: ObjectSummary) -> bool:
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
    expected: Iterator[Expected], there: Iterable[tuple[str, ObjectSummary]]
) -> Iterator[tuple[str, Expected | None, ObjectSummary | None]]:
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


class PrefixTakenError(SettingsError):
    """The dataset prefix holds a dataset of another kind."""


class Found(msgspec.Struct, frozen=True):
    """What is below the prefix before an upload: nothing, a dataset with its manifest, or other objects."""

    empty: bool
    has_manifest: bool = False


def check_prefix(store: ObjectStore, prefix: str, settings: UploadSettings, *, shards: bool = False) -> Found:
    """What is below the prefix; with `shards` a dataset of shards may be there.

    Raises PrefixTakenError when its dataset has another format or size, StorageError when OSS refuses to tell.
    """
    try:
        head = read_manifest_head(store, prefix)
    except ManifestMissingError as error:
        if not shards and not error.empty and store.exists(object_key(prefix, SHARDS_NAME)):
            raise PrefixTakenError(
                f"{store.uri(prefix)} holds a dataset of shards.",
                remedy="Give this one another place with --dataset-prefix.",
            ) from error
        return Found(empty=error.empty)
    except ManifestError:  # to be replaced by a good one
        return Found(empty=False)
    if (head.format, head.size) != (settings.format, settings.size):
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds a dataset of {head.format} at {head.size} px, "
            f"not of {settings.format} at {settings.size} px.",
            remedy="Give this one another place with --dataset-prefix.",
        )
    return Found(empty=False, has_manifest=True)


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
        self._store = store.pausing(self.pause)
        self._prefix = prefix
        self._manifest = manifest

    def work(self) -> None:
        expected = self._expected()
        total = sum(map(len, self._manifest.splits.values()))
        self.ledger.expect(total, 0)
        self.ledger.totals_known()
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
                self.ledger.finish(wanted[0], 0, failed=True)
                wanted = next(expected, None)
            if wanted and wanted[0] == found.key:
                if found.size == wanted[1]:
                    counts["present"] += 1
                else:
                    note("wrong_size", f"{found.size:,} bytes instead of {wanted[1]:,}: {found.key}")
                self.ledger.finish(found.key, 0)
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
