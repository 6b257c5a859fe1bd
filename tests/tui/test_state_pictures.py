"""Every screen in the states in which the bucket cannot be worked on yet; 80x24 and 120x40."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from ossconsole.tui.console import ConsoleState, NoCredentials, PreparationStage, StageState, Starting, Unavailable
from tests.tui.conftest import AppMaker
from tests.tui.fakes import REAL, SIMULATED, FakeServices
from tests.tui.fakes_setup import SetupServices
from tests.tui.screens import settle
from tests.tui.snapshots import pictured

pytestmark = pictured
SIZES = ((80, 24), (120, 40))
ALL = ("setup", "browse", "upload", "train")
Compare = Callable[..., bool]
STATES: dict[str, tuple[ConsoleState, tuple[str, ...]]] = {
    "no-credentials": (
        NoCredentials(
            profile=REAL,
            searched=(
                "environment OSS_ACCESS_KEY_ID (not set)",
                "connector ~/.alibabacloud/credentials (none)",
                "ossutil ~/.ossutilconfig (none)",
                "aliyun ~/.aliyun/config.json (none)",
                "ECS RAM role (No answer from the metadata service http://100.100.100.200: timed out)",
            ),
        ),
        ALL,
    ),
    "failed": (
        Unavailable(
            profile=REAL,
            reason="~/.alibabacloud/credentials, line 3: the access key secret is missing. Write it, or enter an "
            "AccessKey by hand.",
        ),
        ("setup", "train"),
    ),
    "looking": (Starting(profile=REAL), ("setup", "browse")),
    "sandbox-starting": (
        Starting(
            stages=(PreparationStage("sandbox", StageState.ACTIVE), PreparationStage("upload", StageState.WAITING))
        ),
        ("setup", "train"),
    ),
    "sandbox-failed": (
        Unavailable(
            stages=(
                PreparationStage(
                    "sandbox", StageState.FAILED, "The sandbox did not start within 20 s. Its log tells more."
                ),
                PreparationStage("upload", StageState.WAITING),
            ),
            reason="The sandbox did not start within 20 s. Its log tells more.",
        ),
        ("browse", "train"),
    ),
    "preparing": (
        Starting(
            profile=SIMULATED,
            opened=True,
            stages=(
                PreparationStage("sandbox", StageState.DONE, "http://127.0.0.1:9000, speeds are simulated"),
                PreparationStage("sample images", StageState.ACTIVE, "400 of 850 drawn"),
                PreparationStage("upload", StageState.WAITING),
            ),
        ),
        ("browse", "upload", "train"),
    ),
}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("state", "mode"), [(state, mode) for state, (_, modes) in STATES.items() for mode in modes])
def test_screen(snap_compare: Compare, make_app: AppMaker, state: str, mode: str, size: tuple[int, int]) -> None:
    standing, _ = STATES[state]

    async def show(pilot: Pilot[Any]) -> None:
        await settle(pilot)  # without credentials the console opens on Setup
        await pilot.press(str(1 + ALL.index(mode)))
        await settle(pilot)
        await settle(pilot)

    assert snap_compare(make_app(SetupServices(standing=standing), mode), terminal_size=size, run_before=show)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_welcome(snap_compare: Compare, make_app: AppMaker, size: tuple[int, int]) -> None:
    stages = (
        PreparationStage("sandbox", StageState.DONE, "http://127.0.0.1:9000, speeds are simulated"),
        PreparationStage("sample images", StageState.ACTIVE, "425 of 850 drawn", 0.5),
        PreparationStage("upload", StageState.WAITING),
    )
    app = make_app(FakeServices(profile=None, stages=stages), "")
    assert snap_compare(app, terminal_size=size, run_before=settle)
