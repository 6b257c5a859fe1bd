"""What a run is asked to do. No torch here: the start form and the command line read this too."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one run.

    `max_steps` 0 means no limit. `switch_every` N alternates the endpoints every N steps (0: only by hand).
    `workers` 0 is refused: the connector reads in processes of its own, so that it can never stop the console.
    `image_size` 0 takes the stored size; a smaller one crops (at random while training) on the device.
    `learning_rate` is the peak; it warms up over `warmup_steps`, then follows a cosine to 0.
    `fetch_deadline_s` is how long one batch may take before its reader is replaced. `patience_s` is how long a run
    that has read samples before waits for an endpoint that fails, until it pauses or ends.
    `prefetch_mb` bounds the memory of the batch buffers. `keep_checkpoints` 0 keeps them all; the best is kept besides.
    `processes` train together on this machine, one GPU each (0: as many as it has GPUs); `batch_size`, `workers` and
    `prefetch_mb` are of each.
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
                f"{self.precision!r} is not a precision.", remedy=f"Give one of {', '.join(PRECISIONS)}."
            )
