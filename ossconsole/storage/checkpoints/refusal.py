"""Explains why a file is neither weights nor a checkpoint, without running anything in it."""

from __future__ import annotations

import io
import itertools
import pickletools
import zipfile
from collections.abc import Iterator

import msgspec

from ossconsole.storage.checkpoints.pickle_reader import MAX_PICKLE_BYTES, NotAPickleError, Walked, walk_pickle
from ossconsole.storage.checkpoints.safetensors_header import is_safetensors

_ZIP, _GZIP, _PICKLE = b"PK\x03\x04", b"\x1f\x8b", b"\x80"
_PAGE_TAGS = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_MAX_PICKLES = 4  # torch before 1.6 wrote a magic number, a version and system data before the object
_NAMES_SHOWN = 3
_MAX_OPCODES = 2_000_000
_SAVE_STATE = "In the program that made it: torch.save(model.state_dict(), FILE)."
COPY_AGAIN = "Copy it again and compare the sizes, or use an older file; `ossconsole ls PREFIX` lists a prefix."


class Refusal(msgspec.Struct, frozen=True):
    """`what` follows the file's name (`is empty`); `remedy` is a sentence."""

    what: str
    remedy: str


def refuse_by_head(head: bytes, size: int) -> Refusal | None:
    """Why torch cannot have written a file of `size` bytes, by its first bytes; None where they do not show it."""
    if not size:
        return Refusal("is empty", COPY_AGAIN)
    begin = head[:200].lstrip().lower()
    if begin.startswith(_PAGE_TAGS):
        return Refusal(
            "is a web page, not weights: the download returned a page instead of the file",
            "Download the file itself, for example with `curl -L -o FILE URL`.",
        )
    if is_safetensors(head, size):
        return Refusal("is a safetensors file, which has weights only", "Start from its weights: --weights FILE.")
    if head.startswith(_GZIP):
        return Refusal("is compressed with gzip", "Unpack it with `gunzip` first.")
    return None


def refuse(data: bytes) -> Refusal:
    """Why torch cannot read `data` as weights, as far as can be seen without running anything."""
    found = refuse_by_head(data, len(data))
    if found is not None:
        return found
    if data.startswith(_ZIP):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
                if not names:
                    return Refusal(
                        "is a zip archive that torch did not write: it has no data.pkl", "Select another file."
                    )
                pickle = archive.read(names[0])
        except Exception:  # noqa: BLE001 - zipfile raises anything from BadZipFile to struct.error on a damaged archive
            return Refusal("is cut short or damaged: the end of the file does not fit its beginning", COPY_AGAIN)
        return _refuse_pickles([pickle])
    if data.startswith(_PICKLE):
        return _refuse_pickles(_split_pickles(data[:MAX_PICKLE_BYTES]))
    return Refusal("is not a file that torch.save wrote", "Select a file that torch.save wrote.")


def _refuse_pickles(pickles: list[bytes] | Iterator[bytes]) -> Refusal:
    foreign: set[str] = set()
    try:
        for pickle in pickles:
            walked: Walked = walk_pickle(pickle)
            foreign.update(walked.foreign)
    except NotAPickleError:
        if not foreign:
            return Refusal("is cut short or damaged", COPY_AGAIN)
    if any(name.startswith(("torch.nn.modules.", "torchvision.models.")) for name in foreign):
        return Refusal(f"is a whole pickled model, which is code ({_shown(foreign)}); none of it was run", _SAVE_STATE)
    if foreign:
        return Refusal(
            f"runs code when it is loaded ({_shown(foreign)}); none of it was run",
            f"Do not load it anywhere unless you trust its author. {_SAVE_STATE}",
        )
    return Refusal("has values other than tensors, numbers and text, which are not supported", _SAVE_STATE)


def _shown(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    return f"{shown}, and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown


def _split_pickles(data: bytes) -> Iterator[bytes]:
    """The consecutive pickles at the beginning of `data`."""
    start = 0
    for _ in range(_MAX_PICKLES):
        try:
            end = (
                start
                + 1
                + max(at or 0 for _, _, at in itertools.islice(pickletools.genops(data[start:]), _MAX_OPCODES))
            )
        except Exception:  # noqa: BLE001 - pickletools raises anything on bytes that are no pickle
            end = len(data)
        yield data[start:end]
        if end >= len(data):
            return
        start = end
