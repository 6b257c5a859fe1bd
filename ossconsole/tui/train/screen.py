"""TrainScreen: the run, live, and everything that may be asked of it."""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec
from textual import work
from textual.binding import BindingType

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.events import RunState
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.console import ConsoleState, Ready, RunHandle
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.actions import Action
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, PromptScreen
from ossconsole.tui.kit.notice import notice, preparation, stages
from ossconsole.tui.kit.text import number
from ossconsole.tui.train.dashboard import Dashboard, Source
from ossconsole.tui.train.new_run import NewRunScreen


class TrainScreen(Dashboard):
    """Live dashboard and the controls of the run."""

    SCOPE = "train"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("train")]

    @property
    def source(self) -> Source:
        return self.console.monitor

    @property
    def state(self) -> ConsoleState:
        return msgspec.structs.replace(self.services.state, stages=tuple(stages(self.services)))

    @property
    def starting(self) -> bool:
        return self.console.monitor.busy

    @property
    def steered(self) -> bool:
        return True

    @property
    def auto_words(self) -> str:
        monitor = self.console.monitor
        shown = monitor.auto or monitor.control
        return shown.words if shown else ""

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        busy = self.console.monitor.busy
        if action == "new_run":  # while the bucket is being made ready the key says why it does nothing
            return None if busy or self.services.readonly else True
        if action in {"switch", "auto_compare"}:
            return True if busy and self.context.has_accelerated else None
        if action == "control":
            return True if busy and self.console.monitor.view.delivering is not None else None
        if action in {"pause", "stop", "checkpoint", "learning_rate"}:
            return True if busy else None
        return super().check_action(action, parameters)

    def live_actions(self) -> list[tuple[Action, bool]]:
        ready = isinstance(self.services.state, Ready)
        return [(action, live and (ready or action.name != "new_run")) for action, live in super().live_actions()]

    def action_pause(self) -> None:
        run = self.console.monitor.run
        if run is None:
            return
        if run.state is RunState.PAUSED:
            run.resume()
        else:
            run.pause()

    @work(exclusive=True, group="stop", exit_on_error=False)
    async def action_stop(self) -> None:
        run = self.console.monitor.run
        if run is None:
            return
        choice = await self.app.push_screen_wait(
            ConfirmScreen(
                "Stop the run?",
                "The step in progress ends, a checkpoint is written, and the run is over. It can be resumed later.",
                (Choice("", "Go on"), Choice("stop", "Stop", "warning")),
            )
        )
        if choice == "stop":
            self._end(run)

    @work(thread=True, group="end", exit_on_error=False)
    def _end(self, run: RunHandle) -> None:
        """In a thread: the processes of a run on several GPUs are told, too."""
        run.stop()

    def action_checkpoint(self) -> None:
        run = self.console.monitor.run
        if run is not None:
            run.checkpoint()
            self.notify("A checkpoint is written after this step.", timeout=3)

    def action_switch(self) -> None:
        run, kind = self.console.monitor.run, self.console.monitor.view.endpoint
        if run is None or kind is None:
            return
        self.console.monitor.auto = None
        self._switch(kind.other)

    @work(thread=True, exclusive=True, group="switch", exit_on_error=False)
    def _switch(self, kind: EndpointKind) -> None:
        """Only to an endpoint that answers: the run would stall on one that does not."""
        run = self.console.monitor.run
        try:
            self.services.preflight(kind)
            if run is not None and run.alive:
                run.switch(kind, "by hand")
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)

    def action_auto_compare(self) -> None:
        monitor = self.console.monitor
        if monitor.auto is not None and not monitor.auto.done:
            monitor.auto = None
            self.notify("Auto A/B is off.", timeout=3)
            return
        monitor.control = None
        monitor.auto = AutoCompare(seed=int(monitor.now))
        self.notify("Auto A/B: alternating the endpoints until the difference is known to ± 5 %.", timeout=4)

    def action_control(self) -> None:
        monitor = self.console.monitor
        if monitor.control is not None and not monitor.control.done:
            monitor.control = None
            self.notify("The A/A control is off.", timeout=3)
            return
        monitor.start_control()
        self.notify(
            f"A/A control: {monitor.view.delivering} alone, under both names by turns. The run is not changed. "
            "Its interval must hold 1.00.",
            timeout=5,
        )

    @work(exclusive=True, group="learning-rate", exit_on_error=False)
    async def action_learning_rate(self) -> None:
        run, step = self.console.monitor.run, self.console.monitor.view.last_step
        known = number(step.lr, 4) if step else ""
        hint = "The peak from the next step on; the schedule goes on from it."
        text = await self.app.push_screen_wait(PromptScreen("Learning rate", hint, known, _bad_lr))
        if text is not None and run is not None and run.alive:
            run.set_lr(float(text))

    @work(exclusive=True, group="new-run", exit_on_error=False)
    async def action_new_run(self) -> None:
        state = self.services.state
        if not isinstance(state, Ready) or state.profile is None:
            lines = preparation(self.services, self.glyphs) or notice(state, self.glyphs, self.size.width)
            self.notify(" ".join(line.text.strip() for line in lines), severity="warning", markup=False)
            return
        settings = await self.app.push_screen_wait(NewRunScreen(state.profile))
        if settings is not None:
            self._start(settings)

    @work(thread=True, group="start", exit_on_error=False)
    def _start(self, settings: TrainSettings) -> None:
        """In a thread: where another process holds the checkpoint prefix, all others are asked what they do."""
        try:
            self.services.start_run(settings)
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)

    def action_runs(self) -> None:
        from ossconsole.tui.train.runs import RunsScreen

        self.app.push_screen(RunsScreen())


def _bad_lr(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return "A learning rate is a number such as 0.05."
    return "" if 0 < value < math.inf else "A learning rate is greater than 0."
