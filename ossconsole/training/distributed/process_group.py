"""The process group of a run: collectives over its ranks, and the events of other ranks on their way to the record."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.rank import Place

T = TypeVar("T")

PATIENCE_S = 600.0
"""How long a process waits for the others beyond what they may wait for their data: compiling takes minutes."""

_STOP_KEY = "ossconsole-stop"


class RankLostError(ConsoleError):
    """Another process of the run is gone: nothing that needs all of them can be done any more."""


class Ranks:
    """This process's connection to the others; alone, every method answers at once.

    Gradients go through NCCL between GPUs. What the processes tell each other goes through gloo, so that a process that
    died is noticed although kernels on the GPU wait for it. Raises RankLostError.
    """

    def __init__(self, place: Place, device: torch.device, *, patience_s: float = 0.0) -> None:
        """Waits for the others. `patience_s` is how long one of them may wait for its data."""
        self.place = place
        self._device = device
        self._talk: Any = None
        self._closing = threading.Lock()
        if place.world == 1:
            return
        with _lost_ranks(place):
            found = rendezvous(place.rendezvous, place.rank, place.world, timeout=timedelta(seconds=PATIENCE_S))
            shared, rank, world = next(found)
            # torchrun may keep its store over a restart: what earlier processes left in it must not be met.
            self._store = PrefixStore(f"ossconsole-{place.attempt}", shared)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("group", self._store),
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=PATIENCE_S),
            )
            self._talk = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_S + patience_s))

    @property
    def world(self) -> int:
        return self.place.world

    def gather(self, numbers: Sequence[float]) -> list[Sequence[float]]:
        """The numbers of every process, as many from each, in the order of the ranks; each gets the same answer."""
        if self.world == 1:
            return [numbers]
        mine = torch.tensor(numbers, dtype=torch.float64)
        all_of_them = [torch.empty_like(mine) for _ in range(self.world)]
        with _lost_ranks(self.place):
            dist.all_gather(all_of_them, mine, group=self._talk)
        return [each.tolist() for each in all_of_them]

    def share(self, thing: T) -> list[T]:
        """`thing` of every process, in the order of the ranks. They are pickled: for plain values only."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        with _lost_ranks(self.place):
            dist.all_gather_object(things, thing, group=self._talk)
        return things

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the device of `tensor`."""
        if self.world > 1:
            with _lost_ranks(self.place):
                dist.all_reduce(tensor)
        return tensor

    def spread(self, tensor: torch.Tensor) -> None:
        """Makes the tensor of every process that of the one that leads."""
        if self.world > 1:
            with _lost_ranks(self.place):
                dist.broadcast(tensor, src=0)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Around what torch itself has the processes do together, such as averaging gradients."""
        return contextlib.nullcontext() if self.world == 1 else _lost_ranks(self.place)

    def tell_to_stop(self) -> None:
        """Reaches also a process that waits for its data. Does nothing, and waits for nothing, while the run ends."""
        if self._closing.acquire(blocking=False):
            try:
                if self._talk is not None:
                    self._store.set(_STOP_KEY, "1")
            finally:
                self._closing.release()

    def told_to_stop(self) -> bool:
        return self.world > 1 and bool(self._store.check([_STOP_KEY]))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the others: a process group that outlived its run would stand in the way of the next one."""
        with self._closing:
            if self._talk is None:
                return
            self._talk = None
            if error is not None and self._device.type == "cuda":
                _abort(self._device)
            dist.destroy_process_group()


def _abort(device: torch.device) -> None:
    """Ends what goes on between the GPUs: an orderly end waits for it, without end where others take no part any more.

    torch 2.5 has no such call; its watchdog ends the process after PATIENCE_S.
    """
    abort = getattr(dist.distributed_c10d._get_default_group()._get_backend(device), "abort", None)  # noqa: SLF001
    if abort is not None:
        abort()


@contextlib.contextmanager
def _lost_ranks(place: Place) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # what torch.distributed raises; its own errors are RuntimeErrors
        raise RankLostError(
            f"This process ({place}) lost another one of the run: {_reason(error)}.",
            remedy="The log of the one that ended tells more; go on from the last checkpoint with --resume.",
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of what torch says, without the place in its source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[\S+\]\s+", "", lines[0]).split(". ")[0].rstrip(".")


class News:
    """Warnings and errors of this process, until the one that leads has heard them; its own it tells at once."""

    def __init__(self, context: RunContext, place: Place) -> None:
        self._context = context
        self._kept: list[Event] = []
        if not place.leads:
            context.hand_on = self._keep

    def __len__(self) -> int:
        return len(self._kept)

    def exchange(self, ranks: Ranks) -> None:
        """Call in all processes: what they have kept goes on the record."""
        kept, self._kept = self._kept, []
        heard = ranks.share([events.encode(event) for event in kept])
        if not ranks.place.leads:
            return
        for rank, lines in enumerate(heard):
            for event in map(events.decode, lines):
                if isinstance(event, events.WarningEvent | events.ErrorEvent):
                    self._context.warn(f"Rank {rank}: {event.message}", event.remedy)

    def _keep(self, event: Event) -> None:
        if isinstance(event, events.WarningEvent | events.ErrorEvent):
            self._kept.append(event)
