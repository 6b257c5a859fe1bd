"""The settings of a run. No torch here: the form of a new run and the command line read them too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.dataset.labels import LabelFiles

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NotNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]


def _help(description: str, **extra: object) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra=extra or None)


WEIGHTS_REMEDY = "Give --weights none, imagenet, a file, or oss://bucket/key."
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one run; each field's description is the help of its command-line option.

    `workers` 0 is refused: the connector reads in processes of its own, so that it can never stop the console.
    `batch_size`, `workers` and `prefetch_mb` are those of each process.
    """

    epochs: Annotated[Positive, _help("Passes over the training set.")] = 3
    max_steps: Annotated[NotNegative, _help("Stop after this number of steps; 0 = no limit.")] = 0
    batch_size: Annotated[Positive, _help("Samples per batch and process.")] = 64
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
    learning_rate: Annotated[PositiveFloat, _help("Peak learning rate; a cosine to 0 follows the warm-up.")] = 0.05
    momentum: Annotated[Fraction, _help("Momentum of SGD.")] = 0.9
    weight_decay: Annotated[NotNegativeFloat, _help("Weight decay of SGD.")] = 1e-4
    label_smoothing: Annotated[Fraction, _help("Label smoothing of the cross-entropy loss.")] = 0.1
    warmup_steps: Annotated[NotNegative, _help("Steps of linear warm-up of the learning rate.")] = 20
    accumulate: Annotated[Positive, _help("Gradient accumulation steps.")] = 1
    ema_decay: Annotated[Fraction, _help("Decay of the averaged weights (EMA); 0 = no averaging.")] = 0.0
    precision: Annotated[str, _help("Precision of the forward pass.", choices=PRECISIONS)] = "auto"
    compile: Annotated[bool, _help("Compile the model with torch.compile.")] = False
    seed: Annotated[int, _help("Seed of the sample order, the augmentation and the initial weights.")] = 0
    val_split: Annotated[
        Fraction, _help("Share of the training images held out for validation when the dataset has none; 0 = none.")
    ] = 0.1
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
        if self.precision not in PRECISIONS:
            raise SettingsError(
                f"{self.precision!r} is not a valid precision.", remedy=f"Give one of {', '.join(PRECISIONS)}."
            )


def check_weights(weights: str) -> None:
    """Raises SettingsError when `weights` (see `TrainSettings`) names a file that cannot be read."""
    if weights in {"none", "imagenet"} or weights.startswith("oss://"):
        return
    path = Path(weights).expanduser()
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
