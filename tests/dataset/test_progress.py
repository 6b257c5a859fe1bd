"""Progress: whatever happens, in whatever order, done only rises and never exceeds the total."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ossconsole.dataset.upload.progress import (
    Busy,
    Counted,
    Event,
    Failed,
    Ignored,
    PlanEnded,
    Planned,
    RateWindow,
    Reopened,
    Sent,
    Stage,
    Tally,
    Unchanged,
    reduce,
)

# What can become of one file: settled at once, sent, lost, or found missing by the verification and sent once more.
_FATES: list[list[Event]] = [
    [Ignored()],
    [Unchanged()],
    [Failed()],
    [Sent(100)],
    [Sent(100), Reopened(unchanged=False), Sent(100, again=True)],
    [Sent(100), Reopened(unchanged=False), Failed(again=True)],
    [Unchanged(), Reopened(unchanged=True), Sent(100, again=True)],
    [Unchanged(), Reopened(unchanged=True), Sent(100, again=True), Reopened(unchanged=False), Failed(again=True)],
]


@given(
    fates=st.lists(st.sampled_from(_FATES), max_size=30),
    counted=st.lists(st.integers(0, 40), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_done_rises_and_stays_within_the_total(fates: list[list[Event]], counted: list[int], order: object) -> None:
    threads = [[Planned(), *fate] for fate in fates] + [[Counted(number)] for number in counted]
    events: list[Event] = []
    while threads:
        chosen = order.choice(threads)  # type: ignore[attr-defined]
        events.append(chosen.pop(0))
        threads = [thread for thread in threads if thread]
    planned_last = max((n for n, event in enumerate(events) if isinstance(event, Planned)), default=-1)
    events.insert(planned_last + 1, PlanEnded())
    tally, before = Tally(), Tally()
    for event in events:
        tally = reduce(tally, event)
        assert before.done <= tally.done <= tally.total
        assert tally.bytes >= before.bytes
        assert min(tally.uploaded, tally.unchanged, tally.ignored, tally.failed, tally.reopened) >= 0
        before = tally
    assert tally.done == tally.total == len(fates)
    assert tally.reopened == 0
    last = [fate[-1] for fate in fates]
    assert tally.uploaded == sum(isinstance(event, Sent) for event in last)
    assert tally.failed == sum(isinstance(event, Failed) for event in last)
    assert tally.unchanged == sum(isinstance(event, Unchanged) for event in last)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), max_size=60))
def test_rates_are_never_negative(steps: list[tuple[float, int]]) -> None:
    window, now, tally = RateWindow(0.0), 0.0, Tally()
    for wait, sent in steps:
        now += wait
        for _ in range(sent):
            tally = reduce(reduce(tally, Planned()), Sent(10))
        window.mark(now, tally, Busy())
        rates = window.rates(now, tally, Busy(), workers=2, senders=4)
        assert rates.samples_per_s >= 0
        assert rates.bytes_per_s >= 0


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    window, tally = RateWindow(0.0), Tally()
    for second in range(1, 41):
        for _ in range(100 if second <= 20 else 10):
            tally = reduce(tally, Sent(1000))
        window.mark(float(second), tally, Busy())
    rates = window.rates(40.0, tally, Busy(), workers=1, senders=1)
    assert rates.samples_per_s == 10
    assert rates.bytes_per_s == 10_000


def test_the_busiest_stage_is_the_bottleneck() -> None:
    def bottleneck(busy: Busy) -> Stage | None:
        window = RateWindow(0.0)
        return window.rates(10.0, Tally(), busy, workers=2, senders=4).bottleneck

    assert bottleneck(Busy(read=1, prepare=18, send=12)) is Stage.PREPARE
    assert bottleneck(Busy(read=18, prepare=1, send=12)) is Stage.READ
    assert bottleneck(Busy(read=1, prepare=8, send=39)) is Stage.SEND
    assert bottleneck(Busy(read=1, prepare=8, send=2, capped=37)) is Stage.CAP
    assert bottleneck(Busy(read=1, prepare=3, send=2)) is Stage.PLAN
    assert bottleneck(Busy()) is None
