"""The settings of a run. No torch here: the form of a new run and the command line read them too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]

WEIGHTS_REMEDY = "Give --weights none, imagenet, a file, or oss://bucket/key."
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one run.

    `max_steps` 0 means no limit. `switch_every` N alternates the endpoints every N steps (0: never). `fall_back` allows
    the other endpoint when one fails. `workers` are reader processes: the connector never reads in the run's own
    process, which it could block or abort. `image_size` 0 keeps the stored size; a smaller one crops on the device, at
    random while training. `weights` is none, imagenet, a file or an oss:// URI. `learning_rate` is the peak; it warms
    up over `warmup_steps` steps, then follows a cosine to 0. `accumulate` batches make one optimizer step.
    `fetch_deadline_s` is the longest time for one batch before its reader is replaced. `patience_s` is how long a run
    that has read samples waits for a failing endpoint before it pauses or ends. `prefetch_mb` bounds the memory of the
    batch buffers. `keep_checkpoints` 0 keeps them all; the best is always kept. `processes` train together on this
    machine, one GPU each (0: one per GPU); `batch_size`, `workers` and `prefetch_mb` apply to each of them.
    """

    epochs: Positive = 3
    max_steps: NotNegative = 0
    batch_size: Positive = 64
    workers: Positive = 2
    endpoint: EndpointKind = EndpointKind.STANDARD
    switch_every: NotNegative = 0
    fall_back: bool = True
    image_size: NotNegative = 0
    augment: bool = True
    weights: str = "none"
    resume: str = ""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 0.05
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 1e-4
    label_smoothing: Fraction = 0.1
    warmup_steps: NotNegative = 20
    accumulate: Positive = 1
    ema_decay: Fraction = 0.0
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    processes: NotNegative = 1
    prefetch_mb: Positive = 512
    fetch_deadline_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    patience_s: Annotated[float, msgspec.Meta(ge=0)] = 600.0
    checkpoint_every: NotNegative = 0
    keep_checkpoints: NotNegative = 3

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
