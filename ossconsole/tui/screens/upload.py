"""UploadScreen: a folder of pictures, prepared and uploaded as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Grid
from textual.widgets import Input, Label, Select

from ossconsole.config.errors import ConsoleError
from ossconsole.tui import actions
from ossconsole.tui.screens.base import ConsoleScreen
from ossconsole.tui.services import UploadRequest, UploadStatus
from ossconsole.tui.text import Line, duration, percent, rate, safe, shorten, size
from ossconsole.tui.widgets.panel import Panel

FORMATS = (("image-u8: a quarter of the bytes", "image-u8"), ("tensor-f32: the tutorial's", "tensor-f32"))
SIZES = (64, 128, 224)


class UploadScreen(ConsoleScreen):
    """A form, and the progress of the upload in hand."""

    SCOPE = "upload"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("upload")]

    def body(self) -> ComposeResult:
        with Grid(id="upload-form"):
            yield Label("Source")
            yield Input(placeholder="folder with train/<class>/*.jpg and val/", compact=True, id="source")
            yield Label("Format")
            yield Select(FORMATS, value="image-u8", allow_blank=False, compact=True, id="format")
            yield Label("Size")
            yield Select([(f"{px} px", px) for px in SIZES], value=224, allow_blank=False, compact=True, id="size")
        yield Panel(self._progress, id="upload-progress")

    def tick(self) -> None:
        for panel in self.query(Panel):
            panel.redraw()

    def _progress(self, width: int, height: int) -> Sequence[Line]:
        rule = self.glyphs.rule
        heading = Line((f"{rule} ", "rule"), ("Upload ", "title")).to(width, "rule", rule)
        handle = self.services.upload
        if handle is None:
            return [heading, Line((" Nothing uploaded in this session. ^s starts.", "dim"))]
        status = handle.status()
        lines = [heading, self._bar(status, width), Line((f" {_counts(status)}", "text"))]
        lines.append(Line((f" {_pace(status)}", "dim")))
        room = max(0, height - len(lines))
        glyphs = self.glyphs
        lines += [
            Line((" ! ", "warn"), (shorten(safe(text), width - 4, glyphs.ellipsis), "text"))
            for text in list(status.problems)[-room:]
        ]
        return lines[:height]

    def _bar(self, status: UploadStatus, width: int) -> Line:
        done = status.uploaded + status.skipped + status.failed
        share = done / status.total if status.total else 0.0
        label = Line((f" {status.state}", "strong"))
        end = Line((f" {percent(share) if status.total else 'scanning'} ", "strong"))
        room = max(0, width - label.width - end.width - 2)
        full = round(share * room)
        label.add("  ").add(self.glyphs.bar_full * full, "primary").add(self.glyphs.bar_empty * (room - full), "rule")
        return label.extend(end)

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        handle = self.services.upload
        alive = handle is not None and handle.alive
        if action == "start":
            return None if alive or self.services.readonly or self.services.profile is None else True
        if action in {"pause", "cancel"}:
            return True if alive else None
        return True

    def on_input_submitted(self) -> None:
        self.action_start()

    def action_start(self) -> None:
        source = self.query_one("#source", Input).value.strip()
        if not source:
            self.notify("Name a folder first.", severity="warning")
            return
        request = UploadRequest(
            source=Path(source).expanduser(),
            sample_format=str(self.query_one("#format", Select).value),
            size=int(str(self.query_one("#size", Select).value)),
        )
        try:
            self.services.start_upload(request)
        except ConsoleError as error:
            self.tell(error)

    def action_pause(self) -> None:
        handle = self.services.upload
        if handle is None:
            return
        if handle.status().state == "paused":
            handle.resume()
        else:
            handle.pause()

    def action_cancel(self) -> None:
        handle = self.services.upload
        if handle is not None:
            handle.cancel()


def _counts(status: UploadStatus) -> str:
    total = f" of {status.total:,}" if status.total is not None else ""
    return f"{status.uploaded:,} uploaded{total}, {status.skipped:,} skipped, {status.failed:,} failed"


def _pace(status: UploadStatus) -> str:
    eta = f", {duration(status.eta_s)} left" if status.eta_s is not None else ""
    return (
        f"{size(status.bytes)} in {duration(status.seconds)}, {rate(status.samples_per_s)} pictures/s, "
        f"{size(status.bytes_per_s)}/s{eta}"
    )
