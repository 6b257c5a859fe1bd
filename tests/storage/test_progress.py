from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ossconsole.storage.jobs.job import RATE_WINDOW_S, ProgressTracker

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("expect"), st.integers(0, 3), st.integers(0, 100)),
        st.tuples(st.just("reach"), st.integers(0, 3), st.integers(0, 200)),
        st.tuples(st.just("finish"), st.integers(0, 3), st.integers(0, 100)),
        st.tuples(st.just("fail"), st.integers(0, 3), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.just(0), st.integers(0, 20)),
    ),
    max_size=60,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(EVENTS)
def test_done_never_falls_nor_exceeds_the_total_whatever_is_retried(events: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    tracker = ProgressTracker(clock)
    before = tracker.snapshot()
    for what, item, amount in events:
        if what == "expect":
            tracker.add_total(1, amount)
        elif what == "reach":
            tracker.advance(item, amount)
        elif what == "wait":
            clock.now += amount
        else:
            tracker.complete(item, amount, failed=what == "fail")
        after = tracker.snapshot()
        assert before.bytes_done <= after.bytes_done <= after.bytes_total
        assert after.bytes_per_s >= 0
        assert after.items_done >= before.items_done
        before = after


def test_a_retry_counts_nothing_twice() -> None:
    tracker = ProgressTracker(Clock())
    tracker.add_total(1, 100)
    for done in (40, 80, 10, 50, 90):
        tracker.advance("a", done)
    assert tracker.snapshot().bytes_done == 90
    tracker.complete("a", 100)
    assert tracker.snapshot().bytes_done == 100


def test_rate_and_time_left_are_over_the_last_seconds() -> None:
    clock = Clock()
    tracker = ProgressTracker(clock)
    tracker.add_total(1, 3000)
    assert tracker.snapshot().eta_s is None
    tracker.totals_known()
    for second in range(1, 21):
        clock.now = float(second)
        tracker.advance("a", second * 100)
    steady = tracker.snapshot()
    assert steady.bytes_per_s == 100
    assert steady.eta_s == 10
    clock.now += RATE_WINDOW_S + 1  # nothing arrives any more
    stalled = tracker.snapshot()
    assert stalled.bytes_per_s == 0
    assert stalled.eta_s is None
