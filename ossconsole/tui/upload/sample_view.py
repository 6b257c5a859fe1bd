"""SampleView: the newest prepared sample as a small picture."""

from __future__ import annotations

from textual.strip import Strip
from textual.widget import Widget

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.preview import show_sample
from ossconsole.dataset.scoreboard import Picture
from ossconsole.tui.browse.pictures import half_blocks, letters


class SampleView(Widget):
    """Shows what it is given; a new picture at most as often as `show` is called."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._strips: list[Strip] = []
        self._shown: tuple[str, int, int] | None = None

    def show(self, picture: Picture | None, fmt: SampleFormat, *, plain: bool) -> None:
        """`plain` draws letters where there are no colours."""
        width, height = self.size
        wanted = (picture.key if picture else "", width, height)
        if wanted == self._shown or not width or not height:
            return
        self._shown = wanted
        self._strips = _draw(picture, fmt, width, height, plain=plain) if picture else []
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._strips):
            return Strip.blank(width, self.rich_style)
        return self._strips[y].adjust_cell_length(width, self.rich_style)


def _draw(picture: Picture, fmt: SampleFormat, width: int, height: int, *, plain: bool) -> list[Strip]:
    try:
        sample = show_sample(fmt, picture.payload, picture.height, picture.width, basis="just prepared")
    except ConsoleError:
        return []  # of another format than the upload now in front
    return (letters if plain else half_blocks)(sample.pixels, width, height)
