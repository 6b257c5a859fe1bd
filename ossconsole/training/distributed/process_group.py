"""The process group of a run: collectives over its ranks, and the relay of other ranks' events to the record."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ossconsole.config.errors import SettingsError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.ranks import RankInfo, RankLostError

T = TypeVar("T")

log = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""How long a rank waits for the others, beyond what they may wait for their data: compiling takes minutes."""

_STOP_KEY = "ossconsole-stop"
_TORCHRUN_REMEDY = "Start with `torchrun --nproc-per-node=gpu -m ossconsole train …`."


_END_LIMIT_S = 20.0
"""How long ending the group may take. Aborting NCCL hangs where another rank neither ends nor aborts."""

_LOST_ERRORS = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
_LOST_TEXTS = ("/gloo/", "gloo::", "Connection closed by peer", "Connection reset by peer", "pair closure")
"""Texts of the RuntimeErrors of gloo, which has no class of its own."""


class ProcessGroup:
    """The collectives of a run; with a world of one, every method returns immediately.

    Gradients go through NCCL between GPUs. Control messages go through gloo, which notices a dead process although
    kernels on the GPU wait for it. Raises RankLostError.
    """

    def __init__(self, rank_info: RankInfo, device: torch.device, *, patience_s: float = 0.0) -> None:
        """Waits for the other ranks. `patience_s` is how long a rank may wait for its data."""
        self.rank_info = rank_info
        self._device = device
        self._control_group: Any = None
        self._closing = threading.Lock()
        self._agreed = False
        if rank_info.world == 1:
            return
        timeout = timedelta(seconds=PATIENCE_S)
        with self.translate_errors():
            try:
                shared, rank, world = next(
                    rendezvous(rank_info.rendezvous, rank_info.rank, rank_info.world, timeout=timeout)
                )
            except ValueError as error:  # such as MASTER_ADDR missing
                raise SettingsError(f"{rank_info} cannot find the others: {error}", remedy=_TORCHRUN_REMEDY) from error
            # torchrun may keep its store over a restart: the prefix hides the keys of earlier processes.
            self._store = PrefixStore(f"ossconsole-{rank_info.attempt}", shared)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("group", self._store),
                rank=rank,
                world_size=world,
                timeout=timeout,
            )
            self._control_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_S + patience_s))

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.rank_info.world

    def all_gather(self, numbers: Sequence[float]) -> list[Sequence[float]]:
        """The numbers of every rank, in rank order; all ranks pass the same count."""
        return self.start_all_gather(numbers)()

    def start_all_gather(self, numbers: Sequence[float]) -> Callable[[], list[Sequence[float]]]:
        """Starts an `all_gather`; the function that is returned waits for its result."""
        if self.world == 1:
            return lambda: [numbers]
        own = torch.tensor(numbers, dtype=torch.float64)
        gathered = [torch.empty_like(own) for _ in range(self.world)]
        with self.translate_errors():
            work = dist.all_gather(gathered, own, group=self._control_group, async_op=True)

        def result() -> list[Sequence[float]]:
            with self.translate_errors():
                work.wait()
            return [each.tolist() for each in gathered]

        return result

    def all_gather_object(self, value: T) -> list[T]:
        """`value` of every rank, in rank order. Values are pickled: plain values only."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self.translate_errors():
            dist.all_gather_object(values, value, group=self._control_group)
        return values

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums `tensor` over all ranks, in place, and returns it. Raises RankLostError."""
        if self.world > 1:
            with self.translate_errors():
                dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copies the tensor of rank 0 into that of every rank."""
        if self.world > 1:
            with self.translate_errors():
                dist.broadcast(tensor, src=0)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raises RankLostError for errors of torch.distributed, also of collectives that DDP starts itself."""
        if self.world == 1:
            yield
            return
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, _LOST_ERRORS) and not any(text in str(error) for text in _LOST_TEXTS):
                raise
            raise RankLostError(
                f"This process ({self.rank_info}) lost another rank of the run: {_first_sentence(error)}.",
                remedy="The log of the rank that exited has the reason; resume from the last checkpoint with --resume.",
            ) from error

    def agree_on_failure(self) -> None:
        """All ranks end now, because of the error of one: no rank is lost, and pending work is completed."""
        self._agreed = True

    def signal_stop(self) -> None:
        """Reaches also a rank that waits for its data. Does nothing, and waits for nothing, while the run ends."""
        if self._closing.acquire(blocking=False):
            try:
                if self._control_group is not None:
                    self._store.set(_STOP_KEY, "1")
            finally:
                self._closing.release()

    def stop_signalled(self) -> bool:
        """Whether a rank called `signal_stop`."""
        return self.world > 1 and bool(self._store.check([_STOP_KEY]))

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the group: one that outlived its run would block the next one. A second call does nothing.

        After an error of this rank alone, or with a rank that is lost, NCCL's pending work is aborted. Call it before
        anything of CUDA is freed then: that waits for the GPU, and the GPU may wait for the lost rank.
        """
        with self._closing:
            if self._control_group is None:
                return
            self._control_group = None
            abort = error is not None and not self._agreed and self._device.type == "cuda"
            ending = threading.Thread(
                target=end_group, args=(self._device,), kwargs={"abort": abort}, name="end-group", daemon=True
            )
            ending.start()
            ending.join(_END_LIMIT_S)
            if ending.is_alive():
                log.error("The process group of %s did not end within %g s", self.rank_info, _END_LIMIT_S)


def end_group(device: torch.device, *, abort: bool) -> None:
    """Destroys the group, with its pending work aborted or done: an orderly end waits for all ranks.

    torch 2.5 has no `abort`; its watchdog ends the process after PATIENCE_S.
    """
    if device.type == "cuda":
        backend = dist.distributed_c10d._get_default_group()._get_backend(device)  # noqa: SLF001
        if not abort:
            torch.cuda.synchronize(device)
        elif hasattr(backend, "abort"):
            backend.abort()
    dist.destroy_process_group()


def _first_sentence(error: Exception) -> str:
    """The first sentence of torch's message, without its source location."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[\S+\]\s+", "", lines[0]).split(". ")[0].rstrip(".")


class RankEventRelay:
    """Collects the warnings and errors of this rank until rank 0 records them; rank 0 records its own directly."""

    def __init__(self, context: RunContext, rank_info: RankInfo) -> None:
        self._context = context
        self._pending: list[Event] = []
        if not rank_info.is_rank_zero:
            context.sink = self._collect

    def __len__(self) -> int:
        return len(self._pending)

    def exchange(self, group: ProcessGroup) -> None:
        """Records the pending events of all ranks. A collective: call it in all ranks."""
        pending, self._pending = self._pending, []
        gathered = group.all_gather_object([events.encode(event) for event in pending])
        if not group.rank_info.is_rank_zero:
            return
        for rank, lines in enumerate(gathered):
            for event in map(events.decode, lines):
                if isinstance(event, events.WarningEvent | events.ErrorEvent):
                    self._context.warn(f"Rank {rank}: {event.message}", event.remedy)

    def _collect(self, event: Event) -> None:
        if isinstance(event, events.WarningEvent | events.ErrorEvent):
            self._pending.append(event)
