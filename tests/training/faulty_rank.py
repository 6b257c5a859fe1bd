"""`python -m tests.training.faulty_rank`: the process of a rank that dies, fails or hangs at a given moment.

The variable names it: the rank, the moment, the how-manieth time it comes, and what happens then.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from ossconsole.training import rank, rank_process
from ossconsole.training.checkpoints.checkpoint import Snapshot
from ossconsole.training.checkpoints.store import CheckpointStore
from ossconsole.training.compute.trainer import Trainer
from ossconsole.training.distributed import launch, process_group
from ossconsole.training.loading.failover import FailoverLoader
from ossconsole.training.parts import Checkpointer, EpochState
from ossconsole.training.session import Session

VARIABLE = "TEST_RANK_FAULT"

MOMENTS: dict[str, tuple[Any, str]] = {
    "start": (rank.Rank, "train"),
    "rendezvous": (process_group, "rendezvous"),
    "first batch": (FailoverLoader, "next"),
    "forward": (Trainer, "_forward_backward"),
    "backward": (torch.Tensor, "backward"),
    "update": (torch.optim.SGD, "step"),
    "checkpoint": (Checkpointer, "save"),
    "packing": (Snapshot, "pack"),
    "writing": (CheckpointStore, "_write"),
    "validation": (Trainer, "validate"),
    "epoch end": (EpochState, "end_epoch"),
    "stop": (Session, "_finish"),
}
"""The function at whose start each moment is; "backward" and "writing" are in the middle of it."""


def setting(number: int, moment: str, time: int, what: str = "kill") -> str:
    """The value of the variable."""
    return f"{number}:{moment}:{time}:{what}"


def _happen(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "out of memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GB")
    elif what == "fail":
        raise TypeError("a made-up fault")
    else:
        threading.Event().wait()


def _install(moment: str, time: int, what: str) -> None:
    holder, name = MOMENTS[moment]
    original: Callable[..., Any] = getattr(holder, name)
    calls = 0

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != time:
            return original(*args, **kwargs)
        if moment == "backward":
            args[0].register_hook(lambda _gradient: _happen(what))
        elif moment == "writing":
            args = (*args[:-1], lambda _written: _happen(what))
        else:
            _happen(what)
        return original(*args, **kwargs)

    setattr(holder, name, wrapped)


def main() -> int:
    number, moment, time, what = os.environ.get(VARIABLE, "-1:start:1:kill").split(":")
    read_args = launch.read_args

    def read_and_install(source: Any) -> Any:
        args = read_args(source)
        if args.rank_info.rank == int(number):
            _install(moment, int(time), what)
        return args

    setattr(rank_process, "read_args", read_and_install)  # noqa: B010 - not a name that it exports
    return rank_process.main()


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())
