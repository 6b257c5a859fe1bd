"""The ranks of a `torchrun` job that watch their loops together: their waits, and one end for all."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from ossconsole.config.errors import ConsoleError

log = logging.getLogger(__name__)

_PATIENCE = timedelta(days=7)
"""How long ranks wait for one that is paused; a rank that ended closes its connections, which ends the wait."""

_LATE = timedelta(seconds=30)
"""After this time, ranks that do not watch their loop are named."""

_exchanges = itertools.count()


class RankTimes(NamedTuple):
    """A rank's last step: its wait for a batch and the step's duration, seconds."""

    wait_s: float
    step_s: float


def process_group() -> Any:
    """`torch.distributed` where its process group is initialised with several ranks, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed if torch.distributed.get_world_size() > 1 else None


def this_rank() -> int:
    """The rank of this process: that of torch.distributed, before its start that of torchrun, else 0."""
    distributed = process_group()
    return int(os.environ.get("RANK", "0")) if distributed is None else int(distributed.get_rank())


def world_size() -> int:
    """The number of ranks, as `this_rank`."""
    distributed = process_group()
    return int(os.environ.get("WORLD_SIZE", "1")) if distributed is None else int(distributed.get_world_size())


class RankExchange:
    """Exchanges each step's figures between the ranks, while the next batch is read; a collective on all ranks.

    It has a gloo group of its own: NCCL would need the GPU, and its order would mix with that of the training. Every
    rank must watch its loop, and do as many steps as the others, as DistributedDataParallel requires too.
    """

    def __init__(self, distributed: Any) -> None:
        self._torch = sys.modules["torch"]
        self._distributed = distributed
        default_store = getattr(distributed.distributed_c10d, "_get_default_store", None)  # not public
        if default_store is not None:
            store = distributed.PrefixStore(f"ossconsole/watch/{next(_exchanges)}", default_store())
            log_absent_ranks(store, distributed.get_rank(), distributed.get_world_size(), _LATE)
        self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        self._work: Any = None
        self._received: Any = None

    def post(self, times: RankTimes, *, stop: bool) -> None:
        """Sends this rank's figures of a step, and whether it is to be the last one."""
        sent = self._torch.tensor([*times, float(stop)], dtype=self._torch.float64)
        self._received = [self._torch.empty_like(sent) for _ in range(self._distributed.get_world_size())]
        self._work = self._distributed.all_gather(self._received, sent, group=self._group, async_op=True)

    def take(self) -> tuple[Sequence[RankTimes], bool]:
        """The figures of all ranks for the step posted last, and whether any of them stops; empty before the first.

        Raises ConsoleError where another rank has ended.
        """
        if self._work is None:
            return (), False
        work, self._work = self._work, None
        try:
            work.wait()
        except RuntimeError as error:  # the text of gloo names neither the rank nor the reason
            raise ConsoleError(
                "Another rank of this job has ended, or has made fewer steps than this one.",
                remedy="The output of that rank says why: look for the first failure of the job.",
            ) from error
        rows = [row.tolist() for row in self._received]
        return [RankTimes(wait_s, step_s) for wait_s, step_s, _ in rows], any(stop for *_, stop in rows)


def log_absent_ranks(store: Any, rank: int, world: int, patience: timedelta) -> None:
    """Waits until all ranks have come here; logs which ones have not after `patience`.

    The other ranks wait for a rank that does not watch its loop. A rank may also only be late.
    """
    keys = [str(each) for each in range(world)]
    store.set(keys[rank], "here")
    try:
        store.wait(keys, patience)
    except RuntimeError:
        absent = [key for key in keys if not store.check([key])]
        ranks = f"rank {absent[0]}" if len(absent) == 1 else f"ranks {', '.join(absent)}"
        if absent:
            log.warning(
                "Rank %d waits for %s to iterate over a watched loader. Call ossconsole.watch on every rank.",
                rank,
                ranks,
            )
