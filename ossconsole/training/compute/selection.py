"""Which device a process trains on: the settings, the ranks beside it, what CUDA leaves visible, what is empty."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.telemetry.gpu import cuda_problem, emptiest, read_driver, read_gpus, visible_gpus
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.settings import AUTO, TrainSettings

_DEFAULTS = TrainSettings()
_ALONE = RankInfo()


def select_device(settings: TrainSettings = _DEFAULTS, rank_info: RankInfo = _ALONE) -> torch.device:
    """The GPU of this process, or the CPU on a machine without a GPU and with `--device cpu`.

    Raises ConsoleError where the GPU does not exist, where there are fewer than processes, and where torch cannot use
    the GPU of this machine: training on the CPU would take days.
    """
    if settings.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        _refuse_unusable_gpu(settings)
        return torch.device("cpu")
    uuids = [gpu_uuid(index) for index in range(torch.cuda.device_count())]
    if rank_info.world > 1 and not rank_info.gpu:
        return torch.device("cuda", _index_of_rank(rank_info, len(uuids)))
    return torch.device("cuda", _index_of(rank_info.gpu or settings.gpu, uuids))


def gpu_uuid(index: int) -> str:
    """The UUID of a GPU or MIG instance in NVML's form; `index` is torch's."""
    first = next(iter(visible_gpus(read_gpus())), None)
    if first is not None and first.mig is not None:  # CUDA uses one instance, and may name its whole GPU
        return str(first.uuid)
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return listed[0] if listed[0].startswith("MIG-") else f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def refuse_shared_gpus(gpus: Sequence[tuple[str, str]]) -> None:
    """Raises ConsoleError where two ranks have the same GPU. `gpus` are host and UUID in rank order."""
    for rank, gpu in enumerate(gpus):
        first = gpus.index(gpu)
        if first != rank:
            raise ConsoleError(
                f"Ranks {first} and {rank} have the same GPU: {gpu[1]} of {gpu[0]}.",
                remedy="Give each process a GPU of its own, such as with `srun --gpus-per-task=1`.",
            )


def _index_of_rank(rank_info: RankInfo, count: int) -> int:
    """torchrun gives rank i GPU i. Some launchers let each process see its own GPU only; see `refuse_shared_gpus`."""
    if rank_info.local_rank >= count > 1:
        raise ConsoleError(
            f"Process {rank_info.local_rank + 1} of the run needs a GPU of its own, and only {count} are available.",
            remedy="Use --processes 0, or `torchrun --nproc-per-node=gpu`: both start one process per GPU.",
        )
    return rank_info.local_rank if count > 1 else 0


def _index_of(wanted: str, uuids: Sequence[str]) -> int:
    """The index among torch's GPUs of the one that `--gpu` names; with "auto" the emptiest."""
    if wanted == AUTO:
        by_uuid = {gpu.uuid: gpu for gpu in read_gpus()} if len(uuids) > 1 else {}
        known = [by_uuid[uuid] for uuid in uuids if uuid in by_uuid]
        return uuids.index(str(emptiest(known)[0].uuid)) if len(known) == len(uuids) else 0
    if wanted.isdigit():
        if int(wanted) < len(uuids):
            return int(wanted)
    else:
        matching = [index for index, uuid in enumerate(uuids) if uuid.startswith(wanted)]
        if len(matching) == 1:
            return matching[0]
    listed = ", ".join(f"{index} ({uuid})" for index, uuid in enumerate(uuids))
    raise SettingsError(f"GPU {wanted} is not available to this process.", remedy=f"Available: {listed}.")


def _refuse_unusable_gpu(settings: TrainSettings) -> None:
    hidden = visible_gpus(read_gpus())
    driver = read_driver()
    if driver is not None and hidden:
        problem, remedy = cuda_problem(torch.version.cuda or "", driver)
        raise ConsoleError(
            f"Training cannot use the GPU of this machine: {problem}",
            remedy=f"{remedy} To train on the CPU nevertheless, give --device cpu.",
        )
    if settings.device == "cuda" or settings.gpu != AUTO:
        option = "--gpu" if settings.gpu != AUTO else "--device cuda"
        raise SettingsError(f"{option} needs a GPU, and this process can use none.", remedy="Omit it.")
