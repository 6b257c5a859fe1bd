"""The end of a process group: in which order, within which limit, and which errors mean that a rank is lost."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ossconsole.config.errors import ConsoleError
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.compute.trainer import Trainer
from ossconsole.training.distributed import process_group
from ossconsole.training.distributed.process_group import ProcessGroup, end_group
from ossconsole.training.distributed.ranks import RankInfo, RankLostError
from ossconsole.training.loading.failover import FailoverLoader
from tests.training.conftest import DEADLINE_S, StartRun

GPU = torch.device("cuda", 0)


def group_of_two(device: torch.device = GPU) -> ProcessGroup:
    """A group as after the rendezvous, of which nothing but its end is used."""
    group = ProcessGroup(RankInfo(), device)
    group.rank_info = RankInfo(0, 2, 0, 2)
    group._control_group = object()
    return group


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL communicator was aborted on rank 0"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
        dist.DistStoreError("wait timeout after 600000ms"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
        RuntimeError("Application timeout caused pair closure"),
    ],
)
def test_a_lost_rank_is_recognised(error: RuntimeError) -> None:
    with pytest.raises(RankLostError, match="rank 0 of 2") as found, group_of_two().translate_errors():
        raise error
    assert ".cc" not in found.value.message  # a place in torch's source helps nobody


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (16x512 and 64x10)"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_other_errors_of_a_step_keep_their_own_words(error: RuntimeError) -> None:
    with pytest.raises(type(error)) as found, group_of_two().translate_errors():
        raise error
    assert found.value is error


class _Calls(list[str]):
    """Stands for torch's backend; notes what is called, in its order."""

    def add(self, name: str) -> Any:
        return lambda *_, **__: self.append(name)


@pytest.mark.parametrize(("abort", "expected"), [(True, ["abort", "destroy"]), (False, ["synchronize", "destroy"])])
def test_pending_work_is_aborted_or_done_before_the_group_is_destroyed(
    monkeypatch: pytest.MonkeyPatch, abort: bool, expected: list[str]
) -> None:
    calls = _Calls()
    backend = type("Backend", (), {"abort": calls.add("abort")})()
    group = type("Group", (), {"_get_backend": lambda _self, _device: backend})()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_group", lambda: group)
    monkeypatch.setattr(torch.cuda, "synchronize", calls.add("synchronize"))
    monkeypatch.setattr(dist, "destroy_process_group", calls.add("destroy"))
    end_group(GPU, abort=abort)
    assert calls == expected


@pytest.mark.parametrize(
    ("error", "agreed", "aborts"),
    [(None, False, False), (RankLostError("gone"), False, True), (ConsoleError("no memory"), True, False)],
)
def test_only_an_error_that_the_others_do_not_know_aborts(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, agreed: bool, aborts: bool
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(process_group, "end_group", lambda _device, *, abort: seen.append(abort))
    group = group_of_two()
    if agreed:
        group.agree_on_failure()
    for _ in range(2):
        group.__exit__(type(error) if error else None, error, None)
    assert seen == [aborts]


def test_an_abort_that_hangs_is_given_up_and_holds_up_no_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release, hanging = threading.Event(), threading.Event()

    def hang(_device: torch.device, *, abort: bool) -> None:
        assert abort
        hanging.set()
        release.wait(DEADLINE_S)

    monkeypatch.setattr(process_group, "end_group", hang)
    monkeypatch.setattr(process_group, "_END_LIMIT_S", 0.5)
    group = group_of_two()
    lost = RankLostError("gone")
    ending = threading.Thread(target=group.__exit__, args=(RankLostError, lost, None))
    ending.start()
    try:
        assert hanging.wait(DEADLINE_S)
        begun = time.monotonic()
        group.signal_stop()  # in the UI's thread
        assert time.monotonic() - begun < 0.5 or not ending.is_alive()
        ending.join(DEADLINE_S)
        assert not ending.is_alive()
        assert "did not end within" in caplog.text
    finally:
        release.set()


def test_the_group_ends_before_anything_of_cuda_is_freed(start_run: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    order = _Calls()

    def noted(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def call(*args: Any) -> Any:
            order.append(f"{kind.__name__}.{name}")
            return original(*args)

        monkeypatch.setattr(kind, name, call)

    def fail(*_: object, **__: object) -> None:
        raise ConsoleError("a step fails")

    monkeypatch.setattr(Trainer, "step", fail)
    noted(ProcessGroup, "__exit__")
    noted(DeviceContext, "free_all_slots")
    noted(FailoverLoader, "close")
    run = start_run()
    assert run.wait(DEADLINE_S)
    assert order[:3] == ["ProcessGroup.__exit__", "DeviceContext.free_all_slots", "FailoverLoader.close"]
