"""Progress: whatever happens, in whatever order, done only rises and never exceeds the total."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ossconsole.dataset.upload.progress import (
    COMPARED,
    IGNORED,
    PLAN_ENDED,
    PLANNED,
    UNCHANGED,
    Busy,
    Counts,
    PipelineStage,
    UploadProgress,
    UploadRates,
    UploadStats,
    sample_failed,
    sample_missing,
    sample_sent,
)

# What can become of one file: settled at once, sent, lost, or found missing by the verification and sent once more.
_FATES: list[list[Counts]] = [
    [IGNORED],
    [UNCHANGED],
    [sample_failed()],
    [sample_sent(100)],
    [sample_sent(100), sample_missing(unchanged=False), sample_sent(100, resent=True)],
    [sample_sent(100), sample_missing(unchanged=False), sample_failed(resent=True)],
    [UNCHANGED, sample_missing(unchanged=True), sample_sent(100, resent=True)],
    [
        UNCHANGED,
        sample_missing(unchanged=True),
        sample_sent(100, resent=True),
        sample_missing(unchanged=False),
        sample_failed(resent=True),
    ],
]


@given(
    fates=st.lists(st.sampled_from(_FATES), max_size=30),
    counted=st.lists(st.integers(0, 40), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_done_rises_and_stays_within_the_total(fates: list[list[Counts]], counted: list[int], order: object) -> None:
    threads = [[PLANNED, *fate] for fate in fates] + [[Counts(counted=number)] for number in counted]
    events: list[Counts] = []
    while threads:
        chosen = order.choice(threads)  # type: ignore[attr-defined]
        events.append(chosen.pop(0))
        threads = [thread for thread in threads if thread]
    planned_last = max((n for n, event in enumerate(events) if event is PLANNED), default=-1)
    events.insert(planned_last + 1, PLAN_ENDED)
    counts, before = Counts(), Counts()
    for event in events:
        counts += event
        assert before.done <= counts.done <= counts.total
        assert counts.bytes >= before.bytes
        assert min(counts.uploaded, counts.unchanged, counts.ignored, counts.failed, counts.missing) >= 0
        before = counts
    assert counts.done == counts.total == len(fates)
    assert counts.missing == 0
    last = [fate[-1] for fate in fates]
    assert counts.uploaded == sum(event.uploaded for event in last)
    assert counts.failed == sum(event.failed for event in last)
    assert counts.unchanged == sum(event is UNCHANGED for event in last)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), max_size=60))
def test_rates_are_never_negative(steps: list[tuple[float, int]]) -> None:
    window, now, counts = UploadRates(0.0), 0.0, Counts()
    for wait, sent in steps:
        now += wait
        for _ in range(sent):
            counts = counts + PLANNED + sample_sent(10)
        window.mark(now, counts, Busy())
        rates = window.rates(now, counts, Busy(), workers=2, senders=4)
        assert rates.samples_per_s >= 0
        assert rates.bytes_per_s >= 0


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    window, counts = UploadRates(0.0), Counts()
    for second in range(1, 41):
        for _ in range(100 if second <= 20 else 10):
            counts += sample_sent(1000)
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


def test_the_time_left_follows_from_all_work_and_not_only_from_what_is_sent() -> None:
    now = [0.0]
    stats = UploadStats(workers=1, clock=lambda: now[0])
    for _ in range(1000):
        stats.add(PLANNED)
    stats.add(PLAN_ENDED)
    for _ in range(500):
        stats.add(UNCHANGED)  # by the plan, in no time
    for second in range(1, 11):  # ten a second: most are in the bucket already, some cannot be read
        now[0] = float(second)
        for change in (*[COMPARED] * 8, sample_sent(100), sample_failed()):
            stats.add(change)

    def found(waiting: str = "") -> UploadProgress:
        return stats.snapshot(paused=False, parallelism=1, bandwidth=None, error="", waiting=waiting)

    assert (found().samples_per_s, found().files_per_s, found().eta_s) == (1.0, 10.0, 40.0)
    assert found().checks
    assert (found().bottleneck, found("OSS is throttling").bottleneck) == (None, PipelineStage.SEND)


def test_the_classes_uploaded_last_are_reported_by_name() -> None:
    stats = UploadStats(workers=1)
    for name in [f"class-{number:02}" for number in range(30)] + ["class-03", "class-29"]:
        stats.count_class(name)
    found = stats.snapshot(paused=False, parallelism=1, bandwidth=None, error="", waiting="")
    assert found.class_count == 30
    assert len(found.classes) == 24
    assert found.classes[0] == ("class-03", 2)
    assert found.classes[-1] == ("class-29", 2)
