"""The ceiling of a run's model: the rate that a saved benchmark of the same setup measured on synthetic data."""

from __future__ import annotations

import torch

from ossconsole.config.files import state_dir
from ossconsole.config.text import counted
from ossconsole.telemetry.events import ModelCeiling
from ossconsole.telemetry.host import processor_name
from ossconsole.training.bench.results import BenchSummary, LimitKind, ModelSetup
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.settings import NOTHING, TrainSettings


def setup_of(settings: TrainSettings, compute: DeviceContext, image_size: int) -> ModelSetup:
    """The setup of a process that trains; the batch size must be known."""
    threads = counted(torch.get_num_threads(), "thread")
    device = torch.cuda.get_device_name(compute.device) if compute.cuda else f"{processor_name()}, {threads}"
    return ModelSetup(
        model=settings.model,
        image_size=image_size,
        batch_size=settings.batch_size,
        precision=compute.precision,
        compile=settings.compile,
        device=device,
    )


def saved_ceiling(
    settings: TrainSettings, compute: DeviceContext, image_size: int, rank_info: RankInfo
) -> ModelCeiling | None:
    """On rank 0, the ceiling of all ranks by the newest saved benchmark of this setup; None without one.

    A frozen backbone takes less time than any benchmark measures.
    """
    if not rank_info.is_rank_zero or settings.freeze != NOTHING or not any((state_dir() / "benches").glob("*.json")):
        return None
    from ossconsole.training.bench.saved import saved_benches  # late: most runs have no saved benchmark

    setup = setup_of(settings, compute, image_size)
    for bench in saved_benches():
        summary = bench.summary
        if isinstance(summary, BenchSummary) and summary.model == setup:
            limit = summary.limits.get(str(LimitKind.COMPUTE))
            if limit is not None:
                return ModelCeiling(bench=bench.name, samples_per_s=limit.median * rank_info.world)
    return None
