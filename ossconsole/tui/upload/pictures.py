"""The newest samples of an upload as images: one beside the figures, and a strip of the last ones."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from textual.strip import Strip
from textual.widget import Widget

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.contents import show_sample
from ossconsole.dataset.decode import EncodedImage
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.progress import SamplePreview
from ossconsole.tui.kit.scroll import image_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SampleStrip(Widget):
    """The last samples that `add` was given, the newest first, as small images in a row."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._shown: deque[list[Strip]] = deque(maxlen=_MAX_THUMBNAILS)
        self._key = ""
        self._due = 0.0

    def add(self, now: float, picture: SamplePreview | None, fmt: SampleFormat, *, plain: bool) -> None:
        """Show `picture`, too, unless the one before is younger than _THUMBNAIL_S; `now` in seconds.

        Only these samples are decoded, and each of them once: a strip must not slow down the upload, or a slow line.
        """
        _, height = self.size
        if picture is None or picture.key == self._key or now < self._due or not height:
            return
        self._key, self._due = picture.key, now + _THUMBNAIL_S
        pixels = _pixels(picture, fmt, _THUMBNAIL_CELLS, height)
        if pixels is not None:
            self._shown.appendleft(image_rows(pixels, _THUMBNAIL_CELLS, height, self, plain=plain))
            self.refresh()

    def render_line(self, y: int) -> Strip:
        gap = Strip.blank(_THUMBNAIL_GAP, self.rich_style)
        parts = [gap]
        for rows in self._shown:
            row = rows[y] if y < len(rows) else Strip.blank(0)
            row = row.apply_style(self.rich_style)
            parts += [row.adjust_cell_length(_THUMBNAIL_CELLS, self.rich_style), gap]
        return Strip.join(parts).adjust_cell_length(self.size.width, self.rich_style)


_THUMBNAIL_CELLS, _THUMBNAIL_GAP = 12, 1
_THUMBNAIL_S, _MAX_THUMBNAILS = 2.0, 24


class SampleView(Widget):
    """The newest sample as an image."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._strips: list[Strip] = []
        self._shown: tuple[str, int, int] | None = None

    def show(self, picture: SamplePreview | None, fmt: SampleFormat, *, plain: bool) -> None:
        """Draw `picture`, or nothing for None; `plain` draws letters instead of colours."""
        width, height = self.size
        wanted = (picture.key if picture else "", width, height)
        if wanted == self._shown or not width or not height:
            return
        self._shown = wanted
        pixels = _pixels(picture, fmt, width, height) if picture else None
        self._strips = image_rows(pixels, width, height, self, plain=plain) if pixels is not None else []
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._strips):
            return Strip.blank(width, self.rich_style)
        return self._strips[y].apply_style(self.rich_style).adjust_cell_length(width, self.rich_style)


_JPEG_START = b"\xff\xd8\xff"
_MOST_PIXELS = 1_000_000  # of another image than a JPEG: 4K takes 0.4 s to decode, in which no key would do anything


def _pixels(picture: SamplePreview, fmt: SampleFormat, width: int, height: int) -> NDArray[np.uint8] | None:
    is_jpeg = picture.payload.startswith(_JPEG_START)  # decoded at a fraction of its size
    if fmt.encoded and not is_jpeg and picture.height * picture.width > _MOST_PIXELS:
        return None
    try:
        if fmt.encoded:
            return EncodedImage(picture.payload).pixels(width, 2 * height)
        return show_sample(fmt, picture.payload, picture.height, picture.width, basis="just prepared").pixels
    except ConsoleError:
        return None  # a sample of the previous upload, in another format
