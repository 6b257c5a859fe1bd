"""UploadScreen: the form, the plan of an upload, its progress and its result."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Grid, Horizontal
from textual.widgets import Input, Label, Select

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import is_folder, typed_path
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.job import MAX_PARALLELISM, UploadSettings
from ossconsole.dataset.upload.plan import UploadPlan
from ossconsole.storage.jobs.threads import Cancelled
from ossconsole.tui.console import Ready
from ossconsole.tui.kit import actions, memory
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.dialogs import DetailScreen, PromptScreen
from ossconsole.tui.kit.jobs import check_bandwidth
from ossconsole.tui.kit.screen import ConsoleScreen, notice, preparation
from ossconsole.tui.kit.text import MISSING, Line, safe, wrap
from ossconsole.tui.upload import panels
from ossconsole.tui.upload.advanced import AdvancedScreen, AdvancedSettings
from ossconsole.tui.upload.panels import PanelArea
from ossconsole.tui.upload.picker import SourcePicker
from ossconsole.tui.upload.pictures import SampleStrip, SampleView

_ORIGINALS = "originals"
_FORMATS: dict[str, dict[str, Any]] = {
    "image-jpeg": {"format": SampleFormat.IMAGE_JPEG},
    _ORIGINALS: {"format": SampleFormat.IMAGE_JPEG, "originals": True},
    "image-u8": {"format": SampleFormat.IMAGE_U8},
    "image-u8 uncropped": {"format": SampleFormat.IMAGE_U8, "keep_ratio": True},
    "tensor-f32": {"format": SampleFormat.TENSOR_F32},
}
"""The settings of each format in the list."""

_SELECTS = {
    "format": ("Format", [(name, name) for name in _FORMATS], "image-jpeg"),
    "size": ("Size", [("default", "0"), *((f"{px} px", str(px)) for px in (64, 96, 128, 160, 224, 256, 384))], "0"),
    "stored": ("Stored", [("objects", "0"), ("tars of 100", "100"), ("tars of 1,000", "1000")], "0"),
}
"""The lists of the form: label, choices (label and value) and default."""
FORM = "upload"
_STRIP_FROM = 40  # rows of the screen
_SAMPLE_FROM = 76  # columns: on fewer, the figures beside the image would be cut
_RECENT = 8


class UploadScreen(ConsoleScreen):
    """Either the form with its plan, or the newest upload."""

    SCOPE = "upload"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("upload")]

    def __init__(self) -> None:
        super().__init__()
        self._plan: tuple[UploadSettings, UploadPlan] | None = None
        self._scan: threading.Event | None = None
        self._files_seen = 0
        self._wants_form = False
        self._starting = False
        self._profile: Profile | None = None
        self._rates = panels.Throughput()
        self._problem = ""
        self._advanced = AdvancedSettings()

    def body(self) -> ComposeResult:
        with Grid(id="upload-form"):
            yield Label("Source")
            yield Input(placeholder="a folder with train/ and val/, an archive, a .csv", compact=True, id="source")
            for name, (label, choices, default) in _SELECTS.items():
                yield Label(label)
                yield Select(choices, value=default, allow_blank=False, compact=True, id=name)
            yield Label("To")
            yield Input(placeholder="the profile's dataset prefix", compact=True, id="prefix")
        yield Panel(self._heading, id="upload-heading")
        with Horizontal(id="upload-top"):
            yield Panel(self._paint, id="upload-panel")
            yield SampleView(id="upload-sample")
        yield Panel(self._lower, id="upload-lower")
        yield SampleStrip(id="upload-strip")

    def tick(self) -> None:
        """Show the form or the upload."""
        profile = self.services.state.profile
        if profile is not None and profile != self._profile and self._has_form:
            self._show_profile(profile)
        handle = self.services.upload
        form = handle is None or (not handle.alive and self._wants_form)
        self.set_class(form, "-form")
        running = not form and handle is not None and handle.alive
        self.set_class(running, "-running")
        if running and handle is not None:
            self._rates.add(self.console.now, handle.progress())
        own = running and handle is not None and not handle.is_remote
        self.set_class(own and self.size.width >= _SAMPLE_FROM, "-sample")
        self.set_class(self.size.height >= _STRIP_FROM, "-strip")
        for panel in self.query(Panel):
            panel.redraw()
        self._show_sample()

    def _show_sample(self) -> None:
        upload = self.services.own_upload
        if upload is None or not self.has_class("-sample"):
            return
        for view in self.query(SampleView):
            view.show(upload.preview(), upload.settings.format, plain=self.plain)
        for strip in self.query(SampleStrip):
            strip.add(self.console.now, upload.preview(), upload.settings.format, plain=self.plain)

    def _heading(self, width: int, height: int) -> Sequence[Line]:
        return [PanelArea(width, height, self.glyphs).heading("Plan" if self.has_class("-form") else "Upload")]

    def _lower(self, width: int, height: int) -> Sequence[Line]:
        handle = self.services.upload
        return panels.lower_lines(PanelArea(width, height, self.glyphs), handle.progress()) if handle else []

    def _paint(self, width: int, height: int) -> Sequence[Line]:
        area = PanelArea(width, height, self.glyphs)
        handle = self.services.upload
        if handle is not None and not self.has_class("-form"):
            if handle.alive:
                return panels.progress_lines(area, handle.progress(), (handle.source, handle.target), self._rates)
            own = self.services.own_upload
            prefix = own.settings.prefix if own is not None and not handle.is_remote else ""
            lines = panels.end_lines(area, handle.progress(), handle.summary(), (handle.source, handle.target), prefix)
            return [*lines[:-1], panels.after_other(handle.source)] if handle.is_remote else lines
        if self._scan is not None:
            return panels.scan_lines(area, self._files_seen)
        if self._plan is not None:
            settings, plan = self._plan
            return panels.plan_lines(area, plan, settings, self._prefix)
        waiting = notice(self.services.state, self.glyphs, width) or preparation(self.services, self.glyphs, width)
        waiting += [Line((f" {part}", "bad")) for part in wrap(safe(self._problem), width - 2) if part]
        ready = self.check_action("start", ()) is True
        return [
            *waiting,
            *([Line()] if waiting else []),
            *panels.form_lines(area, self._prefix, self._advanced.describe(), ready=ready),
        ]

    @property
    def _prefix(self) -> str:
        profile = self.services.profile
        if profile is None:
            return MISSING
        typed = self.query_one("#prefix", Input).value.strip().strip("/")
        return safe(f"oss://{profile.bucket}/{typed or profile.dataset_prefix}")

    # The form

    def _settings(self) -> UploadSettings | None:
        """The settings in the form; None, after a message, where they are not valid."""
        source = self.query_one("#source", Input).value.strip()
        if not source:
            self.notify("Enter a source first, or select one with o.", severity="warning")
            self.query_one("#source", Input).focus()
            return None
        settings = UploadSettings(
            source=typed_path(source),
            size=int(self._selected("size")) if self._has_size else 0,
            per_shard=int(self._selected("stored")),
            prefix=self.query_one("#prefix", Input).value.strip().strip("/"),
            labels=self._advanced.label_files,
            val_split=self._advanced.val_split,
            names=self._advanced.names,
            **_FORMATS[self._selected("format")],
        )
        try:
            settings.preprocessing.check()
        except ConsoleError as error:
            self.show_error(error)
            return None
        return settings

    def _selected(self, name: str) -> str:
        return str(self.query_one(f"#{name}", Select).value)

    @property
    def _has_size(self) -> bool:
        """Whether the selected format has a size: original files have their own."""
        return self._selected("format") != _ORIGINALS

    @property
    def _has_form(self) -> bool:
        """Whether the fields are mounted; a Select accepts a value only once its label is mounted."""
        return bool(self.query("#prefix")) and len(self.query("Select #label")) == len(self.query(Select))

    def _show_profile(self, profile: Profile) -> None:
        """Fill the form with the values last used with the profile; what was planned for another one is discarded."""
        before, self._profile, self._plan = self._profile, profile, None
        self._end_scan()
        remembered = memory.recall(FORM, profile.name)
        recent = remembered.get("recent") or [""]
        for name, value in (("source", str(recent[0])), ("prefix", str(remembered.get("prefix", "")))):
            entry = self.query_one(f"#{name}", Input)
            entry.value = (entry.value if before is None else "") or value  # typed before the profile was known
        for name, (_, choices, _) in _SELECTS.items():
            if remembered.get(name) in {value for _, value in choices}:
                self.query_one(f"#{name}", Select).value = remembered[name]

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
            "prefix": settings.prefix,
            **{name: self._selected(name) for name in _SELECTS},
        }
        self.console.remember(FORM, profile.name, values)

    def _on_input_submitted(self) -> None:
        self.action_start()

    def _on_input_changed(self) -> None:
        self._plan, self._problem = None, ""

    def _on_select_changed(self) -> None:
        self._plan = None
        self.query_one("#size", Select).disabled = not self._has_size

    def _refused(self, error: ConsoleError) -> None:
        """Show why the upload cannot be planned or started; it stays until the form changes."""
        self._problem = str(error)
        self.show_error(error)
        self.tick()

    # The plan

    @work(thread=True, exclusive=True, exit_on_error=False, group="plan")
    def _scan_source(self, settings: UploadSettings, stop: threading.Event) -> None:
        def seen(files: int) -> None:
            self._files_seen = files

        plan: UploadPlan | None = None
        try:
            plan = self.services.plan_upload(settings, stop, seen)
        except Cancelled:
            pass
        except ConsoleError as error:
            self.app.call_later(self._refused, error)
        finally:
            self.app.call_later(self._planned, stop, settings, plan)

    def _planned(self, stop: threading.Event, settings: UploadSettings, plan: UploadPlan | None) -> None:
        if self._scan is not stop:
            return  # this scan was cancelled
        self._scan = None
        self._plan = None if plan is None else (settings, plan)
        self.set_focus(None)
        self.tick()
        self.redraw_bars()

    # Actions

    def label_now(self, action: str) -> str:
        """The pause key continues an upload that is paused."""
        handle = self.services.upload
        return "Continue" if action == "pause" and handle is not None and handle.progress().paused else ""

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        """Show the actions of the form, of the running upload or of its result."""
        handle = self.services.upload
        alive = handle is not None and handle.alive
        if action in {"start", "pick", "advanced"}:
            ready = not self.services.readonly and isinstance(self.services.state, Ready)
            return False if alive else (True if ready else None)
        if action in {"pause", "cancel", "parallel", "bandwidth"}:
            return alive
        if action == "problems":
            return self._plan is not None if self.has_class("-form") else handle is not None
        if action in {"retry", "new"}:
            over = handle is not None and not alive and not self._wants_form
            own = handle is not None and not handle.is_remote  # the settings of another process are not known
            return over and (action == "new" or own) and not self.services.readonly
        return True

    def action_pick(self) -> None:
        """Select the source in a dialog."""
        typed = typed_path(self.query_one("#source", Input).value.strip() or "~")
        start = typed if is_folder(typed) else typed_path("~")
        self._wants_form = True
        self.app.push_screen(SourcePicker(start, self._recent()), self._picked)

    def _picked(self, path: Path | None) -> None:
        if path is not None:
            self.query_one("#source", Input).value = str(path)
        self.tick()

    def action_advanced(self) -> None:
        """Edit the settings that few sources need."""
        self._wants_form = True
        self.app.push_screen(AdvancedScreen(self._advanced), self._with_advanced)

    def _with_advanced(self, settings: AdvancedSettings | None) -> None:
        if settings is not None:
            self._advanced, self._plan, self._problem = settings, None, ""
        self.tick()

    def action_start(self) -> None:
        """Scan the source; once its plan shows, start the upload."""
        if self.check_action("start", ()) is not True or self._scan is not None:
            return
        self._wants_form = True
        settings = self._settings()
        if settings is None:
            self.tick()
            return
        if self._plan is not None and self._plan[0] == settings:
            self._begin(settings)
            return
        self._files_seen, self._plan, self._problem = 0, None, ""
        self._scan = threading.Event()
        self._scan_source(settings, self._scan)
        self.tick()

    def _begin(self, settings: UploadSettings) -> None:
        if not self._starting:
            self._starting = True
            self._start_upload(settings)

    @work(thread=True, group="begin", exit_on_error=False)
    def _start_upload(self, settings: UploadSettings) -> None:
        try:
            self.services.start_upload(settings)
        except ConsoleError as error:
            self.app.call_from_thread(self._refused, error)
        else:
            self.app.call_from_thread(self._begun, settings)
        finally:
            self._starting = False

    def _begun(self, settings: UploadSettings) -> None:
        self._plan, self._wants_form = None, False
        self._remember(settings)
        self.tick()
        self.redraw_bars()

    def action_retry(self) -> None:
        """Upload again what failed or is missing."""
        if (upload := self.services.own_upload) is not None:
            self._begin(upload.settings)

    def action_new(self) -> None:
        """Return to the form."""
        self._wants_form = True
        self.tick()
        self.redraw_bars()

    def action_back(self) -> None:
        """Cancel the scan, or else leave the input, the plan or the form."""
        if self._scan is not None:
            self._end_scan()
        elif self.focused is not None:
            self.set_focus(None)
        elif self._plan is not None:
            self._plan = None
        else:
            self._wants_form = False
        self.tick()

    def _end_scan(self) -> None:
        """Cancel the scan, if there is one."""
        if self._scan is not None:
            self._scan.set()
            self._scan = None

    def action_problems(self) -> None:
        """Show every file with a problem of the plan or of the upload."""
        self.app.push_screen(DetailScreen("Files with problems", "f", self._problem_lines))

    def _problem_lines(self, width: int, height: int) -> Sequence[Line]:
        area, handle = PanelArea(width, height, self.glyphs), self.services.upload
        if handle is not None and not self.has_class("-form"):
            done = handle.summary()
            return panels.problem_lines(area, done.failures, done.failed, (*done.cautions, *done.unused))
        if self._plan is None:
            return panels.problem_lines(area, (), 0, ())
        plan = self._plan[1]
        return panels.problem_lines(area, plan.notes, plan.lost, (*plan.cautions, *plan.unused))

    def action_pause(self) -> None:
        """Pause or resume the upload."""
        handle = self.services.upload
        if handle is None:
            return
        if handle.progress().paused:
            handle.resume()
        else:
            handle.pause()

    def action_cancel(self) -> None:
        """End the upload."""
        if (handle := self.services.upload) is not None:
            handle.cancel()

    def action_parallel(self, direction: int) -> None:
        """Send more (1) or fewer (-1) samples simultaneously."""
        upload = self.services.upload
        if upload is not None:
            now = upload.progress().parallelism
            step = 1 if now + direction < 8 else 4
            upload.set_parallelism(max(1, min(now + direction * step, MAX_PARALLELISM)))

    def action_bandwidth(self) -> None:
        """Set or remove the cap of the bandwidth."""
        upload = self.services.upload
        if upload is None:
            return
        now = upload.progress().bandwidth
        question = "At most this many MB/s, decimals allowed; 0 removes the cap."
        prompt = PromptScreen("Bandwidth", question, f"{(now or 0) / 1e6:g}", check=check_bandwidth, replace=True)
        self.app.push_screen(prompt, self._set_bandwidth)

    def _set_bandwidth(self, text: str | None) -> None:
        upload = self.services.upload
        if upload is not None and upload.alive and text is not None:
            upload.set_bandwidth(float(text) * 1e6 or None)
