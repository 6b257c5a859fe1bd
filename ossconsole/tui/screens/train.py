"""TrainScreen: the run, live. Everything shown is drawn from the RunView that the monitor keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.events import RunState
from ossconsole.tui import actions
from ossconsole.tui.panels import compare, eventlog, headline, idle, machine, tiles
from ossconsole.tui.panels.charts import ChartSpec, TimeWindow, chart
from ossconsole.tui.panels.context import Context
from ossconsole.tui.screens.base import ConsoleScreen
from ossconsole.tui.screens.confirm import Choice, ConfirmScreen
from ossconsole.tui.screens.new_run import NewRunScreen
from ossconsole.tui.text import Line
from ossconsole.tui.widgets.panel import Painter, Panel

SPEED = ChartSpec("samples/s", "samples_per_s", lane=True)
WAIT = ChartSpec("data wait", "wait", scale="percent", unit=" %", style="warn")
LOSS = ChartSpec("loss", "loss_smooth", scale="around", style="primary")
GPU = ChartSpec("GPU util", "gpu0.utilization", scale="percent", unit=" %", style="good")
CPU = ChartSpec("CPU", "host.cpu", scale="percent", unit=" %", style="good")

WINDOW_S = 120.0


class TrainScreen(ConsoleScreen):
    """Live dashboard and the controls of the run."""

    SCOPE = "train"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("train")]

    def body(self) -> ComposeResult:
        yield Panel(self._verdict, id="verdict")
        yield Panel(self._progress, id="progress")
        yield Panel(self._tiles, id="tiles")
        yield Panel(self._idle, id="idle")
        with Vertical(id="live"):
            with Horizontal(id="main"):
                yield Panel(self._chart(SPEED), id="speed")
                yield Panel(self._compare, id="compare")
            with Horizontal(id="charts"):
                yield Panel(self._chart(WAIT), id="wait")
                yield Panel(self._chart(LOSS), id="loss")
                yield Panel(self._use, id="use")
        yield Panel(self._machine, id="machine")
        yield Panel(self._events, id="events")

    def on_mount(self) -> None:
        self.tick()

    def tick(self) -> None:
        view = self.console.monitor.view
        self.set_class(view.run is None, "-idle")
        gpus = len(view.telemetry.gpus) if view.telemetry else 0
        for panel in self.query("#machine"):
            panel.styles.height = 1 + min(max(1, gpus), self._gpu_lines())
        for panel in self.query(Panel):
            if panel.display:
                panel.redraw()

    def _gpu_lines(self) -> int:
        return 1 if self.has_class("-low") else 4 if self.has_class("-middle") else 8

    # Panels

    @property
    def context(self) -> Context:
        monitor = self.console.monitor
        profile = self.services.profile
        return Context(
            view=monitor.view,
            now=monitor.now,
            glyphs=self.glyphs,
            has_accelerated=profile is None or profile.accelerated_endpoint is not None,
            auto_words=monitor.auto.words(monitor.view.comparison) if monitor.auto else "",
        )

    @property
    def window(self) -> TimeWindow:
        """The last minutes; while there are fewer, the curve grows from the left."""
        monitor = self.console.monitor
        view = monitor.view
        over = view.state is not None and view.state.final
        newest = (view.last_time if over else monitor.now) or monitor.now
        oldest = view.run.time if view.run else newest
        # The curve moves on by whole dots, so that most updates change nothing but its newest cell.
        grid = WINDOW_S / 240
        end = max(newest - newest % grid + grid, oldest + WINDOW_S)
        return TimeWindow(end - WINDOW_S, end, "2 min")

    def _verdict(self, width: int, height: int) -> Sequence[Line]:
        return headline.verdict(self.context, width, height)

    def _progress(self, width: int, _height: int) -> Sequence[Line]:
        return [headline.progress(self.context, width)]

    def _tiles(self, width: int, _height: int) -> Sequence[Line]:
        return tiles.tiles(self.context, width)

    def _idle(self, width: int, _height: int) -> Sequence[Line]:
        starting = self.console.monitor.busy
        return idle.idle(self.context, self.services.stages, width, starting=starting)

    def _chart(self, spec: ChartSpec) -> Painter:
        def paint(width: int, height: int) -> Sequence[Line]:
            return chart(self.context, spec, self.window, width, height)

        return paint

    def _use(self, width: int, height: int) -> Sequence[Line]:
        spec = GPU if GPU.series in self.console.monitor.view.series else CPU
        return chart(self.context, spec, self.window, width, height)

    def _compare(self, width: int, height: int) -> Sequence[Line]:
        return compare.comparison(self.context, width, height)

    def _machine(self, width: int, height: int) -> Sequence[Line]:
        return machine.machine(self.context, width, height)

    def _events(self, width: int, height: int) -> Sequence[Line]:
        context = self.context
        return [context.heading("events", width), *eventlog.event_log(context, width, height - 1)]

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        monitor = self.console.monitor
        if action == "new_run":
            return None if monitor.busy or self.services.readonly or self.services.profile is None else True
        if action in {"switch", "auto_compare"}:
            return True if monitor.busy and self.context.has_accelerated else None
        if action in {"pause", "stop", "checkpoint"}:
            return True if monitor.busy else None
        return True

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
        try:
            self.services.preflight(kind)
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)
            return
        run = self.console.monitor.run
        if run is not None and run.alive:
            run.switch(kind, "by hand")

    def action_auto_compare(self) -> None:
        monitor = self.console.monitor
        if monitor.auto is not None and not monitor.auto.done:
            monitor.auto = None
            self.notify("Auto A/B is off.", timeout=3)
            return
        monitor.auto = AutoCompare(every=max(12, 4 * monitor.view.settings.workers))
        self.notify("Auto A/B: alternating the endpoints until the ratio is known to ± 5 %.", timeout=4)

    @work(exclusive=True, group="new-run", exit_on_error=False)
    async def action_new_run(self) -> None:
        profile = self.services.profile
        if profile is None:
            return
        settings = await self.app.push_screen_wait(NewRunScreen(profile))
        if settings is None:
            return
        try:
            self.services.start_run(settings)
        except ConsoleError as error:
            self.tell(error)
