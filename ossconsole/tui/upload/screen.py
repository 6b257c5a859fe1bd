"""UploadScreen: a source, the plan of its upload, the upload as it goes, and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Grid, Horizontal
from textual.widgets import Input, Label, Select

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.job import MAX_PARALLELISM, UploadSettings
from ossconsole.dataset.upload.plan import UploadPlan
from ossconsole.storage.jobs.threads import Cancelled
from ossconsole.tui.console import OwnUploadHandle, Ready
from ossconsole.tui.kit import actions, memory
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.dialogs import PromptScreen
from ossconsole.tui.kit.notice import notice, preparation
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.text import MISSING, Line, safe
from ossconsole.tui.upload import panels as painting
from ossconsole.tui.upload.panels import Paper, SampleView
from ossconsole.tui.upload.picker import SourcePicker

FORMATS = tuple((str(kind), str(kind)) for kind in SampleFormat)
SIZES = (64, 96, 128, 160, 224, 256, 384)
SHAPES = (("square", "square"), ("ratio kept", "ratio"))
STORES = (("objects", "0"), ("tars of 100", "100"), ("tars of 1,000", "1000"))
FORM = "upload"
_RECENT = 8


class UploadScreen(ConsoleScreen):
    """The form with its plan, or the upload in hand: never both at once."""

    SCOPE = "upload"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("upload")]

    def __init__(self) -> None:
        super().__init__()
        self._plan: tuple[UploadSettings, UploadPlan] | None = None
        self._looking: threading.Event | None = None
        self._seen = 0
        self._wants_form = False
        self._beginning = False
        self._recalled = False

    def body(self) -> ComposeResult:
        with Grid(id="upload-form"):
            yield Label("Source")
            yield Input(placeholder="a folder with train/ and val/, an archive, a .csv", compact=True, id="source")
            yield Label("Format")
            yield Select(FORMATS, value="image-u8", allow_blank=False, compact=True, id="format")
            yield Label("Size")
            yield Select(
                [(f"{px} px", str(px)) for px in SIZES], value="224", allow_blank=False, compact=True, id="size"
            )
            yield Label("Shape")
            yield Select(SHAPES, value="square", allow_blank=False, compact=True, id="shape")
            yield Label("Stored")
            yield Select(STORES, value="0", allow_blank=False, compact=True, id="stored")
            yield Label("To")
            yield Input(placeholder="the profile's dataset prefix", compact=True, id="prefix")
        yield Panel(self._heading, id="upload-heading")
        with Horizontal(id="upload-top"):
            yield Panel(self._paint, id="upload-panel")
            yield SampleView(id="upload-sample")
        yield Panel(self._failures, id="upload-failures")

    def tick(self) -> None:
        profile = self.services.state.profile
        if profile is not None and not self._recalled and self._has_form:
            self._recalled = True
            self._recall(profile.name)
        handle = self.services.upload
        form = handle is None or (not handle.alive and self._wants_form)
        self.set_class(form, "-form")
        running = not form and handle is not None and handle.alive
        self.set_class(running, "-running")
        self.set_class(running and handle is not None and not handle.elsewhere, "-sample")
        for panel in self.query(Panel):
            panel.redraw()
        self._show_sample()

    def _show_sample(self) -> None:
        upload = self.services.own_upload
        if upload is None or not self.has_class("-sample"):
            return
        plain = self.console.no_color or self.glyphs.name == "ascii"
        for view in self.query(SampleView):
            view.show(upload.preview(), upload.settings.format, plain=plain)

    def _heading(self, width: int, height: int) -> Sequence[Line]:
        return [Paper(width, height, self.glyphs).heading("Plan" if self.has_class("-form") else "Upload")]

    def _failures(self, width: int, height: int) -> Sequence[Line]:
        handle = self.services.upload
        return painting.failure_lines(Paper(width, height, self.glyphs), handle.progress()) if handle else []

    def _paint(self, width: int, height: int) -> Sequence[Line]:
        paper = Paper(width, height, self.glyphs)
        handle = self.services.upload
        if handle is not None and not self.has_class("-form"):
            if handle.alive:
                return painting.progress_lines(paper, handle.progress(), handle.source)
            own = self.services.own_upload
            prefix = own.settings.prefix if own is not None and not handle.elsewhere else ""
            return painting.end_lines(paper, handle.progress(), handle.summary(), handle.source, prefix)
        if self._looking is not None:
            return painting.looking_lines(paper, self._seen)
        if self._plan is not None:
            settings, plan = self._plan
            return painting.plan_lines(paper, plan, settings, self._prefix)
        waiting = notice(self.services.state, self.glyphs, width) or preparation(self.services, self.glyphs)
        return [*waiting, *([Line()] if waiting else []), *painting.form_lines(paper, self._prefix)]

    @property
    def _prefix(self) -> str:
        profile = self.services.profile
        if profile is None:
            return MISSING
        chosen = self.query_one("#prefix", Input).value.strip().strip("/")
        return safe(f"oss://{profile.bucket}/{chosen or profile.dataset_prefix}")

    @property
    def _own(self) -> OwnUploadHandle | None:
        """The upload in hand, where this process does it and it goes on."""
        own, handle = self.services.own_upload, self.services.upload
        return own if own is not None and own.alive and handle is not None and not handle.elsewhere else None

    # The form

    def _settings(self) -> UploadSettings | None:
        """What was typed; None, with a word about it, when it will not do."""
        source = self.query_one("#source", Input).value.strip()
        if not source:
            self.notify("Name a source first, or pick one with o.", severity="warning")
            self.query_one("#source", Input).focus()
            return None
        settings = UploadSettings(
            source=Path(source).expanduser(),
            format=SampleFormat(str(self.query_one("#format", Select).value)),
            size=int(str(self.query_one("#size", Select).value)),
            keep_ratio=self.query_one("#shape", Select).value == "ratio",
            per_shard=int(str(self.query_one("#stored", Select).value)),
            prefix=self.query_one("#prefix", Input).value.strip().strip("/"),
        )
        try:
            settings.preprocessing.check()
        except ConsoleError as error:
            self.tell(error)
            return None
        return settings

    @property
    def _has_form(self) -> bool:
        """Whether the fields are mounted. A Select is only with its label: without it no value can be set."""
        return bool(self.query("#prefix")) and len(self.query("Select #label")) == len(self.query(Select))

    def _recall(self, profile: str) -> None:
        known = memory.recall(FORM, profile)
        recent = known.get("recent") or [""]
        for name, value in (("source", str(recent[0])), ("prefix", str(known.get("prefix", "")))):
            entry = self.query_one(f"#{name}", Input)
            entry.value = entry.value or value  # what was typed before the profile was known stays
        choices = {"format": FORMATS, "size": [(px, str(px)) for px in SIZES], "shape": SHAPES, "stored": STORES}
        for name, offered in choices.items():
            if known.get(name) in {value for _, value in offered}:
                self.query_one(f"#{name}", Select).value = known[name]

    def _recent(self) -> list[str]:
        profile = self.services.profile
        return list(memory.recall(FORM, profile.name).get("recent", ())) if profile else []

    def _remember(self, settings: UploadSettings) -> None:
        profile = self.services.profile
        if profile is None:
            return
        source = str(settings.source)
        recent = [source, *(known for known in self._recent() if known != source)][:_RECENT]
        values = {
            "recent": recent,
            "format": str(settings.format),
            "size": str(settings.size),
            "shape": "ratio" if settings.keep_ratio else "square",
            "stored": str(settings.per_shard),
            "prefix": settings.prefix,
        }
        self.console.remember(FORM, profile.name, values)

    def on_input_submitted(self) -> None:
        self.action_start()

    def on_input_changed(self) -> None:
        self._plan = None

    def on_select_changed(self) -> None:
        self._plan = None

    # The plan

    @work(thread=True, exclusive=True, exit_on_error=False, group="plan")
    def _look(self, settings: UploadSettings, stop: threading.Event) -> None:
        def seen(files: int) -> None:
            self._seen = files

        plan: UploadPlan | None = None
        try:
            plan = self.services.plan_upload(settings, stop, seen)
        except Cancelled:
            pass
        except ConsoleError as error:
            self.app.call_later(self.tell, error)
        self.app.call_later(self._planned, stop, settings, plan)

    def _planned(self, stop: threading.Event, settings: UploadSettings, plan: UploadPlan | None) -> None:
        if self._looking is not stop:
            return  # of a plan that is not wanted any more
        self._looking = None
        self._plan = None if plan is None else (settings, plan)
        self.set_focus(None)
        self.tick()
        self.redraw_bars()

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        handle = self.services.upload
        alive = handle is not None and handle.alive
        if action in {"start", "pick"}:
            ready = not self.services.readonly and isinstance(self.services.state, Ready)
            return False if alive else (True if ready else None)
        if action in {"pause", "cancel"}:
            return alive
        if action in {"parallel", "bandwidth"}:
            return self._own is not None
        if action in {"retry", "new"}:
            over = handle is not None and not alive and not self._wants_form
            return over and (action == "new" or self.services.own_upload is not None) and not self.services.readonly
        return True

    def action_pick(self) -> None:
        typed = Path(self.query_one("#source", Input).value.strip() or Path.home()).expanduser()
        start = typed if typed.is_dir() else Path.home()
        self._wants_form = True
        self.app.push_screen(SourcePicker(start, self._recent()), self._picked)

    def _picked(self, path: Path | None) -> None:
        if path is not None:
            self.query_one("#source", Input).value = str(path)
        self.tick()

    def action_start(self) -> None:
        if self.check_action("start", ()) is not True or self._looking is not None:
            return
        self._wants_form = True
        settings = self._settings()
        if settings is None:
            self.tick()
            return
        if self._plan is not None and self._plan[0] == settings:
            self._begin(settings)
            return
        self._seen, self._plan = 0, None
        self._looking = threading.Event()
        self._look(settings, self._looking)
        self.tick()

    def _begin(self, settings: UploadSettings) -> None:
        if not self._beginning:
            self._beginning = True
            self._start_upload(settings)

    @work(thread=True, group="begin", exit_on_error=False)
    def _start_upload(self, settings: UploadSettings) -> None:
        try:
            self.services.start_upload(settings)
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)
        else:
            self.app.call_from_thread(self._begun, settings)
        finally:
            self._beginning = False

    def _begun(self, settings: UploadSettings) -> None:
        self._plan, self._wants_form = None, False
        self._remember(settings)
        self.tick()
        self.redraw_bars()

    def action_retry(self) -> None:
        upload = self.services.own_upload
        if upload is not None:
            self._begin(upload.settings)

    def action_new(self) -> None:
        self._wants_form = True
        self.tick()
        self.redraw_bars()

    def action_back(self) -> None:
        if self._looking is not None:
            self._looking.set()
            self._looking = None
        elif self.focused is not None:
            self.set_focus(None)
        elif self._plan is not None:
            self._plan = None
        else:
            self._wants_form = False
        self.tick()

    def action_pause(self) -> None:
        handle = self.services.upload
        if handle is None:
            return
        if handle.progress().paused:
            handle.resume()
        else:
            handle.pause()

    def action_cancel(self) -> None:
        handle = self.services.upload
        if handle is not None:
            handle.cancel()

    def action_parallel(self, direction: int) -> None:
        upload = self._own
        if upload is not None:
            now = upload.progress().parallelism
            step = 1 if now + direction < 8 else 4
            upload.set_parallelism(max(1, min(now + direction * step, MAX_PARALLELISM)))

    def action_bandwidth(self) -> None:
        upload = self._own
        if upload is None:
            return
        now = upload.progress().bandwidth
        hint = "MB/s at most, decimals allowed; 0 lifts the cap"
        self.app.push_screen(PromptScreen("Bandwidth", hint, f"{(now or 0) / 1e6:g}", _refuse_number), self._capped)

    def _capped(self, text: str | None) -> None:
        upload = self._own
        if upload is not None and text is not None:
            upload.set_bandwidth(float(text) * 1e6 or None)


def _refuse_number(text: str) -> str:
    try:
        value = msgspec.convert(text, float, strict=False)
    except msgspec.ValidationError:
        return f"{text!r} is no number."
    return "" if 0 <= value < 1e6 else "A number from 0 on is needed."
