"""TrainingRun: a run in a thread of its own, with its controls and its claim on the checkpoint prefix.

No torch here: the run's thread imports it, after the console has painted.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import READ_WRITE, decode_json, open_private, state_dir, unwritable
from ossconsole.config.profiles import Profile
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.runs import RunRecord, new_run_id, record_path
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.launch import LauncherContext, LocalRanks, local_ranks
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.preflight import broken_library, check_libraries
from ossconsole.training.rank import Rank, ensure_described, stop_before_training
from ossconsole.training.settings import TrainSettings, check_weights

if TYPE_CHECKING:
    from ossconsole.telemetry.sampler import Sampler, TelemetrySample

log = logging.getLogger(__name__)

_RANK_ZERO = RankInfo()
_KEPT_EVENTS = 50_000
"""Events kept for a screen that does not poll; the record on disk has them all."""
_LOADING_GRACE_S = 2.0
"""How long a stopped run may continue to load torch or weights before it is abandoned."""
_POLL_S = 0.2
_SAMPLE_EVERY_S = 2.0
"""Period of GPU and host samples in the record: 0.4 kB each, and 0.3 kB more for each GPU."""
_EARLY_S = 0.2  # a sample may come this much early, rather than be skipped in favour of the next one


class Holder(msgspec.Struct, frozen=True):
    """The process and the run id that hold a checkpoint prefix, and the parent of that process, see `_parent`.

    `host` is its machine, "" where an earlier version wrote the lock file.
    """

    pid: int
    run: str
    parent: str = ""
    host: str = ""


class ClaimedError(ConsoleError):
    """Another run writes checkpoints to the same prefix; `holder` is None where it is unknown."""

    def __init__(self, where: str, holder: Holder | None) -> None:
        elsewhere = holder.host if holder and holder.host not in ("", socket.gethostname()) else ""
        process = f"process {holder.pid}{f' on {elsewhere}' if elsewhere else ''}" if holder else ""
        who = f"The run {holder.run} ({process})" if holder else "Another run"
        shows = f"`ossconsole` on {elsewhere}" if elsewhere else "`ossconsole`"
        super().__init__(
            f"{who} is active and writes its checkpoints to {where}.",
            remedy=f"{shows} shows it; wait for it, stop it, or give another --checkpoint-prefix.",
        )
        self.holder = holder


class PrefixClaim:
    """Locks the checkpoint prefix of `profile` for `run` until `release` or the end of the process.

    Two runs would overwrite each other's latest checkpoint. The lock is visible to this user on this machine, and on
    others that share the state folder where their file system has such locks. With
    `take_over` the id of the previous holder's run is kept, if the same process started both: torchrun may restart a
    run that had not claimed the prefix yet, and the holder then was another run. Raises ClaimedError, and SettingsError
    when the lock file cannot be opened.
    """

    def __init__(self, profile: Profile, run: str, *, take_over: bool = False) -> None:
        name = f"{profile.region}/{profile.bucket}/{profile.checkpoint_prefix}"
        path = state_dir() / "claims" / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.lock"
        self._file = FileIO(open_private(path, READ_WRITE), "r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._file)
            self._file.close()
            raise ClaimedError(f"oss://{profile.bucket}/{profile.checkpoint_prefix}/", holder) from None
        except OSError as error:  # a network file system without locks
            self._file.close()
            raise unwritable(path, error) from error
        before, parent = _holder(self._file), _parent()
        self.run = before.run if take_over and before and parent and before.parent == parent else run
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(msgspec.json.encode(Holder(os.getpid(), self.run, parent, socket.gethostname())))
        except OSError as error:
            # The lock holds nevertheless; other processes only cannot name its holder.
            log.warning("The claim %s cannot name its run: %s", path, error.strerror)

    def release(self) -> None:
        """Lets another run claim the prefix."""
        self._file.close()


def _holder(file: FileIO) -> Holder | None:
    try:
        return decode_json(file.read(4096), Holder)
    except msgspec.DecodeError:
        return None  # it is just being written


def _parent() -> str:
    """The process that started this one: its id, which is used again, and its start in ticks since the boot (proc(5)).

    "" where that is unknown.
    """
    try:
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # it is outside this container
        return ""
    return f"{os.getppid()} {started}"


class TrainingRun:
    """One run. `interactive`, which may change, means that a user can act: a failing endpoint then pauses the run.

    `sampler` samples GPUs and host for the record; it belongs to the caller. `on_event` gets each event, in the thread
    that emits it. `rank_info` is rank 0 where torchrun started several processes.
    Raises SettingsError, MissingLibraryError, and ClaimedError while another run writes to the same checkpoint prefix.
    """

    is_remote = False
    """True for runs of another process; see `ossconsole.training.remote.attached`."""
    reading: float | None = None
    """See `ossconsole.training.remote.attached`: there is no record to read here."""
    refused = 0
    """See there: a request of this process is always heard."""

    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource,
        settings: TrainSettings,
        sampler: Sampler,
        *,
        rank_info: RankInfo = _RANK_ZERO,
        interactive: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if rank_info.world > 1 and settings.processes != 1:
            raise SettingsError("torchrun starts the processes of this run.", remedy="Omit --processes.")
        if profile.endpoint(settings.endpoint) is None:
            raise SettingsError(
                f"Profile {profile.name!r} has no {settings.endpoint} endpoint.",
                remedy="Add one on the Setup screen, or give --endpoint.",
            )
        check_libraries()
        check_weights(settings.weights)
        self._claim = PrefixClaim(profile, new_run_id(), take_over=rank_info.attempt > 0)
        self.id = self._claim.run
        self.error: ConsoleError | None = None
        self.summary: events.Summary | None = None
        self._context = (
            RunContext(self.id, profile, credentials, settings, self._emit, interactive=interactive)
            if settings.processes == 1
            else LauncherContext(self.id, profile, credentials, settings, self._emit)
        )
        self._rank_info = rank_info
        self._record = RunRecord(record_path(self.id))
        self._on_event = on_event
        self._record_problem_shown = False
        self._sampler = sampler
        self._sampled_at = -math.inf
        self._abandoned = False
        self._begun = time.perf_counter()
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._thread = threading.Thread(target=self._work, name=f"training-{self.id}", daemon=True)

    @property
    def state(self) -> RunState:
        """The current state of the run."""
        return self._context.state

    @property
    def step(self) -> int:
        """The number of the last completed step, from 1; 0 before the first."""
        return self._context.step

    @property
    def interactive(self) -> bool:
        """Whether a user can act when the run pauses."""
        return self._context.interactive

    @interactive.setter
    def interactive(self, interactive: bool) -> None:
        self._context.interactive = interactive

    @property
    def alive(self) -> bool:
        """False before `start` and once the run's thread has ended."""
        return self._thread.is_alive()

    @property
    def record_path(self) -> Path:
        """The JSONL file with the run's events."""
        return self._record.path

    def start(self) -> None:
        """Starts the run's thread; call once."""
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of the run; False on timeout."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait_for_stop(self) -> None:
        """Waits for the end of a run after `stop`; the process must end then.

        A run that is still loading torch or weights is abandoned: it has trained nothing, and cannot be interrupted.
        """
        until = time.monotonic() + _LOADING_GRACE_S
        while not self.wait(_POLL_S):
            if time.monotonic() >= until and self.state is RunState.STARTING:
                self._abandoned = True
                self.summary = stop_before_training(self._context, self._begun)
                return

    def pause(self) -> None:
        """Requests a pause after the step under way."""
        self._context.controls.pause()

    def resume(self) -> None:
        """Ends a pause."""
        self._context.controls.resume()

    def stop(self) -> None:
        """Requests the end of the run after the step under way, with a checkpoint."""
        self._context.controls.stop()

    def checkpoint(self) -> None:
        """Requests a checkpoint after the step under way."""
        self._context.controls.request_checkpoint()

    def profile(self) -> None:
        """Requests a profile of the next steps."""
        self._context.controls.request_profile()

    def set_lr(self, lr: float) -> None:
        """Changes the peak learning rate from the next step on."""
        self._context.controls.request_lr(lr)

    def switch(self, kind: EndpointKind, reason: str = "requested") -> None:
        """Reads future batches through `kind`. Raises SettingsError when the profile has no such endpoint."""
        self._context.switch(kind, reason)

    def warn(self, message: str, remedy: str) -> None:
        """Emits a warning about something outside the run."""
        self._context.warn(message, remedy)

    def drain(self) -> list[Event]:
        """The events since the last call, oldest first."""
        drained = []
        while self._events:
            drained.append(self._events.popleft())
        return drained

    def _emit(self, event: Event) -> None:
        """Records the event and passes it on; a record that cannot be written causes one warning.

        The sampler's samples are recorded between the first line and the last.
        """
        if self._abandoned and threading.current_thread() is self._thread:
            return  # its end is in the record already
        if isinstance(event, events.Summary):
            self._sampler.unlisten(self._record_sample)
        self._record.append(event)
        if isinstance(event, events.Run):
            self._sampler.listen(self._record_sample)
        self._events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        if self._record.problem and not self._record_problem_shown:
            self._record_problem_shown = True
            remedy = "Free space on its disk; the run continues, and `status` and `export` miss these events."
            self._emit(
                events.WarningEvent(time=time.time(), message=self._record.problem, remedy=remedy, step=self.step)
            )

    def _record_sample(self, sample: TelemetrySample) -> None:
        """Records some of the samples; they are not emitted, because a screen of this process has the sampler."""
        if abs(sample.time - self._sampled_at) > _SAMPLE_EVERY_S - _EARLY_S:
            self._sampled_at = sample.time
            self._record.append(sample.event())

    def _work(self) -> None:
        # Inherited by the processes that this thread starts: a Ctrl-C while they begin would end them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        in_console = self.interactive
        raised: Exception | None = None
        try:
            self.summary = self._train()
        except ConsoleError as error:
            raised = error
            self._fail(error)
        except ImportError as error:
            log.exception("The run %s failed", self.id)
            self._fail(broken_library(error))
        except Exception as error:
            raised = error
            log.exception("The run %s failed", self.id)
            self._fail(
                ConsoleError(
                    f"The run failed unexpectedly: {type(error).__name__}: {error}.",
                    remedy="The log of the program has the traceback.",
                )
            )
        finally:
            self._claim.release()
            self._sampler.unlisten(self._record_sample)
            self._record.close()
            if in_console:  # a command exits now, and its exit frees the memory faster
                _free_memory(raised)

    def _train(self) -> events.Summary:
        context = self._context
        if not isinstance(context, LauncherContext):
            return Rank(context, self._rank_info).train()
        with LocalRanks(context, local_ranks(context.settings)) as ranks:
            return ranks.watch()

    def _fail(self, error: ConsoleError) -> None:
        self.error = error
        ensure_described(self._context)
        self._context.error(error.message, error.remedy)
        self._context.enter(RunState.FAILED)


def _free_memory(error: BaseException | None) -> None:
    """Frees the run's batch buffers and GPU memory, which other processes may wait for.

    The frames of an error's traceback hold images and gradients; a session and its parts are a reference cycle.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    cuda = sys.modules.get("torch.cuda")  # another thread may be importing it
    if getattr(cuda, "is_initialized", lambda: False)():
        try:
            sys.modules["torch"].cuda.empty_cache()
        except RuntimeError:  # a GPU that failed for good
            log.exception("The memory of the GPU was not freed")
