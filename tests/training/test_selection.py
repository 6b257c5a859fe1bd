"""Which GPU a process trains on, and when it trains on none, with made-up GPUs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.telemetry.gpu import Driver, emptiest, visible_gpus
from ossconsole.telemetry.samples import GpuSample
from ossconsole.training.compute import selection
from ossconsole.training.compute.selection import gpu_uuid, refuse_shared_gpus, select_device
from ossconsole.training.distributed import launch
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.settings import TrainSettings

GB = 10**9
CPU = torch.device("cpu")

Machine = Callable[..., None]


def gpu(index: int, used: float = 0.0, own: float = 0.0) -> GpuSample:
    return GpuSample(
        index=index, uuid=f"GPU-{index}abc", memory_used=int(used * GB), own_memory_used=int(own * GB) or None
    )


def instance(index: int, slot: int) -> GpuSample:
    return GpuSample(index=index, mig=slot, uuid=f"MIG-{index}{slot}")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with these GPUs by NVML; torch sees those at the positions `seen`, in that order."""

    def make(*gpus: GpuSample, seen: tuple[int, ...] | None = None) -> None:
        order = range(len(gpus)) if seen is None else seen
        uuids = [str(gpus[at].uuid).removeprefix("GPU-") for at in order]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(uuids))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))
        for module in (selection, launch):
            monkeypatch.setattr(module, "read_gpus", lambda: gpus)
        monkeypatch.setattr(selection, "read_driver", lambda: Driver("550.54", (12, 4)) if gpus else None)

    return make


def test_auto_takes_the_emptiest_gpu_of_a_shared_machine(machine: Machine) -> None:
    machine(gpu(0, used=20), gpu(1, used=0.4), gpu(2, used=0))
    assert select_device() == torch.device("cuda", 1), "an idle context makes no difference"
    machine(gpu(0, used=20), gpu(1, used=3), gpu(2, used=30, own=29))
    assert select_device() == torch.device("cuda", 2), "its memory is this console's"


def test_cuda_may_order_gpus_in_another_way_than_nvml(machine: Machine) -> None:
    machine(gpu(0), gpu(1, used=20), gpu(2, used=20), seen=(2, 1, 0))
    assert select_device() == torch.device("cuda", 2)


@pytest.mark.parametrize(("named", "index"), [("1", 1), ("GPU-2abc", 2), ("GPU-2", 2)])
def test_a_gpu_is_named_by_index_or_uuid(machine: Machine, named: str, index: int) -> None:
    machine(gpu(0), gpu(1), gpu(2))
    assert select_device(TrainSettings(gpu=named)) == torch.device("cuda", index)


@pytest.mark.parametrize("named", ["3", "GPU-9", "GPU-", "fast"])
def test_a_gpu_that_does_not_exist_is_refused_with_those_that_do(machine: Machine, named: str) -> None:
    machine(gpu(0), gpu(1))
    with pytest.raises(SettingsError, match=f"GPU {named} is not available") as error:
        select_device(TrainSettings(gpu=named))
    assert "0 (GPU-0abc), 1 (GPU-1abc)" in error.value.remedy


def test_each_rank_has_the_gpu_that_its_starter_selected(machine: Machine) -> None:
    machine(gpu(0), gpu(1, used=20), gpu(2))
    ranks = launch.local_ranks(TrainSettings(processes=2))
    assert [rank.gpu for rank in ranks] == ["GPU-0abc", "GPU-2abc"]
    assert select_device(rank_info=ranks[1]) == torch.device("cuda", 2)
    assert [rank.gpu for rank in launch.local_ranks(TrainSettings(processes=0))] == ["GPU-0abc", "GPU-1abc", "GPU-2abc"]
    with pytest.raises(ConsoleError, match="4 processes need a GPU each, and 3 GPUs can be used"):
        launch.local_ranks(TrainSettings(processes=4))
    assert [rank.gpu for rank in launch.local_ranks(TrainSettings(processes=2, device="cpu"))] == ["", ""]


def test_ranks_on_a_machine_without_gpus_use_the_cpu(machine: Machine) -> None:
    machine()
    assert [(rank.rank, rank.world, rank.gpu) for rank in launch.local_ranks(TrainSettings(processes=0))] == [
        (0, 1, "")
    ]
    assert select_device(rank_info=launch.local_ranks(TrainSettings(processes=2))[1]) == CPU


def test_torchrun_gives_each_rank_the_gpu_of_its_number(machine: Machine) -> None:
    machine(gpu(0, used=20), gpu(1))
    assert select_device(rank_info=RankInfo(0, 2, 0, 2)) == torch.device("cuda", 0)
    assert select_device(rank_info=RankInfo(1, 2, 1, 2)) == torch.device("cuda", 1)
    with pytest.raises(ConsoleError, match="Process 3 of the run needs a GPU of its own, and only 2 are available"):
        select_device(rank_info=RankInfo(2, 3, 2, 3))


def test_ranks_that_see_one_gpu_each_use_it_unless_it_is_the_same_one(machine: Machine) -> None:
    machine(gpu(0), gpu(1), seen=(1,))
    assert select_device(rank_info=RankInfo(1, 2, 1, 2)) == torch.device("cuda", 0)
    refuse_shared_gpus([("a", "GPU-0"), ("a", "GPU-1"), ("b", "GPU-2")])
    with pytest.raises(ConsoleError, match="Ranks 0 and 2 have the same GPU: GPU-0 of a"):
        refuse_shared_gpus([("a", "GPU-0"), ("a", "GPU-1"), ("a", "GPU-0")])


def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_cpu_silently(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    machine(gpu(0), seen=())
    with pytest.raises(ConsoleError, match=r"Training cannot use the GPU .* CUDA 13.0, but driver 550.54") as error:
        select_device()
    assert "install a torch built for it" in error.value.remedy
    assert "--device cpu" in error.value.remedy
    assert select_device(TrainSettings(device="cpu")) == CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user hid it
    assert select_device() == CPU


def test_a_gpu_can_be_insisted_on(machine: Machine) -> None:
    machine()
    assert select_device() == CPU
    for settings, option in ((TrainSettings(device="cuda"), "--device cuda"), (TrainSettings(gpu="0"), "--gpu")):
        with pytest.raises(SettingsError, match=f"{option} needs a GPU"):
            select_device(settings)


def test_a_mig_instance_is_named_by_its_own_uuid(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(gpu(0))
    assert gpu_uuid(0) == "GPU-0abc"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-01")
    assert gpu_uuid(0) == "MIG-01", "NVML may list nothing"
    machine(instance(0, 0), instance(0, 1), seen=(0,))
    assert gpu_uuid(0) == "MIG-00", "without the variable CUDA uses the first instance"
    assert select_device(TrainSettings(gpu="MIG-00")) == torch.device("cuda", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-01")
    assert gpu_uuid(0) == "MIG-01"


@pytest.mark.parametrize(
    ("listed", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("GPU-1", [1]),
        ("GPU-2abc, 1", [2, 1]),
        ("1,7,2", [1]),
        ("GPU-", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(listed: str | None, indices: list[int]) -> None:
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert [found.index for found in visible_gpus([gpu(0), gpu(1), gpu(2)], environ)] == indices


def test_one_mig_instance_is_visible_at_a_time() -> None:
    instances = [instance(0, 0), instance(0, 1)]
    assert visible_gpus(instances, {}) == (instances[0],)
    assert visible_gpus(instances, {"CUDA_VISIBLE_DEVICES": "MIG-01"}) == (instances[1],)


def test_the_emptiest_gpus_keep_their_order() -> None:
    assert [found.index for found in emptiest([gpu(0, 9), gpu(1, 30), gpu(2, 2), gpu(3, 2)], 3)] == [0, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "'tpu' is not a valid value of device"),
        ({"gpu": "1", "processes": 2}, "--gpu selects the GPU of one process"),
        ({"gpu": "1", "device": "cpu"}, "--gpu has no effect"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings(**settings)  # type: ignore[arg-type]
