"""The tour: each caption is beside a panel that is visible, at any size, and the console works behind it."""

from __future__ import annotations

import pytest
from textual.geometry import Region, Size

from ossconsole.tui.help import HelpScreen
from ossconsole.tui.tour import STEPS, Tour, beside
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeRun, FakeServices
from tests.tui.screens import settle, shown
from tests.tui.test_train_pictures import decided


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40), (200, 60)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_each_caption_points_at_its_panel(make_app: AppMaker, size: tuple[int, int]) -> None:
    script = decided()
    app = make_app(FakeServices(run=FakeRun(list(script.events))), now=script.time)
    seen = []
    async with app.run_test(size=size, notifications=True) as pilot:
        await settle(pilot)
        await pilot.press("W")
        while not any("The tour is over." in note.message for note in app._notifications):
            await settle(pilot)
            tour = next(iter(app.screen.query(Tour)), None)
            step = next((step for step in STEPS if tour and step.title in str(tour.border_title)), None)
            # Otherwise the next screen is being composed, or its caption is not painted yet.
            if tour is None or step is None or " ".join(step.text.split()[:4]) not in shown(app):
                continue
            title = step.title
            assert app.screen.region.contains_region(tour.region)
            assert len(app.screen.query(".-toured")) == 1
            if title not in seen:
                seen.append(title)
                await pilot.press("enter")
        assert not app.screen.query(".-toured")
        assert app.current_mode == STEPS[0].mode
    wanted = [step.title for step in STEPS]
    assert [title for title in wanted if title in seen] == seen
    assert len(seen) >= (len(wanted) if size[0] >= 120 else len(wanted) - 4)


async def test_other_keys_go_to_the_screen_and_escape_ends_it(make_app: AppMaker) -> None:
    script = decided()
    run = FakeRun(list(script.events))
    app = make_app(FakeServices(run=run), now=script.time, tour=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await settle(pilot)
        assert app.screen.query_one(Tour)
        await pilot.press("c")
        assert run.asked == [("checkpoint",)]
        await pilot.press("enter", "left", "escape")
        await settle(pilot)
        assert not app.screen.query(Tour)
        assert not app.screen.query(".-toured")


@pytest.mark.parametrize(
    ("target", "place"),
    [
        (Region(0, 1, 80, 3), (2, 4, True)),
        (Region(40, 14, 40, 8), (30, 10, False)),
        (Region(0, 1, 80, 22), (2, 19, False)),
    ],
)
def test_a_caption_is_below_its_panel_or_above_or_over_its_end(target: Region, place: tuple[int, int, bool]) -> None:
    assert beside(target, Size(50, 4), Size(80, 24)) == place


async def test_a_caption_closed_while_the_terminal_is_too_small_takes_no_key_later(make_app: AppMaker) -> None:
    app = make_app(FakeServices(run=FakeRun()))
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await pilot.press("W")
        await pilot.pause()
        assert app.screen.query(Tour)
        await pilot.resize_terminal(40, 12)
        await pilot.pause()
        for tour in app.screen.query(Tour):
            tour.close()
        await pilot.pause()
        await pilot.resize_terminal(100, 40)
        await settle(pilot)
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
