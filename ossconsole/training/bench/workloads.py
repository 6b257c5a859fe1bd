"""The workloads of emulated accelerators: how long a known GPU computes on a batch, and how that is measured.

The method is DLIO's (argonne-lcf/dlio_benchmark): an accelerator is a sleep of the known compute time of a batch, and a
barrier after each step stands for the all-reduce. AU, the accelerator utilisation, is the share of the time that it
computes; the first step is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.config.text import counted

MIN_AU = 0.9
"""The least AU of a passing trial, the rule of MLPerf Storage for unet3d and resnet50; used for all workloads here."""

CALIBRATED_AU = 0.99
"""The least AU with a buffer that is always full: below it, the host itself keeps the accelerators waiting."""

RULES_STEPS = 500
"""Steps of each accelerator that the rules of MLPerf Storage require."""

RULES_ROUNDS = 5
"""Runs after a warm-up run that the rules of MLPerf Storage require."""


class Workload(msgspec.Struct, frozen=True):
    """An accelerator that computes `step_s` seconds on a batch of `batch_size` samples."""

    name: str
    batch_size: int
    step_s: float

    @property
    def samples_per_s(self) -> float:
        """The samples/s that one accelerator uses at an AU of 100 %."""
        return self.batch_size / self.step_s

    def with_batch(self, batch_size: int) -> Workload:
        """The same accelerator with another batch size: the same samples/s. 0 changes nothing."""
        if not batch_size or batch_size == self.batch_size:
            return self
        return Workload(self.name, batch_size, self.step_s * batch_size / self.batch_size)


WORKLOADS = {
    each.name: each
    for each in (
        Workload("resnet50:h100", 400, 0.224),
        Workload("resnet50:a100", 400, 0.435),
        Workload("resnet50:v100", 64, 0.195),
        Workload("retinanet:b200", 24, 0.04755),
    )
}
"""Batch sizes and compute times of mlcommons/storage's workload files."""

_OWN = re.compile(r"(\d+(?:\.\d+)?)/s:(\d+)")
_REMEDY = f"Give one of {', '.join(WORKLOADS)}, or the rate and the batch size of your own, such as 950/s:256."


def parse_workload(text: str) -> Workload:
    """The workload of that name, or `RATE/s:BATCH`. Raises SettingsError."""
    if (known := WORKLOADS.get(text.lower())) is not None:
        return known
    own = _OWN.fullmatch(text)
    rate, batch = (float(own[1]), int(own[2])) if own else (0.0, 0)
    if rate <= 0 or batch <= 0:
        raise SettingsError(f"{text!r} is not a known workload.", remedy=_REMEDY)
    return Workload(text, batch, batch / rate)


class Steps(NamedTuple):
    """The steps of one accelerator: when each ended (seconds on a clock that all share), waits, computes and fetches.

    `begun` is the start of the first step. `grown` is by how many batches the read-ahead grew from the first step to
    the last; it is negative where steps were fed from what was read before. `readers_busy` is how long its
    readers ran or waited for a processor, as a share of the time.
    """

    begun: float
    ended: list[float]
    wait_s: list[float]
    compute_s: list[float]
    fetch_s: list[float]
    bytes: int
    samples: int
    grown: int
    readers_busy: float = 0.0

    @property
    def au(self) -> float:
        """DLIO's AU: the compute time of all steps but the first, of the time from the end of the first, 0 to 1."""
        seconds = self.ended[-1] - self.ended[0]
        return min(1.0, sum(self.compute_s[1:]) / seconds) if seconds > 0 else 0.0

    @property
    def sustained_au(self) -> float:
        """The AU without the steps that only drained the read-ahead: what a long run would have."""
        return self.au * max(0.0, 1 + min(0, self.grown) / max(1, len(self.ended) - 1))


def largest_passing(passes: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that passes, 0 for none: doubles until one fails, then bisects."""
    low, high = 0, 1
    while low < most and passes(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


class RuleCheck(NamedTuple):
    """What the rules are compared with; `samples` is the training set's, `rounds` the repetitions of each number."""

    steps: int
    rounds: int
    accelerators: int
    batch_size: int
    samples: int
    bytes_per_sample: float
    simulated: bool


NOT_A_RESULT = (
    "Emulated accelerators, DLIO's method; not an MLPerf result: it was neither submitted to MLCommons nor verified."
)
_RESNET_RECORD = 150_528  # bytes, `record_length_bytes_resize` of DLIO's resnet50


def unmet_rules(check: RuleCheck, workload: str) -> Sequence[str]:
    """The conditions of the rules of MLPerf Storage that a measurement does not meet, one sentence each."""
    needed = RULES_STEPS * check.batch_size * check.accelerators
    unmet = []
    if check.steps < RULES_STEPS:
        unmet.append(f"Each accelerator did {counted(check.steps, 'step')}; the rules require {RULES_STEPS}.")
    if check.samples < needed:
        unmet.append(
            f"The dataset has {check.samples:,} training samples; the rules require {needed:,} "
            f"({RULES_STEPS} steps of {check.accelerators} x {check.batch_size})."
        )
    if check.rounds < RULES_ROUNDS:
        unmet.append(
            f"Each number was tried {counted(check.rounds, 'time')}; the rules require {RULES_ROUNDS}, and a warm-up."
        )
    if workload.startswith("resnet50") and round(check.bytes_per_sample) != _RESNET_RECORD:
        unmet.append(
            f"A sample has {check.bytes_per_sample:,.0f} bytes on average; DLIO's resnet50 reads {_RESNET_RECORD:,} "
            "(image-u8 at 224 px)."
        )
    if workload not in WORKLOADS or workload.startswith("resnet50"):
        unmet.append("The workload is not one of the CLOSED division of version 3.0.")
    unmet.append(
        "The dataset is not compared with 5 times the memory of the host: the connector does not use the page cache."
    )
    if check.simulated:
        unmet.append("The storage is simulated on this machine.")
    return unmet
