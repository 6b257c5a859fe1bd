"""The plan: every sample once per epoch, in an order that the seed alone decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.training.plan import LANES, WINDOW_BYTES, BatchRequest, Plan, Split, Window
from ossconsole.training.settings import TrainSettings

SIZES = st.integers(1, 200)


def rows(plan: Plan, epoch: int, split: Split, start: int = 0) -> list[int]:
    return [
        int(row)
        for request in plan.requests(start)
        if request.epoch == epoch and request.split is split
        for row in request.indices
    ]


@given(train=SIZES, val=st.integers(0, 50), batch=st.integers(1, 70), epochs=st.integers(1, 4))
def test_each_epoch_requests_each_sample_once(train: int, val: int, batch: int, epochs: int) -> None:
    plan = Plan(TrainSettings(batch_size=batch, epochs=epochs), train, val)
    for epoch in range(1, epochs + 1):
        assert sorted(rows(plan, epoch, Split.TRAIN)) == list(range(train))
        assert rows(plan, epoch, Split.VAL) == list(range(val))


@given(train=SIZES, val=st.integers(0, 50), batch=st.integers(1, 70), world=st.integers(1, 4))
def test_ranks_share_an_epoch_without_overlap_in_the_same_number_of_steps(
    train: int, val: int, batch: int, world: int
) -> None:
    plans = [Plan(TrainSettings(batch_size=batch, epochs=1), train, val, rank=r, world=world) for r in range(world)]
    seen = [row for plan in plans for row in rows(plan, 1, Split.TRAIN)]
    assert sorted(seen) == list(range(train))
    assert len({plan.steps_per_epoch for plan in plans}) == 1


@given(train=SIZES, val=st.integers(0, 50), batch=st.integers(1, 70), data=st.data())
def test_a_plan_resumes_from_any_batch(train: int, val: int, batch: int, data: st.DataObject) -> None:
    plan = Plan(TrainSettings(batch_size=batch, epochs=2), train, val)
    whole = list(plan.requests())
    start = data.draw(st.integers(0, len(whole) - 1))
    rest = list(plan.requests(whole[start].number))
    assert [r.number for r in rest] == [r.number for r in whole[start:]]
    for ours, theirs in zip(rest, whole[start:], strict=True):
        np.testing.assert_array_equal(ours.indices, theirs.indices)


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return rows(Plan(TrainSettings(batch_size=64, seed=seed, epochs=2), 100, 0), epoch, Split.TRAIN)

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (4, 1), (5, 2), (7, 2)])
def test_max_steps_ends_the_training_but_keeps_the_validation(steps: int, epochs: int) -> None:
    plan = Plan(TrainSettings(batch_size=25, epochs=3, max_steps=steps), 100, 30)
    requests = list(plan.requests())
    assert plan.epochs == epochs
    assert sum(r.split is Split.TRAIN for r in requests) == steps == plan.total_steps
    assert requests[-1].split is Split.VAL
    assert requests[-1].last
    assert [r.last for r in requests if r.split is Split.TRAIN and r.epoch == epochs][-1]


@pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 8])
def test_the_number_of_the_batch_after_a_step(step: int) -> None:
    plan = Plan(TrainSettings(batch_size=25, epochs=3), 100, 30)
    number = plan.number_after(step, ended=step % 4 == 0)
    done = [r for r in plan.requests() if r.number < number]
    assert sum(r.split is Split.TRAIN for r in done) == step
    assert sum(r.split is Split.VAL and r.last for r in done) == step // 4


@pytest.mark.parametrize(("step", "epoch"), [(4, 1), (6, 2)])  # 6: the last epoch is cut short
def test_an_epoch_that_was_not_validated_is_validated_first(step: int, epoch: int) -> None:
    plan = Plan(TrainSettings(batch_size=25, epochs=3, max_steps=6), 100, 30)
    request = next(plan.requests(plan.number_after(step, ended=False)))
    assert (request.epoch, request.split, request.index) == (epoch, Split.VAL, 0)


def test_updates_accumulate_batches_and_each_sample_counts_the_same() -> None:
    plan = Plan(TrainSettings(batch_size=10, epochs=1, accumulate=3), 42, 0)
    requests = list(plan.requests())
    assert [r.update for r in requests] == [False, False, True, False, True]
    assert [r.share for r in requests] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 10 / 12, 2 / 12])


def stored(train: int, val: int = 0, *, batch: int, sample_bytes: int = 1 << 20, **ranks: int) -> Plan:
    """A plan of two epochs on samples in tars, of a MiB each: a window has at least 2 batches and up to 16 samples."""
    sizes = {"train": train * sample_bytes, "val": val * sample_bytes}
    return Plan(TrainSettings(batch_size=batch, epochs=2), train, val, tar_bytes=sizes, **ranks)


def window_rows(window: Window | None, size: int) -> set[int]:
    assert window is not None
    return {row % size for row in range(window.first, window.first + window.count)}


@given(train=SIZES, val=st.integers(0, 50), batch=st.integers(1, 20))
def test_windows_leave_no_sample_out_and_have_those_of_their_batches(train: int, val: int, batch: int) -> None:
    plan = stored(train, val, batch=batch)
    for epoch in (1, 2):
        assert sorted(rows(plan, epoch, Split.TRAIN)) == list(range(train))
        assert sorted(rows(plan, epoch, Split.VAL)) == list(range(val))
    batches: dict[int, list[BatchRequest]] = {}
    for request in plan.requests():
        assert request.window is not None
        assert request.lane == request.index % LANES
        batches.setdefault(request.window.number, []).append(request)
    for found in batches.values():
        assert len({(each.window, each.lane, each.epoch, each.split) for each in found}) == 1
        seen = [row for each in found for row in each.indices.tolist()]
        size = train if found[0].split is Split.TRAIN else val
        assert set(seen) == window_rows(found[0].window, size)
        assert len(seen) <= max(2 * batch, WINDOW_BYTES >> 20)
        numbers = [each.number for each in found]
        assert numbers == list(range(numbers[0], numbers[-1] + 1, LANES))


@given(train=SIZES, val=st.integers(0, 50), batch=st.integers(1, 20), world=st.integers(1, 3))
def test_the_last_batches_of_a_window_name_the_next_one_of_their_lane_also_of_the_next_epoch(
    train: int, val: int, batch: int, world: int
) -> None:
    for rank in range(world):
        found = list(stored(train, val, batch=batch, rank=rank, world=world).requests())
        for at, each in enumerate(found):
            soon = (later.window for later in found[at + 1 : at + 1 + 2 * LANES] if later.lane == each.lane)
            others = [window for window in soon if window and window != each.window and window.count]
            assert each.next_window == next(iter(others), None)


def test_a_rank_without_samples_of_the_last_batch_fetches_no_window_for_it() -> None:
    plans = [stored(2 * LANES + 1, batch=1, rank=rank, world=2) for rank in (0, 1)]
    for rank, plan in enumerate(plans):
        last = plan.steps_per_epoch - 1
        named = [each.next_window for each in plan.requests() if each.epoch == 1 and each.index == last - LANES]
        assert [window.number == last for window in named if window] == [rank == 0]


@given(train=SIZES, val=st.integers(0, 50), batch=st.integers(1, 10), world=st.integers(1, 4))
def test_ranks_together_have_the_batches_and_windows_of_one(train: int, val: int, batch: int, world: int) -> None:
    alone = stored(train, val, batch=batch * world)
    ranks = [stored(train, val, batch=batch, rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(alone.requests(), *(plan.requests() for plan in ranks), strict=True):
        assert np.concatenate([part.indices for part in parts]).tolist() == whole.indices.tolist()
        size = train if whole.split is Split.TRAIN else val
        spans = [window_rows(part.window, size) for part in parts]
        assert set.union(*spans) == window_rows(whole.window, size)
        assert sum(map(len, spans)) == len(set.union(*spans))
        for part, span in zip(parts, spans, strict=True):
            assert set(part.indices.tolist()) <= span


@given(train=SIZES, val=st.integers(0, 50), batch=st.integers(1, 20), data=st.data())
def test_a_plan_in_windows_resumes_from_any_batch(train: int, val: int, batch: int, data: st.DataObject) -> None:
    plan = stored(train, val, batch=batch)
    whole = [(r.number, r.window, r.indices.tolist()) for r in plan.requests()]
    start = data.draw(st.integers(0, len(whole) - 1))
    rest = [(r.number, r.window, r.indices.tolist()) for r in stored(train, val, batch=batch).requests(whole[start][0])]
    assert rest == whole[start:]


def test_neighbours_are_in_other_batches_in_each_epoch() -> None:
    plan = stored(4096, batch=4)  # windows of 4 batches
    batches: dict[int, list[frozenset[int]]] = {1: [], 2: []}
    for request in plan.requests():
        batches[request.epoch].append(frozenset(request.indices.tolist()))
    places = {row: batch for batch in batches[2] for row in batch}
    again = [max(len(batch & places[row]) for row in batch) for batch in batches[1]]
    assert np.mean(again) < 2  # of 4; with the same neighbours in each epoch it would be 4


@pytest.mark.parametrize(
    ("batch", "sample_bytes", "batches"),
    [(64, 27_000, 9), (256, 27_000, 2), (64, 150_528, 2), (256, 602_112, 1), (1, 64, 65)],
)
def test_a_window_has_whole_batches(batch: int, sample_bytes: int, batches: int) -> None:
    plan = stored(batch * LANES * 65, batch=batch, sample_bytes=sample_bytes)
    counts = [request.window.count for request in plan.requests() if request.window]
    assert max(counts) == batches * batch


def test_the_lanes_begin_their_windows_one_after_the_other() -> None:
    plan = stored(16 * LANES * 8, batch=1)  # windows of 16 batches
    lengths: dict[int, int] = {}
    for request in plan.requests():
        assert request.window is not None
        lengths.setdefault(request.lane, request.window.count)
    assert list(lengths.values()) == list(range(2, 17, 2))
