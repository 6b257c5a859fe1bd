"""RunsScreen: all recorded runs, to replay, watch, compare and export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import working_folder
from ossconsole.telemetry import export
from ossconsole.telemetry.report import write_report
from ossconsole.telemetry.runs import RunSummary, list_runs
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line, safe, shorten
from ossconsole.tui.train.replay import Replay, ReplayScreen
from ossconsole.tui.train.run_compare import MAX_RUNS, RunCompareScreen
from ossconsole.tui.train.run_rows import run_header, run_row


def _write_report(record: Path, target: Path) -> Path:
    from ossconsole.training.bench.buyers import run_buyers  # imports numpy

    return write_report(record, target, more=run_buyers)


_EXPORTS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "csv": (".csv", export.export_csv),
    "json": (".json", export.export_json),
    "tensorboard": ("-tensorboard", export.export_tensorboard),
}


class RunsScreen(ConsoleScreen):
    """All recorded runs, the newest first; at most MAX_RUNS are marked."""

    SCOPE = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("runs")]

    def __init__(self) -> None:
        super().__init__()
        self._marked: list[str] = []
        self._listed = False
        self._problem: ConsoleError | None = None

    def body(self) -> ComposeResult:
        yield VirtualTable[RunSummary](self._row, run_header, id="runs")
        yield Panel(self._status, id="runs-status")

    @property
    def table(self) -> VirtualTable[RunSummary]:
        """The runs."""
        return self.query_one("#runs", VirtualTable)

    def on_mount(self) -> None:
        """List the runs."""
        self.table.focus()
        self._list()

    @work(thread=True, exclusive=True, group="runs", exit_on_error=False)
    def _list(self) -> None:
        try:
            found = list_runs()
        except ConsoleError as error:
            self.app.call_from_thread(self._show_problem, error)
            return
        self.app.call_from_thread(self._show_runs, found)

    def _show_problem(self, error: ConsoleError) -> None:
        """The rows stay, if there are any."""
        self._problem = error
        self.show_error(error)
        self.tick()

    def _show_runs(self, runs: Sequence[RunSummary]) -> None:
        known = self.table.cursor_row
        self._listed, self._problem = True, None
        self._marked = [name for name in self._marked if any(run.run == name for run in runs)]
        at = next((index for index, run in enumerate(runs) if known is not None and run.run == known.run), 0)
        self.table.show(runs, at)
        self.tick()

    # Drawing

    def _row(self, run: RunSummary, width: int) -> Line:
        return run_row(run, width, self.glyphs.done if run.run in self._marked else " ")

    def _status(self, width: int, _height: int) -> Sequence[Line]:
        run = self.table.cursor_row
        if self._problem is not None:
            return [Line((f" {shorten(safe(self._problem.message), width - 2, self.glyphs.ellipsis)}", "bad"))]
        if run is None:
            return [Line((" No recorded runs." if self._listed else " Listing runs.", "dim"))]
        details = [
            run.run,
            "simulated" if run.simulated else "",
            f"on {run.host}" if run.alive is None else "",
            f"A/B {run.comparison.words}" if run.comparison is not None and run.comparison.words else "",
            run.error,
        ]
        text = "  ".join(safe(part) for part in details if part)
        return [Line((f" {shorten(text, width - 2, self.glyphs.ellipsis)}", "bad" if run.error else "dim"))]

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        """Enable the comparison once two runs are marked."""
        if action == "compare":
            return True if len(self._marked) >= 2 else None
        return True

    def _on_virtual_table_moved(self) -> None:
        """Show the run under the cursor below the table."""
        self.tick()

    def _on_virtual_table_opened(self) -> None:
        """Open the run that was clicked."""
        self.action_replay()

    def action_replay(self) -> None:
        """Replay the run, or follow it while it is alive."""
        run = self.table.cursor_row
        if run is None:
            return
        try:
            replay = Replay(Path(run.path), follow=run.alive is True and not run.state.final)
        except ConsoleError as error:
            self.show_error(error)
            return
        self.app.push_screen(ReplayScreen(run, replay))

    def action_mark(self) -> None:
        """Mark or unmark the run for a comparison."""
        run = self.table.cursor_row
        if run is None:
            return
        if run.run in self._marked:
            self._marked.remove(run.run)
        else:
            self._marked = [*self._marked[1 - MAX_RUNS :], run.run]
        self.table.refresh()
        self.table.action_move(1)

    def action_compare(self) -> None:
        """Compare the marked runs, the oldest first."""
        marked = [run for run in self.table.rows if run.run in self._marked]
        if len(marked) >= 2:
            self.app.push_screen(RunCompareScreen(sorted(marked, key=lambda run: run.started)))

    def action_refresh(self) -> None:
        """List the runs again."""
        self._list()

    @work(exclusive=True, group="export", exit_on_error=False)
    async def action_export(self) -> None:
        """Write the run to a file in the working directory."""
        run = self.table.cursor_row
        if run is None:
            return
        choice = await self.app.push_screen_wait(
            ConfirmScreen(
                "Export",
                f"Writes to {working_folder()}; the file is named after the run.",
                (
                    Choice("", "Cancel"),
                    Choice("csv", "CSV"),
                    Choice("json", "JSON"),
                    Choice("tensorboard", "TensorBoard"),
                ),
            )
        )
        if choice:
            suffix, write = _EXPORTS[choice]
            self._write(write, Path(run.path), working_folder() / f"{run.run}{suffix}")

    def action_report(self) -> None:
        """Write a page about the run to the working directory."""
        run = self.table.cursor_row
        if run is not None:
            self._write(_write_report, Path(run.path), working_folder() / f"{run.run}.html")

    @work(thread=True, exclusive=True, group="export-file", exit_on_error=False)
    def _write(self, write: Callable[[Path, Path], object], record: Path, target: Path) -> None:
        try:
            write(record, target)
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)
            return
        self.notify(f"Written to {target}", markup=False, timeout=8)
