"""What a run did in all, for the summary at its end."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from dataclasses import dataclass, field

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.events import EndpointSummary
from ossconsole.training.compute import StepTimes

RATE_STEPS = 10
"""Steps over which the reported rate in samples/s is taken."""

WARMUP_STEPS = 3
"""First steps left out of every median: they pay for start-up work that no later step pays for."""


@dataclass
class EndpointTotals:
    """The steps whose batches came through one endpoint."""

    steps: int = 0
    samples: int = 0
    bytes: int = 0
    rates: list[float] = field(default_factory=list)
    wait_s: float = 0.0
    step_s: float = 0.0

    def summary(self) -> EndpointSummary:
        return EndpointSummary(
            steps=self.steps,
            samples=self.samples,
            bytes=self.bytes,
            samples_per_s=statistics.median(self.rates) if self.rates else 0.0,
            wait_fraction=self.wait_s / self.step_s if self.step_s else 0.0,
        )


class Totals:
    """Sums over the steps of a run; the first WARMUP_STEPS count as samples but not as time."""

    def __init__(self) -> None:
        self.skipped = 0
        self.retries = 0
        self.endpoints: dict[EndpointKind, EndpointTotals] = defaultdict(EndpointTotals)
        self._recent: deque[tuple[int, float]] = deque(maxlen=RATE_STEPS)
        self._seen = 0

    def add(self, kind: EndpointKind, samples: int, size: int, times: StepTimes) -> None:
        """Counts one step of `samples` samples and `size` bytes."""
        self._seen += 1
        self._recent.append((samples, times.step_s))
        part = self.endpoints[kind]
        part.steps += 1
        part.samples += samples
        part.bytes += size
        if self._seen > WARMUP_STEPS and times.step_s > 0:
            part.rates.append(samples / times.step_s)
            part.wait_s += times.wait_s
            part.step_s += times.step_s

    @property
    def rate(self) -> float:
        """Samples per second over the last RATE_STEPS steps."""
        seconds = sum(step_s for _, step_s in self._recent)
        return sum(samples for samples, _ in self._recent) / seconds if seconds else 0.0

    @property
    def samples(self) -> int:
        return sum(part.samples for part in self.endpoints.values())

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.endpoints.values())

    @property
    def median_rate(self) -> float:
        """The median samples/s over all steps after the warm-up; 0 when there was none."""
        rates = [rate for part in self.endpoints.values() for rate in part.rates]
        return statistics.median(rates) if rates else 0.0

    @property
    def wait_fraction(self) -> float:
        """Share of the time of the steps that the loop waited for data."""
        step_s = sum(part.step_s for part in self.endpoints.values())
        return sum(part.wait_s for part in self.endpoints.values()) / step_s if step_s else 0.0
