"""What a checkpoint gets right and wrong on the validation images, saved beside the record of its run."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ossconsole.config.files import encode_json, read_private, write_private
from ossconsole.telemetry.runs import SUFFIX, RecordError

_SUFFIX = ".predictions.json"


class ClassAccuracy(msgspec.Struct, frozen=True):
    """Top-1 accuracy of one class, 0 to 1, and its number of images."""

    name: str
    top1: float
    images: int


class Confusion(msgspec.Struct, frozen=True):
    """How many images of a class were taken for another one, and the share of the class that they are."""

    label: str
    predicted: str
    images: int
    share: float


class WrongImage(msgspec.Struct, frozen=True):
    """A misclassified image: its key, and the probabilities of the predicted and of the right class.

    `thumbnail` is a small JPEG of it as the model saw it; empty where none was requested.
    """

    key: str
    label: str
    predicted: str
    probability: float
    right_probability: float
    thumbnail: bytes = b""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """`classes` by ascending accuracy, `confusions` by descending number of images, `worst` by the loss, descending.

    `unread` images could not be read or decoded, and are in no figure. `checkpoint` is its URI or path.
    """

    images: int
    unread: int
    top1: float
    top5: float
    classes: list[ClassAccuracy]
    confusions: list[Confusion]
    worst: list[WrongImage]
    checkpoint: str = ""


def predictions_path(record: Path) -> Path:
    """The file of the predictions of the run with this record."""
    return record.with_name(record.name.removesuffix(SUFFIX) + _SUFFIX)


def save_predictions(record: Path, evaluation: Evaluation) -> Path:
    """Writes the predictions of the run, in place of earlier ones; returns the path. Raises ConsoleError."""
    path = predictions_path(record)
    write_private(path, encode_json(evaluation))
    return path


def read_predictions(record: Path) -> Evaluation | None:
    """The saved predictions of the run; None where there are none. Raises ConsoleError where they cannot be read."""
    path = predictions_path(record)
    data = read_private(path)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Evaluation)
    except msgspec.DecodeError as error:
        raise RecordError(
            f"The predictions {path} cannot be read: {error}.", remedy="Delete the file, and evaluate again."
        ) from error
