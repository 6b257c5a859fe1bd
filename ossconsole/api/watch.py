"""`ossconsole.watch`: the batches of any loader, measured, recorded, and shown by the console."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import operator
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from ossconsole.api.arguments import checked
from ossconsole.api.ranks import RankExchange, RankTimes, process_group, this_rank, world_size
from ossconsole.api.recorder import StepRecorder, StepTimer, to_host
from ossconsole.api.watched_run import WatchedLoop, WatchedRun
from ossconsole.config.errors import ConsoleError
from ossconsole.training.settings import NotNegative

if TYPE_CHECKING:
    from ossconsole.api.images import OssImages

T = TypeVar("T")

_active: Watch[Any] | None = None
_lock = threading.Lock()
_NOTHING_LOGGED: Mapping[str, Any] = {}


class WatchError(ConsoleError):
    """A loader that cannot be watched in this way, or a figure that is not a number."""


class _Numbers(msgspec.Struct, frozen=True):
    """The numbers that `watch` is given; 0 where they are not."""

    epochs: NotNegative
    batch_size: NotNegative


def watch(
    loader: Iterable[T],
    *,
    epochs: int = 0,
    batch_size: int = 0,
    on_checkpoint: Callable[[], object] | None = None,
) -> Watch[T]:
    """Yields the batches of `loader`, measures the loop around it, and shows it as a run in `ossconsole`.

    Iterate over the result as over the loader, once per epoch. `epochs` and `batch_size` are shown where given; the
    size of a batch is otherwise read from its first tensor. `on_checkpoint` is called between two steps when the
    console requests a checkpoint. A process watches one loader: a second call with the same one returns the same Watch.
    On ranks other than 0 of a `torchrun` job, which call this too, the batches are yielded and not recorded. In a
    notebook another loader replaces the one before.

    Raises WatchError while another loader is watched, ArgumentError for a number below 0, and ConsoleError where the
    run's record cannot be written.
    """
    global _active  # noqa: PLW0603 - a process has one run
    numbers = checked(_Numbers, "ossconsole.watch", {"epochs": epochs, "batch_size": batch_size})
    _check_usable(loader, on_checkpoint)
    with _lock:
        active = _active
        if active is not None and active.is_open:
            if active.loader is loader or active is loader:
                return active
            if _is_interactive():  # the cell was run again: none of its loops can still be running
                active.close()
                active = None
        if active is not None and active.is_open:
            raise WatchError(
                f"This process watches a {active.name} already, and can watch one loader at a time.",
                remedy="Watch the training loader alone, or call close() on the first Watch.",
            )
        _active = Watch(loader, epochs=numbers.epochs, batch_size=numbers.batch_size, on_checkpoint=on_checkpoint)
        return _active


class Watch(Generic[T]):
    """A watched loader, see `watch`. Attributes that it lacks are those of the loader, such as `sampler`."""

    def __init__(
        self, loader: Iterable[T], *, epochs: int, batch_size: int, on_checkpoint: Callable[[], object] | None
    ) -> None:
        self.loader = loader
        self.name = type(loader).__name__
        self._pid = os.getpid()
        self._given_batch_size = batch_size
        self._batch_size = batch_size or _count(loader, "batch_size") or 0
        self._iterating = False
        self._logged: dict[str, Any] = {}
        self._closed = False
        self._stopped = False
        self._loop: weakref.ref[WatchedIterator[T]] | None = None
        self.iterations = 0
        self._ranks: RankExchange | None = None
        self._run = self._open_run(epochs, on_checkpoint) if this_rank() == 0 else None
        self._steps = StepRecorder(self._run, _as_oss_images(loader)) if self._run is not None else None
        self._timer = self._steps.timer if self._steps is not None else StepTimer()
        atexit.register(self._close_at_exit)

    def _open_run(self, epochs: int, on_checkpoint: Callable[[], object] | None) -> WatchedRun:
        images = _as_oss_images(self.loader)
        loop = WatchedLoop(
            loader=self.name,
            workers=_count(self.loader, "num_workers"),
            batch_size=self._batch_size,
            epochs=epochs,
            steps_per_epoch=_length(self.loader) or 0,
            world=world_size(),
            sample_format=images.sample_format if images is not None else "",
            stored_as=images.stored_as if images is not None else "",
        )
        context = images.context if images is not None else None
        return WatchedRun(loop, context=context, on_checkpoint=on_checkpoint)

    @property
    def is_open(self) -> bool:
        """False once it was closed, and in a process that was forked from its own."""
        return not self._closed and os.getpid() == self._pid

    @property
    def stopping(self) -> bool:
        """Whether the console requested the end of the run: iterating ends then, and a loop over epochs should too.

        All ranks of a job see it at the same step.
        """
        return self._stopped

    @property
    def run_id(self) -> str:
        """The id of the run, as `ossconsole status` names it; "" on ranks other than 0."""
        return self._run.id if self._run is not None else ""

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "loader" not in self.__dict__:  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[T]:
        if os.getpid() != self._pid:
            raise WatchError(
                f"This {self.name} is watched by process {self._pid}, from which this one was forked.",
                remedy="Call ossconsole.watch after the fork.",
            )
        if self._closed:
            raise WatchError(f"This watched {self.name} was closed.", remedy="Call ossconsole.watch again.")
        previous = self._loop() if self._loop is not None else None
        if previous is not None:  # some trainers stop at the known length, and keep the iterator
            previous.batches.close()
        distributed = process_group()
        if self._ranks is None and distributed is not None:
            self._ranks = RankExchange(distributed)
        self.iterations += 1
        loop = WatchedIterator(self, self._iterate())
        self._loop = weakref.ref(loop)
        return loop

    def _iterate(self) -> Generator[T, None, None]:
        self._iterating = True
        timer = self._timer
        timer.restart()
        if self._steps is not None:
            self._steps.begin_epoch()
        try:
            begun = time.perf_counter()
            batches = iter(self.loader)
            starting_s = time.perf_counter() - begun  # of worker processes: a part of the wait for the first batch
            while not self._is_to_end():
                requested = time.perf_counter() - starting_s
                starting_s = 0.0
                try:
                    batch = next(batches)
                except StopIteration:
                    break
                timer.arrive(requested)
                try:
                    yield batch
                finally:  # also where the loop breaks: its last step is done then
                    self._finish_step(batch)
        finally:
            self._iterating = False
            if self._steps is not None:
                self._steps.end_epoch()

    def _is_to_end(self) -> bool:
        """Whether all ranks end before the next batch; blocks while the run is paused."""
        if self._run is not None and self._run.has_requests:
            self._run.apply_requests()
            self._stopped = self._stopped or (self._ranks is None and self._run.stopping)
        if self._ranks is not None:
            figures, stops = self._ranks.take()
            if self._steps is not None and figures:
                self._steps.add_ranks(figures)
            self._stopped = self._stopped or stops
        return self._stopped

    def _finish_step(self, batch: T) -> None:
        timing = self._timer.finish()
        if self._ranks is not None:
            stop = self._run is not None and self._run.stopping
            self._ranks.post(RankTimes(timing.host_wait_s, timing.host_step_s), stop=stop)
        if self._steps is not None:
            logged = self._logged or _NOTHING_LOGGED
            if self._logged:
                self._logged = {}
            samples = self._given_batch_size or samples_in(batch) or self._batch_size  # the last batch may be short
            self._steps.add(timing, samples, logged)

    def log(self, **figures: Any) -> None:
        """Records figures: `loss`, `lr`, `top1`, `top5` (fractions of 1), `val_loss`, or any other name as a series.

        Within the loop they belong to the step under way, after it to its epoch. Values are numbers, or tensors of one
        element; within the loop they are copied from a GPU without waiting for it. Raises WatchError for others.
        """
        if self._steps is None:
            return
        values = {name: _figure(name, value, later=self._iterating) for name, value in figures.items()}
        if self._iterating:
            self._logged.update(values)
        else:
            self._steps.log_epoch(values)

    def close(self, error: str = "") -> None:
        """Ends the run; `error` is the reason where it failed. The end of the process closes it too."""
        if not self.is_open:
            return
        self._closed = True
        if self._steps is not None:
            self._steps.close(error)
        atexit.unregister(self._close_at_exit)

    def __enter__(self) -> Watch[T]:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._close_after(error)

    def _close_after(self, error: object) -> None:
        """Closes the run: failed after an exception, stopped after Ctrl-C."""
        if isinstance(error, KeyboardInterrupt) and self._run is not None:
            self._run.stop()
        failed = isinstance(error, BaseException) and not _is_wanted(error)
        self.close(_words(error) if failed else "")

    def _close_at_exit(self) -> None:
        with contextlib.suppress(ConsoleError):
            # Set where the script ended with an exception; in a notebook by any earlier cell.
            self._close_after(None if _is_interactive() else getattr(sys, "last_value", None))


class WatchedIterator(Iterator[T]):
    """One iteration over a watched loader. Its end, or the end of the loop around it, ends the epoch."""

    def __init__(self, watched: Watch[T], batches: Generator[T, None, None]) -> None:
        self._watched = watched
        self._number = watched.iterations
        self.batches = batches

    def __next__(self) -> T:
        if self._watched.iterations != self._number:
            raise WatchError(
                f"This watched {self._watched.name} is iterated twice at the same time: its steps cannot be measured.",
                remedy="Finish the first loop, or use another loader for the second one.",
            )
        return next(self.batches)


def _check_usable(loader: object, on_checkpoint: object) -> None:
    """Raises WatchError for arguments of a wrong type."""
    if not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise WatchError(
            f"ossconsole.watch got a {type(loader).__name__}, which cannot be iterated.",
            remedy="Watch a DataLoader, or any other iterable of batches.",
        )
    if on_checkpoint is not None and not callable(on_checkpoint):
        raise WatchError(
            f"ossconsole.watch got on_checkpoint={on_checkpoint!r}, which cannot be called.",
            remedy="Give a function that saves a checkpoint.",
        )


def _is_interactive() -> bool:
    """Whether cells or lines are run one after the other: in a notebook, IPython, or Python's own prompt."""
    return hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")


def _is_wanted(error: BaseException) -> bool:
    """Whether an exception ends a script without a failure: Ctrl-C, or `sys.exit()` with code 0."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in {None, 0})


def _count(loader: object, attribute: str) -> int | None:
    """A number that a loader states, such as `num_workers`; None where it states none."""
    try:
        return max(0, operator.index(getattr(loader, attribute, None)))  # type: ignore[arg-type]
    except TypeError:
        return None


def samples_in(batch: Any) -> int:
    """The length of the first tensor or array of a batch, also within tuples, lists and dictionaries; 0 without one."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        return next((count for each in batch if (count := samples_in(each))), 0)
    shape = getattr(batch, "shape", None)
    try:
        return int(shape[0]) if shape is not None and len(shape) else 0
    except (TypeError, ValueError):  # a `shape` of another kind
        return 0


def _figure(name: str, value: Any, *, later: bool) -> Any:
    """A logged value as `to_host` returns it. Raises WatchError."""
    try:
        return to_host(value, later=later)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WatchError(
            f"The logged {name} is not a number: {error}.", remedy="Log numbers, or tensors of one element."
        ) from error


def _as_oss_images(loader: object) -> OssImages | None:
    """The loader where it is an OssImages; its module is loaded then."""
    module = sys.modules.get("ossconsole.api.images")
    return loader if module is not None and isinstance(loader, module.OssImages) else None


def _length(loader: object) -> int | None:
    """The number of batches of an epoch; None where the loader does not know it."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError, ValueError):  # from the dataset of a DataLoader too
        return None


def _words(error: object) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
