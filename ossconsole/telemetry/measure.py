"""Measurement: the figures of a run, reduced from its events in constant memory.

One reducer serves the engine's summary, the screens, a replay and an export.

Also which share of an accelerator's documented rate, and of OSS's documented requests/s, the run uses.
"""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.cache import Coverage, HitRate, SingleTimes, TimeCounts, hit_rate
from ossconsole.telemetry.compare import Comparison, Conditions
from ossconsole.telemetry.events import EndpointSummary, Event, RunState
from ossconsole.telemetry.format_gain import FormatGain, jpeg_gain
from ossconsole.telemetry.visits import FIGURE_S, FIGURE_STEPS, EndpointFigures, Visits

REQUESTS_PER_S = 10_000
"""Documented for each account, over all its buckets of a region."""

IO_BOUND = 0.3
"""Share of the time waiting for data from which on a run is I/O-bound."""

COMPUTE_BOUND = 0.1
"""Share of the time waiting for data below which a run is compute-bound."""

DECODE_BOUND = 0.7
"""Share of the readers' time from which on decoding is what limits them.

The rest is for copies and checksums, which cost up to 0.15 of it (the floor of the loader's benchmark).
"""

_NEAR = 0.8  # share of a ceiling from which on it is what limits
_FIRST_TB_GB = 1024  # a smaller accelerator has the rate of this one


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """What a run used of the documented rate of an accelerator of `quota_gb` GB, 300 MB/s per TB. `used` is the share,
    0 to 1. Requests are those for samples, one for each, at least; None where samples are read from shards.
    """

    quota_gb: int
    peak_bytes_per_s: float
    bytes_per_s: float
    requests_per_s: float | None = None

    @property
    def used(self) -> float:
        """The share of the peak rate, 0 to 1."""
        return self.bytes_per_s / self.peak_bytes_per_s

    @property
    def requests_used(self) -> float | None:
        """Share of the documented requests/s of an account; None for shards, which need few."""
        return None if self.requests_per_s is None else self.requests_per_s / REQUESTS_PER_S

    @property
    def near(self) -> bool:
        """Whether the rate is so near the peak that a larger accelerator would help."""
        return self.used >= _NEAR

    @property
    def short(self) -> str:
        """The share of the rate; near the peak, also the size that would help."""
        size = f"{self.quota_gb / 1024:g} TB" if self.quota_gb >= _FIRST_TB_GB else f"{self.quota_gb} GB"
        text = f"{self.used * 100:.0f} % of what {size} gives ({self.peak_bytes_per_s / 1e6:,.0f} MB/s)"
        if self.near:
            larger = "a larger one" if self.quota_gb >= _FIRST_TB_GB else "one larger than 1 TB"
            text += f": {larger} would help"
        return text

    @property
    def words(self) -> str:
        """Both shares."""
        if self.requests_per_s is None:
            return self.short
        return f"{self.short}; {self.requests_per_s:,.0f} of {REQUESTS_PER_S:,} requests/s of the account"

    def report(self) -> CeilingReport:
        """The ceiling as JSON."""
        return CeilingReport(
            quota_gb=self.quota_gb,
            peak_bytes_per_s=self.peak_bytes_per_s,
            bytes_per_s=self.bytes_per_s,
            used=self.used,
            requests_per_s=self.requests_per_s,
            requests_used=self.requests_used,
            words=self.words,
        )


class CeilingReport(msgspec.Struct, frozen=True, kw_only=True):
    """A ceiling as JSON; see Ceiling."""

    quota_gb: int
    peak_bytes_per_s: float
    bytes_per_s: float
    used: float
    requests_per_s: float | None
    requests_used: float | None
    words: str


# The first steps of a process pay for imports, caches and memory that no later step pays for.
WARMUP_STEPS = 3
_SHORT_STRETCHES = 2  # in a row, after which the comparison says that they are too short
_TOO_SHORT = "too short"
"""The reason of a figure that is missing."""


class RecordedSettings(msgspec.Struct, frozen=True):
    """The settings of a run that the figures depend on; a record of another version may lack any of them."""

    batch_size: int = 0
    workers: int = 1
    max_steps: int = 0
    endpoint: EndpointKind | None = None


class Measurement:
    """The figures of a run from its events so far. Steps of a pause, a validation and the warm-up count nowhere."""

    def __init__(self) -> None:
        self.settings = RecordedSettings()
        self.run: events.Run | None = None
        self.visits = Visits()
        self.looks = 0
        """How many estimates of the ratio were made."""
        self.seen = 0
        """Steps of this process, the warm-up too."""
        self._endpoint: EndpointKind | None = None
        self._coverage = Coverage()
        self._singles = SingleTimes()
        self._whole = _Whole()
        # Steps, samples and bytes, the warm-up too; None is the loader of a watched script.
        self._used: dict[EndpointKind | None, list[int]] = {kind: [0, 0, 0] for kind in (*EndpointKind, None)}
        self._interrupted = False
        self._over = False
        self._bought: events.AcceleratorSize | None = None

    def apply(self, event: Event) -> None:
        """Take one event, in the order of the record."""
        if isinstance(event, events.Step):
            self._add(event)
        elif isinstance(event, events.Run):
            self._start(event)
        elif isinstance(event, events.Switch):
            self._endpoint = event.endpoint
            self.visits.switch(event.endpoint)
        elif isinstance(event, events.State):
            self._interrupted = self._interrupted or event.state is not RunState.RUNNING
            self._over = event.state.final
        elif isinstance(event, events.Epoch):
            self._coverage.end_epoch(event.samples)
        elif isinstance(event, events.AcceleratorSize):
            self._bought = event

    def _start(self, event: events.Run) -> None:
        """A run whose lost processes were restarted emits this event again: the measurements are kept."""
        self.run = event
        self.seen = 0
        self.settings = _settings(event.settings)
        if self._endpoint is None:
            self.visits = Visits(self._turn, self.hit_rate)
        self._endpoint = self.settings.endpoint
        if self._endpoint is not None:
            self._begin(self._endpoint)

    def _begin(self, kind: EndpointKind) -> None:
        # The batches of the readers' first turn that are not part of the warm-up.
        self.visits.start(kind, max(0, self._turn - WARMUP_STEPS))

    @property
    def _turn(self) -> int:
        """The batches of one turn of all readers; on shards it takes a batch of each window, which a switch empties."""
        shards = self.run is not None and self.run.stored_as == "shards"
        return max(self.settings.workers, events.SHARD_LANES if shards else 1)

    def _add(self, step: events.Step) -> None:
        if self._endpoint is None and step.endpoint is not None:
            self._endpoint = step.endpoint
            self._begin(step.endpoint)
        self.seen += 1
        used = self._used[step.endpoint]
        for place, amount in enumerate((1, step.samples, step.bytes)):
            used[place] += amount
        # A step after a pause or a validation holds that time too, and says nothing of the endpoint.
        interrupted, self._interrupted = self._interrupted, False
        counts = not interrupted and self.seen > WARMUP_STEPS
        if counts:
            self._whole.add(step)
        if step.endpoint is not None:  # else it is of a script's own loader, which has no endpoints to compare
            self._visit(step, counts=counts, interrupted=interrupted)

    def _visit(self, step: events.Step, *, counts: bool, interrupted: bool) -> None:
        self._singles.add(step)
        cold = self._coverage.add(step, self.samples_per_epoch, self._singles.limit_s)
        if interrupted:
            self.visits.interrupt()
        if not counts:
            self.visits.follow(step)
            return
        looks = self._estimates
        self.visits.add(step, cold=cold)
        self.looks += self._estimates != looks

    @property
    def _estimates(self) -> int:
        pairs = self.visits.pairs
        return pairs[False].looks + pairs[True].looks  # twice for each step: a sum over a generator took a tenth

    @property
    def readers(self) -> int:
        """The number of reader processes of all ranks."""
        return self.settings.workers * (self.run.world if self.run is not None else 1)

    @property
    def warming(self) -> tuple[int, int] | None:
        """How many of a run's first steps have passed, of how many that are not counted; None after them."""
        return (self.seen, WARMUP_STEPS) if self.seen < WARMUP_STEPS else None

    @property
    def samples_per_epoch(self) -> int:
        """Training samples of an epoch; 0 where that is not known."""
        planned = self.run.steps_per_epoch * self.settings.batch_size * self.run.world if self.run else 0
        return self._coverage.size or planned

    @property
    def cache_coverage(self) -> float:
        """Share of the samples that this run has read through the accelerated endpoint, 0 to 1."""
        return self._coverage.covered

    def figures(self, kind: EndpointKind) -> EndpointFigures:
        """The figures of an endpoint while settled."""
        return self.visits.windows[kind].figures()

    def hit_rate(self, singles: TimeCounts) -> HitRate | None:
        """The share of hits among single samples that were timed through the accelerator.

        None where there are none, or their times do not tell hits from misses.
        """
        return hit_rate(singles, self._singles.limit_s)

    @property
    def cold_hits(self) -> float | None:
        """The estimated share of hits while the accelerator's cache is cold.

        None where it is warm, or the times of single samples do not say: another run may have filled it.
        """
        window = self.visits.windows[EndpointKind.ACCELERATED]
        found = self.hit_rate(window.parts[True].tally.singles) if window.cold else None
        return found.reported if found is not None and found.cold else None

    @property
    def comparison(self) -> Comparison:
        """The endpoints compared, as of the last look."""
        standard, accelerated = (self.figures(kind) for kind in EndpointKind)
        cold = self.visits.cold
        pairs = self.visits.pairs[cold]
        tally = self.visits.windows[EndpointKind.ACCELERATED].parts[cold].tally
        slow, fast = standard.typical_step_s, accelerated.typical_step_s
        found = self.hit_rate(tally.singles)
        hits = found.reported if found is not None else None
        return Comparison(
            pairs=pairs.count,
            estimate=pairs.estimate,
            standard=standard.side(self.samples_per_epoch),
            accelerated=accelerated.side(self.samples_per_epoch),
            typical_ratio=slow / fast if slow and fast else None,
            hit_rate=hits,
            coverage=self.cache_coverage,
            cold=cold,
            conditions=self._conditions(pairs.count, hits),
            too_short=self.visits.short >= _SHORT_STRETCHES,
            over=self._over,
        )

    def _conditions(self, pairs: int, hits: float | None) -> Conditions | None:
        run = self.run
        if run is None:
            return None
        tallies = [window.parts[window.cold].tally for window in self.visits.windows.values()]
        samples = self.samples
        return Conditions(
            pairs=pairs,
            minutes=sum(tally.seconds for tally in tallies) / 60,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            processes=run.world,
            sample_format=run.sample_format,
            bytes_per_sample=self.bytes / samples if samples else None,
            stored_as=run.stored_as,
            warm_share=hits,
            region=run.region,
            simulated=run.simulated,
            versions=run.versions,
        )

    @property
    def ceiling(self) -> Ceiling | None:
        """The used share of the purchased accelerator; None where its size, or its rate, is not known."""
        figures = self.figures(EndpointKind.ACCELERATED)
        if self._bought is None or figures.bytes_per_s is None or figures.samples_per_s is None:
            return None
        each = self.run is not None and self.run.stored_as == "objects"
        return Ceiling(
            quota_gb=self._bought.quota_gb,
            peak_bytes_per_s=self._bought.peak_bytes_per_s,
            bytes_per_s=figures.bytes_per_s,
            requests_per_s=figures.samples_per_s if each else None,
        )

    def decode_share(self, kind: EndpointKind) -> float | None:
        """The share of the time, 0 to 1, in which the readers of this endpoint decoded; None without steps of it."""
        decoding = self.figures(kind).decoding
        return None if decoding is None else min(1.0, decoding / self.settings.workers)

    def decode_bound(self, kind: EndpointKind) -> bool:
        """Whether the run waited for the readers' CPUs, not for this endpoint."""
        figures = self.figures(kind)
        wait, share = figures.wait_fraction or 0.0, self.decode_share(kind) or 0.0
        return wait >= COMPUTE_BOUND and share >= DECODE_BOUND

    def format_gain(self, kind: EndpointKind) -> FormatGain | None:
        """What JPEGs would give through this endpoint; None unless its bytes per second limit the run.

        They do where they are near the documented rate of the accelerator. They also do for shards, which need few
        requests. What each small sample costs the readers is not known, so the ratio is an upper bound.
        """
        figures, run = self.figures(kind), self.run
        if run is None or figures.samples_per_s is None or figures.wait_fraction is None:
            return None
        if figures.wait_fraction < IO_BOUND or self.decode_bound(kind):
            return None
        ceiling = self.ceiling if kind is EndpointKind.ACCELERATED else None
        sharded = run.stored_as == "shards"
        if not sharded and (ceiling is None or not ceiling.near):
            return None
        return jpeg_gain(
            run.sample_format,
            self.bytes / self.samples,
            figures.samples_per_s,
            figures.wait_fraction,
            workers=self.readers,
            cores=run.cores,
            most_samples_per_s=math.inf if sharded else REQUESTS_PER_S,
        )

    # The whole run

    @property
    def samples(self) -> int:
        """Samples of the whole run, the warm-up too."""
        return sum(samples for _, samples, _ in self._used.values())

    @property
    def bytes(self) -> int:
        """Bytes of the whole run, the warm-up too."""
        return sum(size for _, _, size in self._used.values())

    @property
    def samples_per_s(self) -> float | None:
        """The mean over the steps after the warm-up; None where they were too few."""
        whole = self._whole
        enough = whole.steps >= FIGURE_STEPS and whole.seconds >= FIGURE_S
        return whole.samples / whole.seconds if enough else None

    @property
    def wait_fraction(self) -> float | None:
        """Share of the time of those steps that the loop waited for data, 0 to 1; None as `samples_per_s`."""
        return self._whole.wait_s / self._whole.seconds if self.samples_per_s is not None else None

    def summary(
        self, run: str, state: RunState, *, epochs: int, steps: int, seconds: float, **others: Any
    ) -> events.Summary:
        """The summary of a run that has ended in `state`; `others` are fields that are not measured here."""
        comparison = self.comparison
        return events.Summary(
            time=time.time(),
            run=run,
            state=state,
            epochs=epochs,
            steps=steps,
            samples=self.samples,
            bytes=self.bytes,
            seconds=seconds,
            samples_per_s=self.samples_per_s,
            wait_fraction=self.wait_fraction,
            reason=_TOO_SHORT if self.samples_per_s is None else "",
            comparison=comparison.report() if comparison.pairs else None,
            endpoints=self.endpoints(),
            **others,
        )

    def endpoints(self) -> dict[str, EndpointSummary]:
        """The totals and figures of each endpoint that was used, by its name."""
        return {str(kind): self._endpoint_summary(kind) for kind in EndpointKind if self._used[kind][0]}

    def _endpoint_summary(self, kind: EndpointKind) -> EndpointSummary:
        steps, samples, size = self._used[kind]
        figures = self.figures(kind)
        return EndpointSummary(
            steps=steps,
            samples=samples,
            bytes=size,
            samples_per_s=figures.samples_per_s,
            wait_fraction=figures.wait_fraction,
            reason=_TOO_SHORT if figures.samples_per_s is None else "",
            decode_share=self.decode_share(kind),
            format_gain=self.format_gain(kind),
        )


class _Whole:
    """Sums over the steps after the warm-up, of both endpoints, whether settled or not."""

    def __init__(self) -> None:
        self.steps = self.samples = 0
        self.seconds = self.wait_s = 0.0

    def add(self, step: events.Step) -> None:
        self.steps += 1
        self.samples += step.samples
        self.seconds += step.step_time_s
        self.wait_s += step.data_wait_s


def _settings(raw: dict[str, Any]) -> RecordedSettings:
    """The settings known to this version; what is missing or of another type keeps its default."""
    known = {field.name: _convert(raw.get(field.name), field.type, field.default) for field in _FIELDS}
    settings = RecordedSettings(**known)
    return msgspec.structs.replace(settings, workers=max(1, settings.workers))


_FIELDS = msgspec.structs.fields(RecordedSettings)


def _convert(value: Any, kind: Any, default: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return default
