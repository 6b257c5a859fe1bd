"""TrainingRun: a run in a thread of its own, with the controls a screen or a command line has over it.

No torch here: it is imported by the thread, after the console has painted.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.storage.retry import Wait
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.measure import TOO_SHORT
from ossconsole.telemetry.runs import RunRecord, new_run_id, record_path
from ossconsole.telemetry.sampler import Sampler, TelemetrySample
from ossconsole.training.checkpoints.claim import Claim
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.rank import Place
from ossconsole.training.preflight import broken_library, check_libraries, check_weights
from ossconsole.training.settings import TrainSettings

log = logging.getLogger(__name__)

_ALONE = Place()
_KEPT_EVENTS = 50_000
"""Events kept for a screen that does not look; the record on disk has them all."""
_LOADING_GRACE_S = 2.0
"""How long a run that was stopped may still load torch or weights before it is left behind."""
_LOOK_S = 0.2
_SAMPLE_EVERY_S = 2.0
"""How often the record tells of GPUs and host: 0.4 kB each time, and 0.3 kB more for each GPU."""
_EARLY_S = 0.2  # a sample may come this much before its time, rather than be left out for the next one


class TrainingRun:
    """One run. `attended` tells that somebody can act: a failing endpoint then pauses the run instead of ending it.

    `sampler` looks at GPUs and host for the record; it is the process's own, and belongs to the caller.
    `attended` may change while it goes on. `on_event` is called with each event, from the thread that made it. `place`
    is that of this process, which leads, where torchrun started several.
    Raises SettingsError, MissingLibraryError, and ClaimedError while another run writes to the same checkpoint prefix.
    """

    is_remote = False
    """Another process does the runs that are; see `ossconsole.training.remote.attached`."""

    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource,
        settings: TrainSettings,
        sampler: Sampler,
        *,
        record_dir: Path | None = None,
        place: Place = _ALONE,
        attended: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if place.world > 1 and settings.processes != 1:
            raise SettingsError("torchrun starts the processes of this run.", remedy="Leave --processes out.")
        if profile.endpoint(settings.endpoint) is None:
            raise SettingsError(
                f"Profile {profile.name!r} has no {settings.endpoint} endpoint.",
                remedy="Add one on the Setup screen, or give --endpoint.",
            )
        check_libraries()
        check_weights(settings.weights)
        self._claim = Claim(profile, new_run_id(), go_on=place.attempt > 0)
        self.id = self._claim.run
        self.error: ConsoleError | None = None
        self.summary: events.Summary | None = None
        self._context = RunContext(self.id, profile, credentials, settings, self._tell, attended=attended)
        self._place = place
        self._record = RunRecord(record_path(self.id, record_dir))
        self._on_event = on_event
        self._told_of_record = False
        self._sampler = sampler
        self._sampled_at = -math.inf
        self._described = False
        self._left_behind = False
        self._begun = time.perf_counter()
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._thread = threading.Thread(target=self._work, name=f"training-{self.id}", daemon=True)

    @property
    def state(self) -> RunState:
        return self._context.state

    @property
    def step(self) -> int:
        """The last step done."""
        return self._context.step

    @property
    def attended(self) -> bool:
        return self._context.attended

    @attended.setter
    def attended(self, attended: bool) -> None:
        self._context.attended = attended

    @property
    def alive(self) -> bool:
        """False before `start` and once the run's thread has ended."""
        return self._thread.is_alive()

    @property
    def record_path(self) -> Path:
        return self._record.path

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False when it has not come within `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait_for_stop(self) -> None:
        """Waits for the end of a run that was asked to stop; the process must end then.

        A run that is still loading what it needs is not waited for: nothing was trained, and nothing can end it.
        """
        until = time.monotonic() + _LOADING_GRACE_S
        while not self.wait(_LOOK_S):
            if time.monotonic() >= until and self.state is RunState.STARTING:
                self._left_behind = True
                self.summary = self._stop_before_training()
                return

    def pause(self) -> None:
        self._context.controls.pause()

    def resume(self) -> None:
        self._context.controls.resume()

    def stop(self) -> None:
        """Asks the run to end after the step under way, with a checkpoint."""
        self._context.controls.stop()

    def checkpoint(self) -> None:
        """Asks for a checkpoint after the step under way."""
        self._context.controls.ask_checkpoint()

    def set_lr(self, lr: float) -> None:
        """Changes the peak learning rate from the next step on."""
        self._context.controls.ask_lr(lr)

    def switch(self, kind: EndpointKind, reason: str = "asked for") -> None:
        """Reads the batches that are fetched from now on through `kind`. Raises SettingsError where there is none."""
        self._context.switch(kind, reason)

    def warn(self, message: str, remedy: str) -> None:
        """Tells, in the record and to all who watch, what the run meets without being its cause."""
        self._context.warn(message, remedy)

    def drain(self) -> list[Event]:
        """The events since the last call, oldest first."""
        drained = []
        while self._events:
            drained.append(self._events.popleft())
        return drained

    def _tell(self, event: Event) -> None:
        """Records the event and hands it on; that the record cannot be written is told once.

        What the machine does is recorded between the first line and the last.
        """
        if self._left_behind and threading.current_thread() is self._thread:
            return  # its end is on the record already
        if isinstance(event, events.Summary):
            self._sampler.unlisten(self._record_sample)
        self._record.append(event)
        if isinstance(event, events.Run):
            self._described = True
            self._sampler.listen(self._record_sample)
        self._events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        if self._record.problem and not self._told_of_record:
            self._told_of_record = True
            remedy = "Free its disk; the run goes on, and `status` and `export` miss these events."
            self._tell(
                events.WarningEvent(time=time.time(), message=self._record.problem, remedy=remedy, step=self.step)
            )

    def _record_sample(self, sample: TelemetrySample) -> None:
        """Only the record is told, and not of each sample: a screen of this process asks the sampler."""
        if abs(sample.time - self._sampled_at) > _SAMPLE_EVERY_S - _EARLY_S:
            self._sampled_at = sample.time
            self._record.append(sample.event())

    def _work(self) -> None:
        # Inherited by the processes that this thread starts: a Ctrl-C while they begin would end them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        in_console = self.attended
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
            if in_console:  # a command ends now, and the system frees at once what this takes seconds for
                _free_memory(raised)

    def _train(self) -> events.Summary:
        from ossconsole.storage.client import ObjectStore
        from ossconsole.training.data import training_data

        context = self._context
        store = ObjectStore(context.profile, context.credentials)
        try:
            data = training_data(store.pausing(self._wait), context.profile.dataset_prefix)
        except ConsoleError:
            if context.controls.stopping.is_set():  # while it waited to read the manifest
                return self._stop_before_training()
            if not self._described:
                context.describe()  # a record begins with its run, also when there is nothing to train on
            raise
        from ossconsole.training.distributed.local_ranks import Followers
        from ossconsole.training.session import Session, processes_wanted

        processes = processes_wanted(context.settings)
        if context.controls.stopping.is_set() and self._place.world == 1:
            return self._stop_before_training()
        if processes == 1:
            return Session(context, store, data, self._place).train()
        with Followers(context, processes) as followers:
            leader, ready = followers.leader, followers.wait_until_ready
            return Session(context, store, data, leader, before_meeting=ready).train()

    def _stop_before_training(self) -> events.Summary:
        """The end of a run that was stopped while torch was being loaded: no model has to be built for it."""
        context = self._context
        if not self._described:
            context.describe()
        context.say("Nothing has been trained yet: no checkpoint is written.")
        summary = events.Summary(
            time=time.time(),
            run=self.id,
            state=RunState.STOPPED,
            epochs=0,
            steps=0,
            samples=0,
            bytes=0,
            seconds=time.perf_counter() - self._begun,
            samples_per_s=None,
            wait_fraction=None,
            reason=TOO_SHORT,
        )
        context.enter(RunState.STOPPED)
        context.tell(summary)
        return summary

    def _wait(self, wait: Wait) -> None:
        """Says what the run waits for before it can begin; a stop ends the wait, and the run."""
        if not self._described:
            self._context.describe()  # a record begins with its run
        self._context.say(f"Waiting: {wait}.")
        if self._context.controls.stopping.wait(wait.seconds):
            raise wait.error

    def _fail(self, error: ConsoleError) -> None:
        self.error = error
        self._context.complain(error.message, error.remedy)
        self._context.enter(RunState.FAILED)


def _free_memory(error: BaseException | None) -> None:
    """Gives back what the run held: batch buffers, and the memory of a GPU, which others may wait for.

    The frames of an error's tracebacks hold pictures and gradients; a session and its parts refer to each other.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    cuda = sys.modules.get("torch.cuda")  # another thread may just be loading it
    if getattr(cuda, "is_initialized", lambda: False)():
        try:
            sys.modules["torch"].cuda.empty_cache()
        except RuntimeError:  # a GPU that failed for good
            log.exception("The memory of the GPU was not given back")
