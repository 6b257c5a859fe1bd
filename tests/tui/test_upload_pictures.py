"""The Upload screen as it looks: form, plan, under way, paused, failing, ended; 80x24, and wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from textual.pilot import Pilot
from textual.widgets import Input

from ossconsole.dataset.sample_data import draw
from ossconsole.dataset.upload.progress import Phase, SamplePreview
from tests.tui.conftest import AppMaker
from tests.tui.fakes import FakeServices
from tests.tui.screens import settle
from tests.tui.snapshots import pictured
from tests.tui.test_upload import PLAN, ended, running

pytestmark = pictured
WIDE = ("plan", "running")
"""The states that look different where there is more room."""
Compare = Callable[..., bool]


def with_picture(**changes: object) -> FakeServices:
    services = running(**changes)
    pixels = draw("disc", np.random.default_rng(3))
    payload = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90)
    picture = SamplePreview("train/disc/1.jpg", pixels.shape[0], pixels.shape[1], payload)
    assert services.own_upload is not None
    services.own_upload.sample = picture
    return services


STATES: dict[str, Callable[[], FakeServices]] = {
    "form": FakeServices,
    "plan": lambda: FakeServices(plan=PLAN),
    "running": lambda: with_picture(classes=(("checks", 40), ("disc", 31), ("rings", 19)), class_count=3),
    "paused": lambda: with_picture(paused=True, eta_s=None, bottleneck=None, sending=0, bandwidth=2.5e6),
    "done": ended,
    "failed": lambda: ended(
        Phase.FAILED, error="No answer from the standard endpoint http://0.0.1:9000. Check it on the Setup screen."
    ),
}


@pytest.mark.parametrize(
    ("state", "size"),
    [*((state, (80, 24)) for state in STATES), *((state, (120, 40)) for state in WIDE)],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
def test_screen(snap_compare: Compare, make_app: AppMaker, size: tuple[int, int], state: str) -> None:
    async def prepare(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        if state == "plan":
            pilot.app.screen.query_one("#source", Input).value = "/data/pictures"
            await pilot.press("ctrl+s")
        await settle(pilot)

    assert snap_compare(make_app(STATES[state](), "upload"), terminal_size=size, run_before=prepare)


@pytest.mark.parametrize("look", ["light", "no colour", "ascii"])
def test_looks(snap_compare: Compare, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    from ossconsole.tui.kit.glyphs import ASCII

    options: dict[str, object] = {"theme": "console-light"} if look == "light" else {}
    if look == "no colour":
        monkeypatch.setenv("NO_COLOR", "1")
    if look == "ascii":
        options["glyph_set"] = ASCII
    app = make_app(with_picture(), "upload", **options)
    assert snap_compare(app, terminal_size=(80, 24), run_before=settle)
