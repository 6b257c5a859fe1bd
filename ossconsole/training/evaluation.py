"""Evaluates a checkpoint on the validation images: accuracy by class, confusions, the worst misclassified images."""

from __future__ import annotations

import contextlib
import heapq
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.dataset.formats import IMAGENET_MEAN, IMAGENET_STD
from ossconsole.dataset.manifest import TRAIN, VAL
from ossconsole.telemetry.predictions import ClassAccuracy, Confusion, Evaluation, WrongImage
from ossconsole.training.compute.device import BatchTransform, DeviceContext
from ossconsole.training.compute.model import check_image_size, head_parameters, new_model, without_auto
from ossconsole.training.compute.selection import select_device
from ossconsole.training.compute.weights import WeightsSource, adapted, load_into
from ossconsole.training.compute.weights_file import Weights
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.loader import BatchLoader, sample_transform
from ossconsole.training.plan import Plan, Split, SplitRequests
from ossconsole.training.settings import DEFAULT_MODEL, MODELS, TrainSettings, settings_of_checkpoint

_PAIRS_SHOWN = 10
_TOP5 = 5
_THUMBNAIL_SIDE = 112  # pixels; 24 of them are about 100 KB
_THUMBNAIL_QUALITY = 80


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """The weights of a checkpoint, from `where`, and the settings with its model, image size and seed."""

    weights: Weights
    where: str
    settings: TrainSettings


def settings_for(weights: Weights, where: str, settings: TrainSettings) -> EvaluatedCheckpoint:
    """Completes `settings` with those of the checkpoint. Raises ConsoleError where it does not say its model."""
    known = settings_of_checkpoint(weights.facts, processes=0)
    model = known.get("model", DEFAULT_MODEL)
    if not isinstance(known.get("image_size"), int) or model not in MODELS:
        raise ConsoleError(
            f"{where} does not say for which model and image size it is.",
            remedy="Give a checkpoint that `ossconsole train` wrote, or weights that `ossconsole weights` wrote.",
        )
    taken = {name: known[name] for name in ("image_size", "seed") if name in known}
    return EvaluatedCheckpoint(weights, where, msgspec.structs.replace(settings, model=model, **taken))


def evaluate(
    checkpoint: EvaluatedCheckpoint,
    data: TrainingData,
    profile: Profile,
    credentials: CredentialSource,
    *,
    worst: int,
    on_progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> Evaluation:
    """Reads all validation images once; `worst` is the number of misclassified images listed.

    `on_progress` gets the images done and their total. Raises ConsoleError.
    """
    if not data.count(VAL):
        raise ConsoleError("The dataset has no validation images.", remedy="Add --val-split 0.1, or --dataset-prefix.")
    device = select_device(checkpoint.settings)
    size = data.image_size(checkpoint.settings.image_size)
    settings = without_auto(checkpoint.settings, len(data.classes), size, device, world=1)
    compute = DeviceContext(settings, sample_transform(settings, data), device=device)
    model = _model(replace(checkpoint, settings=settings), data.classes, size).to(device).eval()
    transform, totals = BatchTransform(data, compute), _Totals(data, worst)
    connector = ConnectorSettings.of(profile, credentials)
    once = msgspec.structs.replace(settings, epochs=1, max_steps=0)
    plan = Plan(once, data.count(TRAIN), data.count(VAL), tar_bytes=data.tar_bytes)
    loader = BatchLoader(connector, data, SplitRequests(plan, Split.VAL), settings, pin=compute.cuda)
    with contextlib.closing(loader), torch.no_grad():
        while (batch := loader.next()) is not None:
            if batch.failed:
                raise ConsoleError(
                    f"A batch could not be read: {batch.failed}.", remedy="`ossconsole doctor` checks the endpoints."
                )
            if len(batch.rows):
                images, labels = transform.images(batch), transform.labels(Split.VAL, batch.rows)
                with compute.device_errors(), compute.autocast():
                    outputs = model(images)
                totals.add(outputs.float(), labels, batch.rows, images)
            totals.unread += len(batch.bad)
            compute.free_slots()
            on_progress(totals.images + totals.unread, data.count(VAL))
        compute.free_all_slots()
    return totals.evaluation(checkpoint.where)


def _model(checkpoint: EvaluatedCheckpoint, classes: tuple[str, ...], size: int) -> nn.Module:
    name, where = checkpoint.settings.model, checkpoint.where
    check_image_size(name, size)
    model = new_model(name, len(classes), size)
    head = head_parameters(name, len(classes), size)
    state, has_head = adapted(checkpoint.weights, model.state_dict(), classes, head)
    if not has_head:
        raise ConsoleError(
            f"{where} is not for the {counted(len(classes), 'class', 'classes')} of this dataset.",
            remedy="Give the dataset that it was trained on: --dataset-prefix.",
        )
    load_into(model, state, WeightsSource(where, name), head)
    return model


class _Totals:
    """Adds up the predictions of batches."""

    def __init__(self, data: TrainingData, worst: int) -> None:
        self.images = self.unread = 0
        self._top5 = 0
        self._data = data
        self._most = worst
        self._worst: list[tuple[float, int, WrongImage, torch.Tensor]] = []  # a heap by the loss
        count = len(data.classes)
        self._counts: npt.NDArray[np.int64] = np.zeros((count, count), np.int64)  # label, prediction

    def add(
        self, outputs: torch.Tensor, labels: torch.Tensor, rows: npt.NDArray[np.int64], images: torch.Tensor
    ) -> None:
        """The outputs (n, classes) of the images (n, 3, size, size, normalised) of these rows."""
        losses = functional.cross_entropy(outputs, labels, reduction="none").cpu().numpy()
        probabilities = outputs.softmax(1)
        best = outputs.topk(min(_TOP5, outputs.shape[1])).indices
        self._top5 += int((best == labels.view(-1, 1)).sum())
        right, predicted = labels.cpu().numpy(), best[:, 0].cpu().numpy()
        np.add.at(self._counts, (right, predicted), 1)
        self.images += len(rows)
        for place in np.flatnonzero(right != predicted):
            pair, loss, row = (int(right[place]), int(predicted[place])), float(losses[place]), int(rows[place])
            if len(self._worst) < self._most or (self._worst and loss > self._worst[0][0]):
                found = self._wrong(row, pair, [float(probabilities[place, each]) for each in pair])
                heapq.heappush(self._worst, (loss, row, found, _pixels(images[place])))
                if len(self._worst) > self._most:
                    heapq.heappop(self._worst)

    def _wrong(self, row: int, pair: tuple[int, int], probabilities: list[float]) -> WrongImage:
        label, predicted = (self._data.classes[each] for each in pair)
        key = self._data.object_of(VAL, row)
        if self._data.sharded:
            key = f"{key}: {self._data.columns(VAL).keys.get(row)}"
        return WrongImage(key, label, predicted, round(probabilities[1], 4), round(probabilities[0], 4))

    def evaluation(self, where: str) -> Evaluation:
        """The figures of the checkpoint at `where`. Raises ConsoleError without any image."""
        if not self.images:
            raise ConsoleError(
                "None of the validation images could be read.", remedy="`ossconsole doctor` checks the dataset."
            )
        names, totals = self._data.classes, self._counts.sum(1)
        accuracies = [
            ClassAccuracy(name, round(float(self._counts[at, at] / totals[at]), 4), int(totals[at]))
            for at, name in enumerate(names)
            if totals[at]
        ]
        wrong = self._counts.copy()
        np.fill_diagonal(wrong, 0)
        pairs = [
            divmod(int(place), len(names)) for place in np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS_SHOWN]
        ]
        return Evaluation(
            images=self.images,
            unread=self.unread,
            top1=float(self._counts.trace() / self.images),
            top5=self._top5 / self.images,
            classes=sorted(accuracies, key=lambda each: (each.top1, each.name)),
            confusions=[
                Confusion(
                    names[label],
                    names[other],
                    int(wrong[label, other]),
                    round(float(wrong[label, other] / totals[label]), 4),
                )
                for label, other in pairs
                if wrong[label, other]
            ],
            worst=[
                msgspec.structs.replace(found, thumbnail=_thumbnail(pixels))
                for _, _, found, pixels in sorted(self._worst, key=lambda each: -each[0])
            ],
            checkpoint=where,
        )


def _pixels(image: torch.Tensor) -> torch.Tensor:
    """A normalised image (3, size, size) as uint8 (size, size, 3) on the host."""
    mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    scaled = (image.float() * std + mean).nan_to_num(0.0).clamp(0, 1)
    return (scaled * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu()


def _thumbnail(pixels: torch.Tensor) -> bytes:
    """A small JPEG of an image: uint8 (size, size, 3)."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.contiguous().numpy())
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    image.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()
