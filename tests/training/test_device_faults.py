"""Too little memory, and a GPU that fails: why the run ends, what it leaves, and that the next one works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ossconsole.telemetry import events
from ossconsole.training.compute.device import DeviceContext, device_errors
from ossconsole.training.compute.trainer import Trainer
from ossconsole.training.context import BrokenDeviceError
from ossconsole.training.parts import StepReports
from ossconsole.training.rank_process import _failure
from tests.training.conftest import DEADLINE_S, StartRun, finished, only, steps
from tests.training.test_compute import context

SLOW = pytest.mark.slow
FATAL = "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"


def fail_for_good(*_: object, **__: object) -> torch.Tensor:
    raise RuntimeError(FATAL)


def at_call(number: int, original: Callable[..., object], error: Exception) -> Callable[..., object]:
    """`original`, which raises `error` at one call."""
    calls: list[None] = []

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(None)
        if len(calls) == number:
            raise error
        return original(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("name", ["images", *(pytest.param(name, marks=SLOW) for name in ("labels", "free_slots"))])
def test_too_little_memory_leaves_a_checkpoint_and_the_next_run_works(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 38 MB")
    monkeypatch.setattr(DeviceContext, name, at_call(3, getattr(DeviceContext, name), full))
    run = start_run(epochs=2)
    assert run.wait(DEADLINE_S)
    assert run.error is not None
    assert "Out of memory on cpu with batch size 16" in run.error.message
    saved = [event.step for event in run.drain() if isinstance(event, events.Checkpoint)]
    assert saved == [2]
    again = finished(start_run(epochs=2, max_steps=4, resume="latest"))
    assert [step.step for step in steps(again)] == [3, 4]


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (StepReports, "flush"),
        pytest.param(Trainer, "step", marks=SLOW),
        pytest.param(DeviceContext, "free_slots", marks=SLOW),
    ],
)
def test_a_gpu_that_fails_permanently_ends_the_run_with_its_error(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch, holder: type, name: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(holder, name, fail_for_good)
        patched.setattr(Trainer, "state", fail_for_good)  # as everything that reads from the GPU
        run = start_run()
        assert run.wait(DEADLINE_S)
    assert run.error is not None
    assert run.error.message == "cpu failed: CUDA error: an illegal memory access was encountered."
    assert "Restart ossconsole" in run.error.remedy
    assert not only(run.drain(), events.Checkpoint)
    finished(start_run())


def test_an_accelerator_error_is_fatal_whatever_it_says() -> None:
    kind = getattr(torch, "AcceleratorError", None)
    if kind is None:
        pytest.skip("this torch has none")
    with pytest.raises(BrokenDeviceError) as raised, device_errors(torch.device("cpu"), 8):
        raise kind("the device is gone")
    assert _failure(raised.value).broken_gpu, "the launcher then says what to do after a rank, not after a console"


def test_slots_are_given_back_although_the_gpu_failed(caplog: pytest.LogCaptureFixture) -> None:
    class Copy:
        def synchronize(self) -> None:
            raise RuntimeError(FATAL)

    compute = context()
    compute._copies = [Copy(), Copy()]  # type: ignore[list-item]
    compute.free_all_slots()
    assert "The copies to cpu did not end" in caplog.text
