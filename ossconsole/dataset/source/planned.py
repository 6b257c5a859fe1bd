"""Planned samples: what a source's files become, before anything is prepared."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ossconsole.dataset.manifest import key_problem
from ossconsole.dataset.source.files import FileLocation, SourceFile

_JPEG_SUFFIXES = (".jpeg", ".jpg")


class PlannedSample(msgspec.Struct, frozen=True, gc=False):
    """One image to become a sample.

    `path` is inside the source. `key` is relative to the dataset prefix and without the format's suffix; `spare_key`
    replaces it when another file has that key already (`a.jpg` beside `a.jpeg`).
    """

    path: str
    split: str
    class_name: str
    key: str
    spare_key: str
    size: int
    mtime_ns: int
    location: FileLocation

    def keys(self, suffix: str) -> tuple[str, ...]:
        """The key and the spare key with the format's `suffix`; for "" the key that keeps the file's own suffix."""
        return (self.key + suffix, self.spare_key + suffix) if suffix else (self.spare_key,)


class SkippedFile(msgspec.Struct, frozen=True, gc=False):
    """A file that does not become a sample, and why. `lost` when it should have become one."""

    path: str
    reason: str
    lost: bool


PlanItem: TypeAlias = PlannedSample | SkippedFile


def planned_sample(file: SourceFile, key_path: str, split: str, class_name: str) -> PlanItem:
    """The sample of a file, unless its name cannot be a key."""
    if problem := key_problem(key_path):
        return SkippedFile(file.path, problem, lost=True)
    stem, dot, suffix = key_path.rpartition(".")
    # The tutorial's rule is `.JPEG` to `.pt`; other images keep their suffix, so that `a.png` and `a.jpg` differ.
    key = stem if dot + suffix.lower() in _JPEG_SUFFIXES else key_path
    return PlannedSample(file.path, split, class_name, key, key_path, file.size, file.mtime_ns, file.location)
