"""The models: torchvision's, with a head for the classes of the dataset, and the memory that training them takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from torchvision import models

from ossconsole.config.errors import SettingsError
from ossconsole.training.compute.device import amp_dtype
from ossconsole.training.compute.weights import (
    OnMessage,
    WeightsSource,
    adapted,
    describe_conversion,
    describe_new_head,
    load_into,
    load_weights,
)
from ossconsole.training.settings import BACKBONE, RENORMALIZING, TrainSettings

CPU_BATCH = 64
"""The automatic batch size on a CPU."""

GPU_BATCHES = (256, 128, 64, 32)
"""The automatic batch sizes on a GPU; the first that fits."""

_FIT = 0.7  # share of a GPU's memory for a batch; the rest is for cuDNN's workspaces, a context and other processes
_STATE_COPIES = 4  # of the weights: themselves, gradients, momentum, average
_STEP = 32  # px; every model takes multiples of it from some size on, those of vit_h_14 excepted
_MAX_SIZE = 1024  # px


def build_model(
    settings: TrainSettings,
    classes: tuple[str, ...],
    size: int,
    fetch: Callable[[str], bytes],
    *,
    report: OnMessage = lambda _text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> nn.Module:
    """The model of the settings for images of `size` px, with the initial weights and a head for `classes`.

    A head of the weights is kept where it has all the classes, and replaced by a new one otherwise. A download, a
    conversion and a new head are `report`ed; when `stopped`, the model keeps random weights. `fetch` returns the bytes
    of an `oss://bucket/key`. With `--freeze backbone` only the head requires gradients. Raises ConsoleError when the
    weights cannot be loaded, and SettingsError when the model does not take images of that size.
    """
    check_image_size(settings.model, size)
    model = new_model(settings.model, len(classes), size)
    source = WeightsSource(settings.weights, settings.model)
    weights = load_weights(source, fetch, report=report, stopped=stopped)
    head = head_parameters(settings.model, len(classes), size)
    if weights is not None:
        state, kept = adapted(weights, model.state_dict(), classes, head)
        load_into(model, state, source, head)
        new_head = "" if kept else describe_new_head(weights, classes, head)
        for note in filter(None, (weights.note, describe_conversion(model, state), new_head)):
            report(note)
    if settings.freeze == BACKBONE:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in head)
    return model


def new_model(name: str, classes: int, size: int) -> nn.Module:
    """One of torchvision's models with random weights, for images of `size` px.

    The auxiliary classifiers of GoogLeNet and Inception are left out: they are of no use after training.
    """
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **model_options(name, size))
    return model


def model_options(name: str, size: int) -> dict[str, Any]:
    """torchvision's arguments of one of its models, besides `num_classes`, for images of `size` px."""
    if name in RENORMALIZING:
        return {"aux_logits": False, "transform_input": True, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit_"):
        return {"input_size": (size, size)}
    return {}


def head_parameters(name: str, classes: int, size: int) -> frozenset[str]:
    """The parameters of the head, by the names that they have in the `state_dict`: those of a shape for `classes`."""
    one, other = (_skeleton(name, count, size).state_dict() for count in (classes, classes + 1))
    return frozenset(key for key, value in one.items() if value.shape != other[key].shape)


def _skeleton(name: str, classes: int, size: int) -> nn.Module:
    """A model without memory for its parameters; computing with it yields shapes only."""
    try:
        with torch.device("meta"):
            return new_model(name, classes, size)
    except NotImplementedError:  # RegNets compute their widths with tensors
        return new_model(name, classes, size).to("meta")


def check_image_size(name: str, size: int) -> None:
    """Raises SettingsError when a model does not take images of `size` px; the remedy has a size that it takes."""
    if _takes(name, size):
        return
    larger = range(size - size % _STEP + _STEP, _MAX_SIZE + 1, _STEP)
    fits = next((each for each in larger if _takes(name, each)), None)
    raise SettingsError(
        f"The model {name} does not take images of {size} px.",
        remedy=f"Give --image-size {fits}, or another --model." if fits else "Give another --image-size, or --model.",
    )


def _takes(name: str, size: int) -> bool:
    """Whether the shapes of all layers can be computed for a batch of images of `size` px."""
    try:
        _skeleton(name, 2, size)(torch.empty(2, 3, size, size, device="meta"))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def batch_size_for(settings: TrainSettings, classes: int, size: int, *, memory: int | None, half: bool) -> int:
    """The automatic batch size: CPU_BATCH without a GPU, else the largest of GPU_BATCHES that fits into its `memory`.

    `memory` is in bytes. With `half` the activations have two bytes per element instead of four.
    """
    if memory is None:
        return CPU_BATCH
    weights, activations = _bytes_of(settings.model, classes, size)
    for batch in GPU_BATCHES:
        if _STATE_COPIES * weights + batch * activations / (2 if half else 1) <= _FIT * memory:
            return batch
    return GPU_BATCHES[-1]


def without_auto(
    settings: TrainSettings, classes: int, size: int, device: torch.device, *, world: int
) -> TrainSettings:
    """The settings with the batch size and the learning rate that they leave to the program, for this device."""
    if not settings.batch_size:
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        half = amp_dtype(settings.precision, device) is not None
        batch_size = batch_size_for(settings, classes, size, memory=memory, half=half)
        settings = msgspec.structs.replace(settings, batch_size=batch_size)
    return msgspec.structs.replace(settings, learning_rate=settings.peak_lr(world))


def check_batch_sizes(sizes: Sequence[int]) -> None:
    """Raises SettingsError where the automatic batch size differs by rank: their GPUs have other amounts of memory."""
    if len(set(sizes)) > 1:
        raise SettingsError(
            f"The automatic batch size of the ranks is {' or '.join(map(str, sorted(set(sizes))))}.",
            remedy=f"Give --batch-size {min(sizes)}.",
        )


def _bytes_of(name: str, classes: int, size: int) -> tuple[int, int]:
    """The bytes of a model's weights, and of what the backward pass needs of one sample; both in float32."""
    samples = 2
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()  # noqa: SLF001 - the identity; the address is that of no memory
        kept.append(tensor)  # otherwise another one may get its address
        return tensor

    kept: list[torch.Tensor] = []
    model = _skeleton(name, classes, size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.empty(samples, 3, size, size, device="meta")).sum()
    own = {value.untyped_storage()._cdata for value in model.state_dict(keep_vars=True).values()}  # noqa: SLF001
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights, sum(count for storage, count in saved.items() if storage not in own) // samples
