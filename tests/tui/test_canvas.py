"""Canvas: what is sent is what changed, and the screen is right afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import Color as RichColor
from rich.color import ColorSystem
from textual.app import App, ComposeResult
from textual.color import Color
from textual.theme import Theme

from ossconsole.tui.kit.canvas import OWN, ROTATION, Canvas, _differences, theme_for
from ossconsole.tui.kit.scroll import in_256_colours
from ossconsole.tui.kit.text import Line

WIDTH = 24
PIECES = st.lists(st.tuples(st.text("ab目 ", min_size=1, max_size=6), st.sampled_from(["text", "dim"])), max_size=6)
LINES = st.lists(PIECES, max_size=4)


def cells(lines: Sequence[Line]) -> list[list[tuple[str, str]]]:
    """A character and style per cell; the second cell of a wide character is empty."""
    found = []
    for line in lines:
        row: list[tuple[str, str]] = []
        for text, style in line.pieces:
            for character in text:
                row += [(character, style), ("", style)] if character == "目" else [(character, style)]
        found.append(row)
    return found


def made(rows: Sequence[Sequence[tuple[str, str]]]) -> list[Line]:
    return [Line(*row).to(WIDTH) for row in rows]


@given(before=LINES, after=LINES)
def test_sending_the_differences_makes_the_new_screen(
    before: list[list[tuple[str, str]]], after: list[list[tuple[str, str]]]
) -> None:
    height = max(len(before), len(after))
    before += [[]] * (height - len(before))
    after += [[]] * (height - len(after))
    old, new = made(before), made(after)
    screen, wanted = cells(old), cells(new)
    for region in _differences(old, new, WIDTH):
        screen[region.y][region.x : region.right] = wanted[region.y][region.x : region.right]
    assert screen == wanted


def test_nothing_changed_is_nothing_sent() -> None:
    assert _differences(made([[("same", "text")]]), made([[("same", "text")]]), WIDTH) == []


def test_cells_between_two_changes_are_not_sent() -> None:
    old = made([[("1", "text"), (" of many ", "dim"), ("2", "text")]])
    new = made([[("3", "text"), (" of many ", "dim"), ("4", "text")]])
    assert [(region.x, region.width) for region in _differences(old, new, WIDTH)] == [(0, 1), (10, 1)]


@pytest.mark.parametrize("theme", OWN, ids=lambda theme: theme.name)
def test_every_text_of_a_theme_has_a_contrast_of_at_least_4_5(theme: Theme) -> None:
    """WCAG 2.1, success criterion 1.4.3; in a variant for 256 colours, of the colours that the terminal shows."""
    names = ("primary", "secondary", "accent", "success", "warning", "error", "foreground")
    colours = {name: getattr(theme, name) for name in names} | {"dim": theme.variables["dim"]}
    grounds = (theme.background, theme.surface, theme.panel, theme.variables["cursor"])
    for name, colour in colours.items():
        for ground in grounds:
            assert contrast(shown_colour(colour, theme), shown_colour(ground, theme)) >= 4.5, (name, ground)
    assert contrast(shown_colour(theme.background, theme), shown_colour(theme.primary, theme)) >= 4.5


@pytest.mark.parametrize("theme", OWN, ids=lambda theme: theme.name)
def test_scroll_bars_show_and_have_no_colour_of_their_own(theme: Theme) -> None:
    """WCAG 2.1, 1.4.11. Behind a dialog a bluish thumb would be navy in 256 colours, beside grey text."""
    colours = theme.to_color_system().generate()
    thumb, track = colours["scrollbar"], colours["scrollbar-background"]
    assert contrast(shown_colour(thumb, theme), shown_colour(track, theme)) >= 3
    assert track.lower() == theme.panel
    if theme.name.endswith("-256"):
        dimmed = Color.parse(thumb).blend(Color.parse(theme.background), 0.6)
        assert len(set(RichColor.from_rgb(*dimmed.rgb).downgrade(ColorSystem.EIGHT_BIT).get_truecolor())) == 1


def shown_colour(text: str | None, theme: Theme) -> tuple[int, ...]:
    colour = RichColor.from_rgb(*Color.parse(text or "").rgb)
    if not theme.name.endswith("-256"):
        return tuple(colour.get_truecolor())
    mapped = tuple(colour.downgrade(ColorSystem.EIGHT_BIT).get_truecolor())
    assert max(abs(one - other) for one, other in zip(mapped, colour.get_truecolor(), strict=True)) <= 18
    return mapped


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: tuple[int, ...]) -> float:
    linear = [
        value / 12.92 if (value := part / 255) <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for part in colour
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_theme_has_a_variant_for_the_colours_of_the_terminal() -> None:
    names = {system: theme_for("console-light", system) for system in ("truecolor", "256", "standard", None)}
    assert names == {
        "truecolor": "console-light",
        "256": "console-light-256",
        "standard": "ansi-light",
        None: "console-light",
    }
    known = {theme.name for theme in OWN} | {"ansi-dark", "ansi-light"}
    assert {theme_for(name, "256") for name in ROTATION} <= known


def test_an_image_in_256_colours_has_no_speckles() -> None:
    """Nearly grey pixels stay nearly grey, and each colour is one that Rich shows as it is."""
    noise = np.random.default_rng(5).integers(-6, 7, (40, 40, 3))
    grey = (np.linspace(10, 245, 40)[:, None, None] + noise).clip(0, 255).astype(np.uint8)
    found = in_256_colours(grey)
    assert (found.max(axis=-1).astype(int) - found.min(axis=-1)).max() == 0
    assert np.abs(found.astype(int) - grey).mean() < 12
    red = in_256_colours(np.full((1, 1, 3), (200, 30, 30), np.uint8))[0, 0]
    assert red[0] > 150 > 2 * red[1]


class Shown(App[None]):
    """One canvas whose lines the test sets."""

    lines: Sequence[Line] = ()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return {"dim": "#808080"}

    def compose(self) -> ComposeResult:
        app = self

        class Fixed(Canvas):
            def paint(self, _width: int, _height: int) -> Sequence[Line]:
                return app.lines

        yield Fixed()


async def test_lines_that_do_not_fit_are_cut_and_missing_ones_blank() -> None:
    app = Shown()
    app.lines = [Line(("x" * 100, "text"))]
    async with app.run_test(size=(WIDTH, 3)) as pilot:
        canvas = app.query_one(Canvas)
        canvas.styles.height = 3
        await pilot.pause()
        app.lines = [Line(("y" * 100, "text")), Line(("z", "dim"))]
        canvas.redraw()
        await pilot.pause()
        assert [canvas.render_line(at).text.rstrip() for at in range(3)] == ["y" * WIDTH, "z", ""]
