"""The arrangement of a source: which of its folders are splits, found at any depth, or only classes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import msgspec

from ossconsole.dataset.labels import stem
from ossconsole.dataset.manifest import TRAIN, VAL

SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "ilsvrc2012_img_train": TRAIN,
    "val": VAL,
    "validation": VAL,
    "valid": VAL,
    "ilsvrc2012_img_val": VAL,
}
"""The names of a split's folder in lower case, the preferred ones first; the last of each are ImageNet's archives."""

UNUSED_SPLITS = frozenset({"test", "testing"})
"""Folders beside train/ and val/ that are never classes."""

_MAX_DEPTH = 6
_MAX_FOLDERS = 400  # folders that are searched for train/
_WORDNET_ID = re.compile(r"n\d{8}$")
_WORDNET_FILE = re.compile(r"(n\d{8})_\d+\.")
_VAL_FILE = re.compile(r"ILSVRC2012_val_\d+\.")


class FolderContents(msgspec.Struct, frozen=True):
    """The direct contents of a folder: the names of its visible folders, sorted, and of some of its images."""

    folders: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


class Tree(Protocol):
    """The folders of a source. Paths are relative with `/`, "" for the top."""

    def contents(self, folder: str) -> FolderContents:
        """What is directly in the folder; empty where it cannot be read."""


class Arrangement(msgspec.Struct, frozen=True):
    """How the paths of a source become splits and classes.

    `root` is the folder that holds the splits, or the classes where there are none ("": the top). `splits` maps names
    of folders there to splits; other folders there are classes of the split `rest` ("": they are not used).
    """

    root: str = ""
    splits: dict[str, str] = {}
    rest: str = ""

    def parts(self, path: str) -> list[str]:
        """The split, then the parts of the path below it; empty where the path is in no split."""
        if self.root:
            if not path.startswith(f"{self.root}/"):
                return []
            path = path[len(self.root) + 1 :]
        first, slash, _ = path.partition("/")
        parts = path.split("/")
        if slash and first in self.splits:
            return [self.splits[first], *parts[1:]]
        return [] if not self.rest or (slash and first.lower() in UNUSED_SPLITS) else [self.rest, *parts]

    def folders(self) -> list[str]:
        """The folders that hold everything of use."""
        return [self.root] if self.rest else [_join(self.root, name) for name in self.splits]

    def folders_of(self, split: str) -> list[str]:
        """The folders of a split."""
        return [_join(self.root, name) for name, each in self.splits.items() if each == split]

    def __str__(self) -> str:
        """Like `train/ and val/ in ILSVRC/Data/CLS-LOC/`."""
        where = f" in {self.root}/" if self.root else ""
        named = [f"{name}/" if name == split else f"{name}/ ({split})" for name, split in self.splits.items()]
        if self.rest:
            named.append(f"class folders ({self.rest})" if self.rest == TRAIN else f"images ({self.rest})")
        return " and ".join(named) + where


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """The folder of each split among `names`, by split; of several the one that SPLIT_NAMES has first."""
    by_name = {name.lower(): name for name in sorted(names)}  # "train" follows "Train": it wins
    found: dict[str, str] = {}
    for alias, split in SPLIT_NAMES.items():
        if alias in by_name:
            found.setdefault(split, by_name[alias])
    return found


def wordnet_class(name: str) -> str:
    """The class of an image that is named as ImageNet's training images, like `n01440764_10026.JPEG`; else ""."""
    match = _WORDNET_FILE.match(name)
    return match[1] if match else ""


def is_val_name(name: str) -> bool:
    """Whether an image is named as ImageNet's validation images."""
    return bool(_VAL_FILE.match(name))


def arrange(tree: Tree, has_label: Callable[[str], bool]) -> Arrangement | None:
    """The arrangement of a source, None where it holds no images in any usable place.

    `has_label` is whether the file of validation labels has the image of this stem.
    """
    return _with_splits(tree) or _without_splits(tree, has_label)


def _with_splits(tree: Tree) -> Arrangement | None:
    """The folder nearest to the top that holds train/ with images, or else val/, or else one of them without images."""
    best: tuple[int, Arrangement] | None = None
    for root, contents in _search(tree):
        splits = split_folders(contents.folders)
        if not splits:
            continue
        names = {name: split for split, name in splits.items()}
        others = [name for name in contents.folders if name not in names]
        classes_beside = VAL in splits and TRAIN not in splits and others and all(map(_WORDNET_ID.match, others))
        found = Arrangement(root, names, TRAIN if classes_beside else "")
        with_images = {split for split, name in splits.items() if _has_images(tree, _join(root, name))}
        rank = 0 if TRAIN in with_images or (classes_beside and with_images) else 1 if with_images else 2
        if rank == 0:
            return found
        if best is None or rank < best[0]:
            best = rank, found
    return best[1] if best else None


def _search(tree: Tree) -> Iterator[tuple[str, FolderContents]]:
    """The folders of a source, the nearest to the top first, without those below a folder of splits."""
    queue = deque([("", 0)])
    for _ in range(_MAX_FOLDERS):
        if not queue:
            return
        folder, depth = queue.popleft()
        contents = tree.contents(folder)
        yield folder, contents
        if depth < _MAX_DEPTH and not split_folders(contents.folders):
            queue.extend((_join(folder, name), depth + 1) for name in contents.folders)


def _has_images(tree: Tree, folder: str, depth: int = 2) -> bool:
    """Whether the folder has images; only some of the folders in it are searched."""
    contents = tree.contents(folder)
    some = (*contents.folders[:3], *contents.folders[-2:]) if depth else ()
    return bool(contents.images) or any(_has_images(tree, _join(folder, name), depth - 1) for name in some)


def _without_splits(tree: Tree, has_label: Callable[[str], bool]) -> Arrangement | None:
    root = ""
    for _ in range(_MAX_DEPTH):
        contents = tree.contents(root)
        inner = _join(root, contents.folders[0]) if len(contents.folders) == 1 and not contents.images else ""
        if not inner:
            break
        below = tree.contents(inner)
        if not (_is_flat_val(below, has_label) or any(_has_images(tree, _join(inner, name)) for name in below.folders)):
            break  # the one class of the source
        root = inner
    contents = tree.contents(root)
    if _is_flat_val(contents, has_label):
        return Arrangement(root, {}, VAL)
    if contents.images or any(_has_images(tree, _join(root, name)) for name in contents.folders):
        return Arrangement(root, {}, TRAIN)
    return None


def _is_flat_val(contents: FolderContents, has_label: Callable[[str], bool]) -> bool:
    """Whether the images of a folder are validation images without class folders."""
    labelled = any(has_label(stem(name)) for name in contents.images)
    return labelled or (bool(contents.images) and all(map(is_val_name, contents.images)))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
