"""A manifest compared with what the bucket has: missing samples, samples of another size, objects nobody listed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ossconsole.dataset.manifest import MANIFEST_NAME, Manifest, object_key
from ossconsole.storage.job import Job

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

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
