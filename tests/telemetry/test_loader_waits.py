"""What a watched loop waits for: the causes, and real worker processes."""

from __future__ import annotations

import threading
import time

import pytest
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ossconsole.telemetry import diagnosis, events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.loader_waits import LoaderCause, LoaderWaits, advice
from ossconsole.telemetry.ranks import RankFigures
from ossconsole.telemetry.samples import WorkerUsage
from ossconsole.telemetry.view import RunView
from ossconsole.telemetry.workers import WorkerReader, worker_pids
from tests.telemetry.samples_of_events import START, run_event, step_event


def usage(*idle_and_runnable: tuple[float | None, float]) -> events.LoaderWorkers:
    workers = tuple(
        WorkerUsage(pid=at, cpu=runnable, runnable=runnable, idle=idle)
        for at, (idle, runnable) in enumerate(idle_and_runnable)
    )
    return events.LoaderWorkers(time=START, workers=workers)


def ranks(*waits: float) -> events.RankWork:
    figures = [
        RankFigures(rank=rank, steps=8, wait_fraction=wait, bytes_per_s=0.0, step_s=0.6)
        for rank, wait in enumerate(waits)
    ]
    return events.RankWork(time=START, ranks=tuple(figures))


@pytest.mark.parametrize(
    ("workers", "figures", "cause"),
    [
        (0, None, LoaderCause.IN_PROCESS),
        (3, None, LoaderCause.UNKNOWN),
        (3, usage((0.0, 0.9), (0.1, 0.8), (0.0, 0.9)), LoaderCause.DECODING),
        (3, usage((0.0, 0.1), (0.1, 0.0), (0.0, 0.2)), LoaderCause.READING),
        (3, usage((0.8, 0.1), (0.0, 0.1), (0.7, 0.1)), LoaderCause.SLOW_WORKER),
        (3, usage((0.8, 0.1), (0.9, 0.1), (0.7, 0.1)), LoaderCause.TRANSFER),
        (2, usage((None, 0.9), (None, 0.8)), LoaderCause.DECODING),
        (2, usage((None, 0.1), (None, 0.1)), LoaderCause.READING),
        (2, ranks(0.01, 0.8), LoaderCause.SLOW_RANK),
    ],
)
def test_the_cause_of_waits(
    workers: int, figures: events.LoaderWorkers | events.RankWork | None, cause: LoaderCause
) -> None:
    waits = LoaderWaits(workers)
    if figures is not None:
        waits.apply(figures)
    assert waits.cause is cause


def test_the_workers_of_a_loader_that_does_not_state_them_are_counted() -> None:
    waits = LoaderWaits(None)  # as of a generator around a DataLoader
    assert (waits.workers, waits.cause) == (0, LoaderCause.IN_PROCESS)
    assert "use a DataLoader with num_workers on 4 cores" in advice(waits, cores=4)
    waits.apply(usage((0.0, 0.1), (0.1, 0.0)))
    assert (waits.workers, waits.cause) == (2, LoaderCause.READING)
    assert advice(waits, cores=4).startswith("the 2 workers wait for storage or network: ")


def test_waits_at_the_start_of_epochs_are_their_own_cause() -> None:
    waits = LoaderWaits(2)
    waits.apply(usage((0.0, 0.9), (0.0, 0.9)))
    for epoch in range(1, 5):
        for index in range(20):
            waits.add(epoch, 1.0 if index < 2 else 0.01)
    assert waits.cause is LoaderCause.EPOCH_START


def test_ranks_that_wait_alike_are_not_the_cause() -> None:
    waits = LoaderWaits(0)
    waits.apply(ranks(0.5, 0.55, 0.52))
    assert waits.slowest_rank is None


def test_the_verdict_names_the_loader_and_the_cause() -> None:
    view = RunView()
    view.apply(run_event(loader="DataLoader", settings={"batch_size": 8, "workers": 8}, cores=16))
    view.apply(events.State(time=START, state=RunState.RUNNING))
    for number in range(1, 9):
        view.apply(step_event(number, endpoint=None, data_wait_s=0.61, step_time_s=1.0))
    view.apply(usage(*[(0.0, 0.9)] * 8))
    found = diagnosis.diagnose(view, START + 8)
    assert (found.bottleneck, found.text, found.advice) == (
        diagnosis.Bottleneck.IO,
        "training waits 61 % of each step for batches from DataLoader (8 workers)",
        (
            "the 8 workers are busy computing on 16 cores: more workers would help; "
            "faster batches would be worth at most 2.6x (estimated)"
        ),
    )


def test_the_verdict_says_what_oss_gave_on_this_machine() -> None:
    bench = events.Benchmarked(name="first", samples_per_s={"standard": 12.0, "accelerated": 90.0}, simulated=True)
    view = RunView()
    view.apply(run_event(loader="DataLoader", settings={"batch_size": 8, "workers": 8}, benchmark=bench))
    view.apply(events.State(time=START, state=RunState.RUNNING))
    for number in range(1, 9):
        view.apply(step_event(number, endpoint=None, data_wait_s=0.75, step_time_s=1.0, samples_per_s=20.0))
    assert diagnosis.diagnose(view, START + 8).format_advice == (
        "OSS could give 80 samples/s through the accelerated endpoint (estimated from the benchmark first, simulated)"
    )


@pytest.mark.parametrize("decode_s", [0.0, 1.9], ids=["endpoint", "decoding"])
def test_the_verdict_names_the_rank_that_waits_longest(decode_s: float) -> None:
    view = RunView()
    view.apply(run_event(settings={"batch_size": 8, "workers": 2}, world=2))
    view.apply(events.State(time=START, state=RunState.RUNNING))
    for number in range(1, 9):
        view.apply(step_event(number, data_wait_s=0.5, step_time_s=0.6, fetch_s=2.0, decode_s=decode_s))
    view.apply(ranks(0.1, 0.8))
    found = diagnosis.diagnose(view, START + 8)
    assert (found.bottleneck is diagnosis.Bottleneck.DECODE) == bool(decode_s)
    assert found.advice.startswith("rank 1 waits 480 ms for a batch, 1 other 60 ms; ")


class Slow(Dataset[int]):
    """Samples of worker 1 take 30 ms, all others 1 ms."""

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> int:
        worker = get_worker_info()
        time.sleep(0.03 if worker is not None and worker.id == 1 else 0.001)
        return index


def test_a_slow_worker_of_a_real_data_loader_is_found() -> None:
    loader = DataLoader(Slow(), batch_size=4, num_workers=3)
    reader, waits = WorkerReader(), LoaderWaits(3)
    batches = iter(loader)
    pids = worker_pids()
    reader.read(pids)
    loop = threading.Thread(target=lambda: [next(batches) for _ in range(60)])
    loop.start()
    while loop.is_alive():
        reader.sample(pids)
        loop.join(0.02)  # not in step with the loop
    waits.apply(events.LoaderWorkers(time=START, workers=reader.read(pids)))
    assert waits.cause is LoaderCause.SLOW_WORKER, waits.usage
    assert waits.slow_worker == 1
