"""Progress: whatever happens, in whatever order, done only rises and never exceeds the total."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ossconsole.dataset.upload.progress import (
    Busy,
    Counted,
    Counts,
    PipelineStage,
    PlanEnded,
    Planned,
    SampleFailed,
    SampleIgnored,
    SampleMissing,
    Sent,
    Unchanged,
    UploadEvent,
    UploadRates,
    reduce,
)

# What can become of one file: settled at once, sent, lost, or found missing by the verification and sent once more.
_FATES: list[list[UploadEvent]] = [
    [SampleIgnored()],
    [Unchanged()],
    [SampleFailed()],
    [Sent(100)],
    [Sent(100), SampleMissing(unchanged=False), Sent(100, resent=True)],
    [Sent(100), SampleMissing(unchanged=False), SampleFailed(resent=True)],
    [Unchanged(), SampleMissing(unchanged=True), Sent(100, resent=True)],
    [
        Unchanged(),
        SampleMissing(unchanged=True),
        Sent(100, resent=True),
        SampleMissing(unchanged=False),
        SampleFailed(resent=True),
    ],
]


@given(
    fates=st.lists(st.sampled_from(_FATES), max_size=30),
    counted=st.lists(st.integers(0, 40), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_done_rises_and_stays_within_the_total(
    fates: list[list[UploadEvent]], counted: list[int], order: object
) -> None:
    threads = [[Planned(), *fate] for fate in fates] + [[Counted(number)] for number in counted]
    events: list[UploadEvent] = []
    while threads:
        chosen = order.choice(threads)  # type: ignore[attr-defined]
        events.append(chosen.pop(0))
        threads = [thread for thread in threads if thread]
    planned_last = max((n for n, event in enumerate(events) if isinstance(event, Planned)), default=-1)
    events.insert(planned_last + 1, PlanEnded())
    counts, before = Counts(), Counts()
    for event in events:
        counts = reduce(counts, event)
        assert before.done <= counts.done <= counts.total
        assert counts.bytes >= before.bytes
        assert min(counts.uploaded, counts.unchanged, counts.ignored, counts.failed, counts.missing) >= 0
        before = counts
    assert counts.done == counts.total == len(fates)
    assert counts.missing == 0
    last = [fate[-1] for fate in fates]
    assert counts.uploaded == sum(isinstance(event, Sent) for event in last)
    assert counts.failed == sum(isinstance(event, SampleFailed) for event in last)
    assert counts.unchanged == sum(isinstance(event, Unchanged) for event in last)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), max_size=60))
def test_rates_are_never_negative(steps: list[tuple[float, int]]) -> None:
    window, now, counts = UploadRates(0.0), 0.0, Counts()
    for wait, sent in steps:
        now += wait
        for _ in range(sent):
            counts = reduce(reduce(counts, Planned()), Sent(10))
        window.mark(now, counts, Busy())
        rates = window.rates(now, counts, Busy(), workers=2, senders=4)
        assert rates.samples_per_s >= 0
        assert rates.bytes_per_s >= 0


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    window, counts = UploadRates(0.0), Counts()
    for second in range(1, 41):
        for _ in range(100 if second <= 20 else 10):
            counts = reduce(counts, Sent(1000))
        window.mark(float(second), counts, Busy())
    rates = window.rates(40.0, counts, Busy(), workers=1, senders=1)
    assert rates.samples_per_s == 10
    assert rates.bytes_per_s == 10_000


def test_the_busiest_stage_is_the_bottleneck() -> None:
    def bottleneck(busy: Busy) -> PipelineStage | None:
        window = UploadRates(0.0)
        return window.rates(10.0, Counts(), busy, workers=2, senders=4).bottleneck

    assert bottleneck(Busy(read=1, prepare=18, send=12)) is PipelineStage.PREPARE
    assert bottleneck(Busy(read=18, prepare=1, send=12)) is PipelineStage.READ
    assert bottleneck(Busy(read=1, prepare=8, send=39)) is PipelineStage.SEND
    assert bottleneck(Busy(read=1, prepare=8, send=2, capped=37)) is PipelineStage.CAP
    assert bottleneck(Busy(read=1, prepare=3, send=2)) is PipelineStage.PLAN
    assert bottleneck(Busy()) is None
