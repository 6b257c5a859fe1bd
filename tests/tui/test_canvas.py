"""Canvas: what is sent is what changed, and the screen is right afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from ossconsole.tui.kit.canvas import Canvas, _differences
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
