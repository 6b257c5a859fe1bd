"""The settings of a run. No torch here: the form of a new run and the command line read them too."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import typed_path
from ossconsole.config.profiles import FieldError
from ossconsole.dataset.labels import LabelFiles

MAX_SEED = 10**18
"""With a small factor, a seed must fit the 64 bits of torch's generators; NumPy's take none below 0."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NotNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]


AUTO = "auto"
"""The text that a user enters for a setting that is determined from the others."""


def _help(description: str, **extra: object) -> msgspec.Meta:
    """`extra` may have `choices`, `metavar`, and `auto`: the value that stands for AUTO."""
    return msgspec.Meta(description=description, extra=extra or None)


# The classification models of torchvision 0.20 to 0.29 by family; torchvision itself is too slow to load for --help.
_FAMILIES = {
    "alexnet": ("",),
    "convnext_": ("tiny", "small", "base", "large"),
    "densenet": ("121", "161", "169", "201"),
    "efficientnet_": ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "v2_s", "v2_m", "v2_l"),
    "googlenet": ("",),
    "inception_v3": ("",),
    "maxvit_t": ("",),
    "mnasnet": ("0_5", "0_75", "1_0", "1_3"),
    "mobilenet_": ("v2", "v3_small", "v3_large"),
    "regnet_x_": ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf"),
    "regnet_y_": ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf"),
    "resnet": ("18", "34", "50", "101", "152"),
    "resnext": ("50_32x4d", "101_32x8d", "101_64x4d"),
    "shufflenet_v2_": ("x0_5", "x1_0", "x1_5", "x2_0"),
    "squeezenet": ("1_0", "1_1"),
    "swin_": ("t", "s", "b", "v2_t", "v2_s", "v2_b"),
    "vgg": ("11", "11_bn", "13", "13_bn", "16", "16_bn", "19", "19_bn"),
    "vit_": ("b_16", "b_32", "l_16", "l_32", "h_14"),
    "wide_resnet": ("50_2", "101_2"),
}

MODELS = frozenset(family + size for family, sizes in _FAMILIES.items() for size in sizes)
"""The names of the models that can be trained."""

RENORMALIZING = frozenset({"googlenet", "inception_v3"})
"""Models that were trained on images normalised in another way, and convert ours before their first convolution."""

DEFAULT_MODEL = "resnet18"


def _model_names() -> str:
    """All of MODELS, with what the names of a family differ in as a list in braces."""
    named = [f"{family}{{{', '.join(sizes)}}}" if sizes != ("",) else family for family, sizes in _FAMILIES.items()]
    return ", ".join(named)


PRESETS: dict[str, dict[str, object]] = {
    "tutorial": {"model": DEFAULT_MODEL, "weights": "imagenet", "learning_rate": 0.001, "momentum": 0.9}
}
"""Settings by the name of a preset; those that a user gives take precedence.

`tutorial` fine-tunes as Alibaba Cloud's tutorial does. That states neither rates nor epochs: the rate and the momentum
are those of PyTorch's tutorial on transfer learning.
"""

WEIGHTS_REMEDY = "Give --weights none, imagenet, a file, or oss://bucket/key."
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = (AUTO, "cpu", "cuda")
NOTHING, BACKBONE = "none", "backbone"

RATE_PER_SAMPLE = 0.1 / 256
"""The automatic peak learning rate per sample of an update: "Accurate, Large Minibatch SGD", section 2.1."""


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one run; each field's description is the help of its command-line option.

    `workers` 0 is refused: the connector reads in processes of its own, so that it can never stop the console.
    `batch_size`, `workers` and `prefetch_mb` are those of each process.
    """

    epochs: Annotated[Positive, _help("Passes over the training set.")] = 3
    max_steps: Annotated[NotNegative, _help("Stop after this number of steps; 0 = no limit.")] = 0
    model: Annotated[str, _help(f"Model of torchvision: {_model_names()}.", metavar="MODEL")] = DEFAULT_MODEL
    batch_size: Annotated[
        NotNegative,
        _help("Samples per batch and process; auto = 256 on a GPU with room for it, 64 on a CPU.", auto=0),
    ] = 0
    workers: Annotated[Positive, _help("Reader processes per training process.")] = 2
    endpoint: Annotated[EndpointKind, _help("Endpoint to start with.")] = EndpointKind.STANDARD
    switch_every: Annotated[NotNegative, _help("Alternate the endpoints every N steps; 0 = never.")] = 0
    fall_back: Annotated[bool, _help("Use the other endpoint when one fails.")] = True
    image_size: Annotated[NotNegative, _help("Side of the training images in px; 0 = 224 from 256 stored.")] = 0
    augment: Annotated[bool, _help("Crop and flip images at random in every epoch; not tensor-f32.")] = True
    weights: Annotated[
        str, _help("Initial weights: none, imagenet, a file, or oss://bucket/key.", metavar="WEIGHTS")
    ] = "none"
    resume: Annotated[
        str, _help("Resume from a checkpoint: its key, oss://bucket/key, or latest.", metavar="CHECKPOINT")
    ] = ""
    freeze: Annotated[str, _help("What is not trained: backbone = only the head is.", choices=(NOTHING, BACKBONE))] = (
        NOTHING
    )
    learning_rate: Annotated[
        NotNegativeFloat,
        _help(
            "Peak learning rate; a cosine to 0 follows the warm-up. auto = 0.1 per 256 samples of an update of the "
            "weights, which has the batches of all processes and of --accumulate.",
            auto=0,
        ),
    ] = 0.0
    momentum: Annotated[Fraction, _help("Momentum of SGD.")] = 0.9
    weight_decay: Annotated[NotNegativeFloat, _help("Weight decay of SGD.")] = 1e-4
    label_smoothing: Annotated[Fraction, _help("Label smoothing of the cross-entropy loss.")] = 0.1
    warmup_steps: Annotated[
        int,
        msgspec.Meta(ge=-1),
        _help("Steps of linear warm-up of the learning rate; auto = 5 % of the run.", auto=-1),
    ] = -1
    clip_norm: Annotated[
        NotNegativeFloat, _help("Scale gradients down to this norm where they have a larger one; 0 = never.")
    ] = 0.0
    accumulate: Annotated[Positive, _help("Gradient accumulation steps.")] = 1
    ema_decay: Annotated[Fraction, _help("Decay of the averaged weights (EMA); 0 = no averaging.")] = 0.0
    precision: Annotated[str, _help("Precision of the forward pass.", choices=PRECISIONS)] = "auto"
    compile: Annotated[bool, _help("Compile the model with torch.compile.")] = False
    profile_steps: Annotated[
        NotNegative, _help("Record this number of steps with torch.profiler, as a Chrome trace in the state folder.")
    ] = 0
    seed: Annotated[Seed, _help("Seed of the sample order, the augmentation and the initial weights.")] = 0
    val_split: Annotated[
        Fraction, _help("Share of the training images held out for validation when the dataset has none; 0 = none.")
    ] = 0.1
    device: Annotated[str, _help("Train on a GPU or on the CPU; auto = a GPU where there is one.", choices=DEVICES)] = (
        AUTO
    )
    gpu: Annotated[
        str, _help("GPU to use: auto (the emptiest), its index or its UUID; for one process.", metavar="GPU")
    ] = AUTO
    val_labels: Annotated[
        str,
        _help(
            "Labels of a flat val/ without a manifest: the tutorial's JSON or Kaggle's CSV; oss:// too.", metavar="FILE"
        ),
    ] = ""
    class_index: Annotated[
        str,
        _help("The tutorial's class index, without a manifest; none = number only the classes found.", metavar="FILE"),
    ] = ""
    processes: Annotated[NotNegative, _help("Number of local processes, one GPU each; 0 = one per GPU.")] = 1
    prefetch_mb: Annotated[
        NotNegative,
        _help("Memory of the batch buffers per process, MB; 0 = at most a quarter of the free memory."),
    ] = 0
    fetch_deadline_s: Annotated[PositiveFloat, _help("Replace a reader whose batch takes longer, seconds.")] = 60.0
    patience_s: Annotated[
        NotNegativeFloat, _help("Wait this long for an endpoint that fails in mid-run, then pause or stop, seconds.")
    ] = 600.0
    checkpoint_every: Annotated[
        NotNegative, _help("Write a checkpoint every N steps as well; 0 = only after each epoch.")
    ] = 0
    keep_checkpoints: Annotated[NotNegative, _help("Checkpoints to keep, besides the best one; 0 = all.")] = 3

    @property
    def label_files(self) -> LabelFiles:
        """The label files of a dataset without a manifest."""
        return LabelFiles(val_labels=self.val_labels, class_index=self.class_index)

    def __post_init__(self) -> None:
        """Raises FieldError for values that are not valid, or not together."""
        check_model(self.model)
        listed = {"precision": PRECISIONS, "device": DEVICES, "freeze": (NOTHING, BACKBONE)}
        for field, values in listed.items():
            value = getattr(self, field)
            if value not in values:
                raise FieldError(
                    field, f"{value!r} is not a valid value of {field}.", remedy=f"Give one of {', '.join(values)}."
                )
        if self.gpu != AUTO and self.processes != 1:
            raise FieldError(
                "gpu",
                "--gpu selects the GPU of one process.",
                remedy=f"Give {AUTO}; with several processes, set CUDA_VISIBLE_DEVICES.",
            )
        if self.gpu != AUTO and self.device == "cpu":
            raise FieldError("gpu", "--gpu has no effect with --device cpu.", remedy=f"Give --gpu {AUTO}.")
        if self.freeze == BACKBONE and self.weights == "none" and not self.resume:
            raise FieldError(
                "weights",
                "With --freeze backbone only the head is trained, and --weights none leaves the backbone random.",
                remedy="Give --weights imagenet, a file, or oss://bucket/key.",
            )

    def peak_lr(self, world: int) -> float:
        """The peak learning rate of a run of `world` processes, once the batch size is known."""
        return self.learning_rate or RATE_PER_SAMPLE * self.batch_size * self.accumulate * world


def auto_values() -> dict[str, int]:
    """The settings with an AUTO, each with the value that stands for it."""
    found: dict[str, int] = {}
    for field in msgspec.structs.fields(TrainSettings):
        for meta in getattr(field.type, "__metadata__", ()):
            if meta.extra and "auto" in meta.extra:
                found[field.name] = meta.extra["auto"]
    return found


_OF_CHECKPOINT = {"model": "model_name", **{name: name for name in ("freeze", "seed", "image_size", "batch_size")}}


def settings_of_checkpoint(fields: Mapping[str, Any], *, processes: int) -> dict[str, Any]:
    """What a run that resumes must have in common with the one that wrote a checkpoint, as far as `fields` say it.

    `fields` are the plain values of the checkpoint; its batch size is that of all `processes`, and left out where it
    cannot be theirs, or with 0.
    """
    known = {name: fields[stored] for name, stored in _OF_CHECKPOINT.items() if stored in fields}
    batch = known.pop("batch_size", None)
    if isinstance(batch, int) and processes and batch % processes == 0:
        known["batch_size"] = batch // processes
    return known


def check_model(name: str) -> None:
    """Raises FieldError when `name` is not one of MODELS."""
    if name in MODELS:
        return
    close = difflib.get_close_matches(name, sorted(MODELS), n=3)
    listed = "`ossconsole train --help` lists the models."
    raise FieldError(
        "model",
        f"{name!r} is not a classification model of torchvision.",
        remedy=f"Did you mean {' or '.join(close)}? {listed}" if close else listed,
    )


def check_weights(weights: str) -> None:
    """Raises SettingsError when `weights` (see `TrainSettings`) names a file that cannot be read."""
    if weights in {"none", "imagenet"} or weights.startswith("oss://"):
        return
    path = typed_path(weights)
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        problem = "does not exist"
    except IsADirectoryError:
        problem = "is a folder"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'not a valid path'}"
    raise SettingsError(f"The weights file {path} {problem}.", remedy=WEIGHTS_REMEDY)


def with_preset(values: Mapping[str, object], preset: str | None, given: Collection[str]) -> dict[str, Any]:
    """`values` with those of the preset (None for none) in place of all that are not `given` by the user."""
    found = {name: value for name, value in PRESETS[preset].items() if name not in given} if preset else {}
    return {**values, **found}
