"""`ossconsole.watch` around loaders that are not ours: what is recorded, requests of a console, and wrong uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ossconsole
from ossconsole.api.ranks import log_absent_ranks
from ossconsole.api.watch import Watch, WatchError, samples_in
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.training.remote import control
from tests.api.conftest import events_of, steps_of

Loader = DataLoader[tuple[torch.Tensor, ...]]


@pytest.fixture(autouse=True)
def closed(folders: dict[str, str]) -> Iterator[None]:
    yield
    active = sys.modules["ossconsole.api.watch"]._active
    if active is not None:
        active.close()


def loader(batches: int = 6) -> Loader:
    data = TensorDataset(torch.zeros(batches * 4, 3), torch.arange(batches * 4))
    return DataLoader(data, batch_size=4)


def test_a_learning_rate_of_0_is_recorded_and_a_missing_one_is_the_last_one() -> None:
    watched = ossconsole.watch(loader())
    for number, _ in enumerate(watched):
        watched.log(**({"lr": 0.1 * (1 - number)} if number < 2 else {}))
    watched.close()
    assert [step.lr for step in steps_of(watched.run_id)] == [0.1, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_the_batches_pass_unchanged_and_each_step_is_recorded() -> None:
    plain = [labels.tolist() for _, labels in loader()]
    watched = ossconsole.watch(loader(), epochs=2)
    for epoch in (1, 2):
        seen = []
        for _, labels in watched:
            seen.append(labels.tolist())
            watched.log(loss=torch.tensor(0.5 * epoch), lr=0.1, norm=3)
        assert seen == plain
        watched.log(top1=epoch / 10, val_loss=2.0, bleu=0.25)
    watched.close()
    found = events_of(watched.run_id)
    run, *_ = found
    assert isinstance(run, events.Run)
    assert (run.loader, run.epochs, run.steps_per_epoch, run.settings["batch_size"]) == ("DataLoader", 2, 6, 4)
    steps = steps_of(watched.run_id)
    assert [step.step for step in steps] == list(range(1, 13))
    assert {(step.samples, step.endpoint, step.lr) for step in steps} == {(4, None, 0.1)}
    assert [step.loss for step in steps] == [0.5] * 6 + [1.0] * 6
    assert steps[0].logged == {"norm": 3.0}
    assert all(0 <= step.data_wait_s <= step.step_time_s for step in steps)
    epochs = [event for event in found if isinstance(event, events.Epoch)]
    assert [(e.epoch, e.train_loss, e.top1, e.val_loss, e.samples) for e in epochs] == [
        (1, 0.5, 0.1, 2.0, 24),
        (2, 1.0, 0.2, 2.0, 24),
    ]
    assert "epoch 1: bleu 0.250" in [event.message for event in found if isinstance(event, events.InfoEvent)]
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.state, summary.steps, summary.samples) == (RunState.FINISHED, 12, 48)


def test_a_figure_is_recorded_as_it_was_when_it_was_logged() -> None:
    watched, total = ossconsole.watch(loader(3)), torch.zeros(())
    for number, _ in enumerate(watched):
        total += 1
        watched.log(total=total, lr=2.0 - number, gap=None)
    watched.close()
    steps = steps_of(watched.run_id)
    assert [(step.logged, step.lr) for step in steps] == [
        ({"total": number, "gap": None}, 3.0 - number) for number in (1.0, 2.0, 3.0)
    ]


@pytest.mark.parametrize("value", [torch.zeros(3), "many", [0.5]])
def test_what_is_not_a_number_is_refused_where_it_is_logged(value: object) -> None:
    with ossconsole.watch(loader()) as watched:
        for _ in watched:
            with pytest.raises(WatchError, match="The logged loss is not a number: "):
                watched.log(loss=value)
            break


class OnGpu:
    """A tensor whose copy on the host is complete some time later."""

    device = SimpleNamespace(type="cuda")

    def __init__(self) -> None:
        self.copied = torch.tensor(float("nan"))

    def detach(self) -> OnGpu:
        return self

    def numel(self) -> int:
        return 1

    def to(self, *_: object, **__: object) -> torch.Tensor:
        return self.copied

    def __float__(self) -> float:  # waits for the GPU
        return 0.5


def test_a_figure_of_an_epoch_is_waited_for() -> None:
    with ossconsole.watch(loader(1)) as watched:
        for _ in watched:
            loss = OnGpu()
            watched.log(loss=loss)
            loss.copied.fill_(2.0)  # before the end of the step
        watched.log(val_loss=OnGpu())
    (epoch,) = (event for event in events_of(watched.run_id) if isinstance(event, events.Epoch))
    assert (epoch.train_loss, epoch.val_loss) == (2.0, 0.5)


def test_a_stopped_epoch_is_not_counted_and_its_figures_are_kept() -> None:
    with ossconsole.watch(loader(3)) as watched:
        for _ in watched:
            pass
        for _ in watched:
            control.ask(os.getpid(), control.Stop(run=watched.run_id))
        watched.log(top1=0.25)
    found = events_of(watched.run_id)
    assert [event.epoch for event in found if isinstance(event, events.Epoch)] == [1]
    assert [event.message for event in found if isinstance(event, events.InfoEvent)] == ["epoch 2: top1 0.250"]
    assert isinstance(found[-1], events.Summary)
    assert (found[-1].epochs, found[-1].steps) == (1, 4)


def test_the_samples_of_a_short_batch_are_counted() -> None:
    whole = TensorDataset(torch.zeros(10, 3))
    for given, counted in ((0, [4, 4, 2]), (8, [8, 8, 8])):
        with ossconsole.watch(DataLoader(whole, batch_size=4), batch_size=given) as watched:
            for _ in watched:
                pass
        assert [step.samples for step in steps_of(watched.run_id)] == counted


def test_waits_and_work_are_distinguished() -> None:
    def batches() -> Iterator[list[int]]:
        for _ in range(8):
            time.sleep(0.03)
            yield [1, 2]

    watched = ossconsole.watch(list_of(batches), batch_size=2)
    for _ in watched:
        time.sleep(0.01)
    watched.close()
    steps = steps_of(watched.run_id)[1:]
    assert all(step.data_wait_s >= 0.03 for step in steps)
    assert all(step.compute_s >= 0.01 for step in steps)


class list_of:  # noqa: N801 - reads like a function
    """An iterable that calls a generator function for each iteration."""

    def __init__(self, make: object) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list[int]]:
        return self._make()  # type: ignore[operator, no-any-return]


_RESUME = """
import sys
from ossconsole.telemetry.runs import record_path
from ossconsole.training.remote import control

while "paused" not in record_path(sys.argv[2]).read_text():
    pass
control.ask(int(sys.argv[1]), control.Resume(run=sys.argv[2]))
"""


def test_a_console_pauses_resumes_saves_and_stops_the_loop() -> None:
    saved: list[int] = []
    watched = ossconsole.watch(loader(10_000), on_checkpoint=lambda: saved.append(1))
    run = watched.run_id
    seen = 0
    for _ in watched:
        seen += 1
        if seen == 3:
            control.ask(os.getpid(), control.SaveCheckpoint(run=run))
        if seen == 5:
            control.ask(os.getpid(), control.Pause(run=run))
            # Resumed by another thread, as this one blocks before the next batch.
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _RESUME,
                    str(os.getpid()),
                    run,
                ]
            )
        if seen == 8:
            control.ask(os.getpid(), control.Stop(run=run))
    assert (seen, saved, watched.stopping) == (8, [1], True)
    for request in (control.SetLr(run=run, lr=0.1), control.SwitchEndpoint(run=run, endpoint="accelerated")):  # type: ignore[arg-type]
        with pytest.raises(control.ControlError):
            control.ask(os.getpid(), request)
    watched.close()
    states = [event.state for event in events_of(run) if isinstance(event, events.State)]
    assert states == [RunState.RUNNING, RunState.PAUSED, RunState.RUNNING, RunState.STOPPED]


def test_a_script_that_offers_no_checkpoint_says_so() -> None:
    watched = ossconsole.watch(loader())
    with pytest.raises(control.ControlError, match="does not write checkpoints"):
        control.ask(os.getpid(), control.SaveCheckpoint(run=watched.run_id))


def test_breaking_out_ends_the_epoch_with_its_last_step() -> None:
    watched = ossconsole.watch(loader())
    for seen, _ in enumerate(watched):
        if seen == 2:
            break
    for _ in watched:
        pass
    watched.close()
    assert [(step.epoch, step.step) for step in steps_of(watched.run_id)] == [(1, n) for n in (1, 2, 3)] + [
        (2, n) for n in range(4, 10)
    ]


def test_iterating_twice_at_the_same_time_is_refused() -> None:
    watched = ossconsole.watch(loader())
    first = iter(watched)
    next(first)
    second = iter(watched)
    next(second)
    with pytest.raises(WatchError, match="iterated twice at the same time"):
        next(first)


def test_an_iterator_that_was_left_early_does_not_hold_up_the_next_one() -> None:
    watched = ossconsole.watch(loader())
    kept = iter(watched)  # as Lightning keeps it
    next(kept)
    assert len(list(watched)) == 6


def test_a_second_loader_is_refused_and_the_same_one_is_the_same_watch() -> None:
    mine = loader()
    watched = ossconsole.watch(mine)
    assert ossconsole.watch(mine) is watched
    with pytest.raises(WatchError, match="watches a DataLoader already"):
        ossconsole.watch(loader())
    watched.close()
    with pytest.raises(WatchError, match="was closed"):
        iter(watched)
    assert isinstance(ossconsole.watch(loader()), Watch)


def test_a_forked_process_cannot_iterate() -> None:
    watched = ossconsole.watch(loader())
    child = os.fork()
    if not child:
        try:
            iter(watched)
        except WatchError as error:
            os._exit(7 if "forked" in error.message else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_an_exception_in_the_step_is_the_end_of_the_run() -> None:
    watched = ossconsole.watch(loader())

    def train() -> None:
        with watched:
            for _ in watched:
                raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError):
        train()
    summary = events_of(watched.run_id)[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.state, summary.error) == (RunState.FAILED, "RuntimeError: the step failed")


def test_a_script_that_ends_with_an_exception_is_recorded_as_failed(folders: dict[str, str]) -> None:
    code = "import ossconsole\nw = ossconsole.watch([[1], [2]])\nprint(w.run_id)\nfor b in w: raise ValueError('bad')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    summary = events_of(done.stdout.strip())[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.state, summary.error) == (RunState.FAILED, "ValueError: bad")


@pytest.mark.parametrize(
    ("raised", "state", "error"),
    [
        (KeyboardInterrupt(), RunState.STOPPED, ""),
        (SystemExit(0), RunState.FINISHED, ""),
        (SystemExit(3), RunState.FAILED, "SystemExit: 3"),
        (AssertionError(), RunState.FAILED, "AssertionError"),
    ],
)
def test_the_state_of_a_run_that_ends_early(raised: BaseException, state: RunState, error: str) -> None:
    def train() -> None:
        with watched:
            for _ in watched:
                raise raised

    watched = ossconsole.watch(loader())
    with pytest.raises(type(raised)):
        train()
    summary = events_of(watched.run_id)[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.state, summary.error) == (state, error)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"loader": None}, "got a NoneType, which cannot be iterated"),
        ({"loader": 5}, "got a int, which"),
        ({"epochs": "3"}, "got epochs='3'"),
        ({"batch_size": "a"}, "got batch_size='a'"),
        ({"batch_size": -4}, "got batch_size=-4"),
        ({"on_checkpoint": 5}, "got on_checkpoint=5, which cannot be called"),
    ],
)
def test_a_wrong_argument_is_refused_before_there_is_a_run(
    folders: dict[str, str], wrong: dict[str, object], problem: str
) -> None:
    before = set(Path(folders["OSSCONSOLE_STATE_DIR"]).glob("runs/*"))
    with pytest.raises(ConsoleError, match=problem):
        ossconsole.watch(**({"loader": loader()} | wrong))  # type: ignore[arg-type]
    assert set(Path(folders["OSSCONSOLE_STATE_DIR"]).glob("runs/*")) == before


class Odd:
    """A loader whose attributes say nothing, and whose batches have a shape of another kind."""

    batch_size, num_workers, shape = "auto", None, SimpleNamespace

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Odd]:
        yield self


def test_attributes_of_another_kind_do_not_stop_the_loop() -> None:
    with ossconsole.watch(Odd()) as watched:
        assert [type(batch) for batch in watched] == [Odd]
    assert [step.samples for step in steps_of(watched.run_id)] == [0]


def test_starting_the_workers_of_an_epoch_is_a_wait() -> None:
    class Starting:
        def __iter__(self) -> Iterator[int]:
            time.sleep(0.05)  # as a DataLoader starts its processes in `iter`
            return iter([1, 2])

    with ossconsole.watch(Starting()) as watched:
        for _ in watched:
            pass
    first, second = steps_of(watched.run_id)
    assert first.data_wait_s >= 0.05 > second.data_wait_s


def test_in_a_notebook_another_loader_replaces_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ossconsole.watch(loader())
    next(iter(first))  # the cell was interrupted
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    second = ossconsole.watch(loader())
    assert (first.is_open, second.is_open) == (False, True)
    assert len(list(second)) == 6


def test_a_record_that_cannot_be_written_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with ossconsole.watch(loader()) as watched:
        assert watched._run is not None
        watched._run._record.close()  # as on a full disk, each write fails
        assert len(list(watched)) == 6
    assert [record.getMessage() for record in caplog.records if "lacks" in record.getMessage()] != []
    assert len(caplog.records) == 1


def test_ranks_that_do_not_watch_their_loop_are_named(caplog: pytest.LogCaptureFixture) -> None:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    store.set("2", "here")
    log_absent_ranks(store, 0, 4, timedelta(milliseconds=1))
    assert [record.getMessage() for record in caplog.records] == [
        "Rank 0 waits for ranks 1, 3 to iterate over a watched loader. Call ossconsole.watch on every rank."
    ]


def test_without_a_dataset_the_error_says_what_to_do(folders: dict[str, str]) -> None:
    with pytest.raises(ConsoleError) as caught:
        ossconsole.OssImages(profile="nosuch")
    assert "nosuch" in caught.value.message


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(3, 2), torch.zeros(3)), 3),
        ({"pixels": torch.zeros(4, 1), "labels": torch.zeros(4)}, 4),
        ([{"text": "a"}, torch.zeros(2)], 2),
        ("words", 0),
        (torch.tensor(1.0), 0),
    ],
)
def test_the_size_of_a_batch(batch: object, count: int) -> None:
    assert samples_in(batch) == count


def test_importing_the_package_loads_nothing() -> None:
    heavy = ("torch", "textual", "oss2", "numpy", "msgspec")
    code = f"import ossconsole, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
