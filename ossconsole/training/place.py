"""Where a process stands among those that train one model together. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ossconsole.config.errors import SettingsError


@dataclass(frozen=True)
class Place:
    """`rank` of `world` processes, `local_rank` of `local_world` on this machine; the one with rank 0 leads.

    `rendezvous` is the URL at which they meet, as `torch.distributed.init_process_group` takes it. `attempt` counts how
    often torchrun started them anew after one had died.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    rendezvous: str = "env://"
    attempt: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process has the record, the checkpoints and the controls of the run."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"


def torchrun_place(environ: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun gave this process; alone where it was not started by it.

    Raises SettingsError when its variables are incomplete.
    """
    if "WORLD_SIZE" not in environ:
        return Place()
    try:
        return Place(
            rank=int(environ["RANK"]),
            world=int(environ["WORLD_SIZE"]),
            local_rank=int(environ["LOCAL_RANK"]),
            local_world=int(environ["LOCAL_WORLD_SIZE"]),
            attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
    except (KeyError, ValueError) as error:
        raise SettingsError(
            f"WORLD_SIZE is set, but the rest of torchrun's variables is not right: {error}.",
            remedy="Start with `torchrun --nproc-per-node=gpu -m ossconsole train …`, or unset WORLD_SIZE.",
        ) from error
