"""The tour: captions that point at the panels, one after the other, while the console works behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.widget import Widget

from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Canvas
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.text import Line, wrap


@dataclass(frozen=True)
class TourStep:
    """A panel (`target` selects it on the screen of `mode`) and its caption."""

    mode: str
    target: str
    title: str
    text: str


STEPS = (
    TourStep(
        "train", "ModeBar", "Modes", "1 to 4 select a screen. At the right is the work in progress: 0 leads to it."
    ),
    TourStep("train", "#verdict", "Verdict", "What limits the run, and what a faster endpoint would be worth."),
    TourStep("train", "#progress", "Progress", "State, epoch and step. Space pauses, s stops with a checkpoint."),
    TourStep("train", "#tiles", "Figures", "Data wait is the share of a step in which training waits for samples."),
    TourStep("train", "#speed", "Samples/s", "The colour and the lane below show the endpoint in use. e switches it."),
    TourStep("train", "#compare", "A/B", "Both endpoints as measured, and their ratio once it is decided. a measures."),
    TourStep("train", "#slot-0", "More charts", "v shows the others, + and - zoom, h and l move in time."),
    TourStep("train", "#machine", "Machine", "GPUs and host. g shows all of their metrics."),
    TourStep("train", "#events", "Events", "Switches, checkpoints and errors. i shows them in full."),
    TourStep(
        "browse", "#objects", "Objects", "The bucket. Enter opens a folder; checkpoints/ has what the run writes."
    ),
    TourStep("browse", "#detail", "Details", "A checkpoint shows its tensors, an image itself, without a download."),
    TourStep(
        "upload", "#upload-form", "Upload", "A folder, an archive or a table becomes a dataset; s shows the plan."
    ),
    TourStep("setup", "#setup-test", "Test", "c tests both endpoints and what the key may do."),
    TourStep(
        "setup", "KeyBar", "Keys", "The keys of this screen. ? shows and searches all, : finds an action by name."
    ),
)
_WIDTH = 54
_OUTLINED_FROM = 6  # rows: an outline would hide most of a lower panel, which is tinted instead
_EDGES = 2  # rows and columns of the border
_TRIES, _TRY_S = 20, 0.1  # for a screen that is shown for the first time


def start(app: Any) -> None:
    """Begin the tour, or begin it again."""
    show(app, 0)


def show(app: Any, index: int, by: int = 1, tries: int = _TRIES) -> None:
    """Show step `index`; where its panel does not fit or is hidden, the next one in the direction `by`."""
    for tour in [tour for screen in app.screen_stack for tour in screen.query(Tour)]:
        tour.close()
    if not 0 <= index < len(STEPS):
        app.action_mode(STEPS[0].mode)  # where it began, and where a run shows
        app.notify("The tour is over. ? shows all keys.", timeout=4)
        return
    step = STEPS[index]
    if app.current_mode != step.mode:
        app.action_mode(step.mode)
    target = visible(app.screen, step) if isinstance(app.screen, ConsoleScreen) else None
    if target is not None:
        tour = Tour(app, index, target)
        app.screen.mount(tour)
        tour.focus()
    elif tries and not _laid_out(app):
        app.set_timer(_TRY_S, lambda: show(app, index, by, tries - 1))
    else:
        show(app, index + by, by)


def _laid_out(app: Any) -> bool:
    return any(bar.region.area for bar in app.screen.query("KeyBar"))


def visible(screen: ConsoleScreen, step: TourStep) -> Widget | None:
    """The panel of the step, None where it is hidden."""
    return next((widget for widget in screen.query(step.target) if widget.is_on_screen and widget.region.area), None)


def beside(target: Region, size: Size, screen: Size) -> tuple[int, int, bool]:
    """The place of a caption of `size`: below the target, else above it, else over its end; and whether it is below."""
    x = max(0, min(target.x + 2, screen.width - size.width))
    if target.bottom + size.height <= screen.height - 1:
        return x, target.bottom, True
    if target.y >= size.height + 1:
        return x, target.y - size.height, False
    return x, max(1, min(target.bottom, screen.height - 1) - size.height), False


class Tour(Canvas, can_focus=True):
    """The caption of one step beside its panel, which gets an outline. Other keys than its own go to the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,right,space", "step(1)", "Next", show=False),
        Binding("left,backspace", "step(-1)", "Back", show=False),
        Binding("escape", "end", "End", show=False),
    ]

    def __init__(self, app: Any, index: int, target: Widget) -> None:
        super().__init__()
        self._app = app
        self._index = index
        self._target = target
        self._reclaims_focus = True

    def on_mount(self) -> None:
        """Point at the panel; it moves when the layout changes."""
        self._target.add_class("-toured")
        self._target.set_class(self._target.region.height < _OUTLINED_FROM, "-low-target")
        self._place()
        self.set_interval(0.25, self._place)

    def on_blur(self) -> None:
        """Take the focus back once: a screen that is shown for the first time gives it to one of its panels."""
        if self._reclaims_focus:
            self._reclaims_focus = False
            self.focus()

    def _place(self) -> None:
        if self.screen not in self._app.screen_stack:  # the user has selected another mode
            self.close()
            return
        screen = self.screen.size
        width = min(_WIDTH, screen.width)
        height = len(self.paint(width - _EDGES - 2, screen.height)) + _EDGES
        x, y, below = beside(self._target.region, Size(width, height), screen)
        glyphs = self._app.glyphs
        self.styles.offset, self.styles.width, self.styles.height = (x, y), width, height
        self.border_title = f"{glyphs.up if below else glyphs.down} {STEPS[self._index].title}"
        self.border_subtitle = f"{self._index + 1} of {len(STEPS)} {glyphs.dot} enter next {glyphs.dot} esc end"
        self.redraw()

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        return [Line((part, "text")) for part in wrap(STEPS[self._index].text, max(8, width))]

    def close(self) -> None:
        """Remove the caption and the outline."""
        self._target.remove_class("-toured", "-low-target")
        self.remove()

    def action_step(self, by: int) -> None:
        """The next (1) or the previous (-1) caption."""
        show(self._app, max(0, self._index + by), by)

    def action_end(self) -> None:
        """End the tour."""
        self.close()
        self._app.notify(f"{actions.key_text(actions.key_of('app', 'tour'))} starts the tour again.", timeout=3)
