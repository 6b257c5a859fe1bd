"""What the screens say of the console's state: why there is no bucket to work on yet, and what is being prepared."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ossconsole.config.profiles import FLAGS_NAME, Profile
from ossconsole.config.text import counted
from ossconsole.tui.console import (
    ConsoleState,
    Failed,
    NoCredentials,
    Services,
    Stage,
    StageState,
    Starting,
)
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import Line, safe, wrap


def notice(state: ConsoleState, glyphs: Glyphs, width: int) -> list[Line]:
    """Why there is no bucket to work on, and what to do; nothing once there is one."""
    if state.usable:
        return []
    where = place(state.profile)
    if isinstance(state, NoCredentials):
        line = Line((f" No credentials for {where}. ", "warn"), ("Press ", "text"), ("1", "primary"))
        return [line.add(", then ", "text").add("k", "primary").add(".", "text")]
    if isinstance(state, Failed):
        words = f"{'The sandbox' if state.profile is None else _capital(where)} cannot be used. {state.reason}"
        return [*(Line((f" {part}", "bad")) for part in wrap(safe(words), width - 2)), try_again()]
    if state.profile is None:
        return [Line((f" The sandbox is starting{glyphs.ellipsis}", "dim"))]
    return [Line((f" Looking for the credentials of {where}{glyphs.ellipsis}", "dim"))]


def try_again() -> Line:
    return Line(
        (" Press ", "text"), ("1", "primary"), (", then ", "text"), ("r", "primary"), (", to try again.", "text")
    )


def place(profile: Profile | None) -> str:
    """The profile in words; what was given by flags alone has no name, and goes by its bucket."""
    if profile is None:
        return "the sandbox"
    return f"oss://{profile.bucket}" if profile.name == FLAGS_NAME else f"profile {profile.name}"


def preparation(services: Services, glyphs: Glyphs) -> list[Line]:
    """What is being done for the sample dataset, in a line; nothing once it is there."""
    state = services.state
    if not isinstance(state, Starting) or not state.opened:
        return []
    active = next((stage for stage in stages(services) if stage.state is StageState.ACTIVE), None)
    words = f": {active.label} {active.detail}".rstrip() if active else glyphs.ellipsis
    return [Line((f" Preparing the sample dataset{safe(words)}", "warn"))]


def stages(services: Services) -> Sequence[Stage]:
    """The work before the first run; the upload that is going on tells how far it is."""
    found, upload = services.state.stages, services.upload
    if upload is None or not upload.alive:
        return found
    progress = upload.progress()
    detail = (
        f"{progress.done:,} of {counted(progress.total, 'sample')}"
        if progress.total_known
        else counted(progress.done, "sample")
    )
    return [
        msgspec.structs.replace(stage, detail=detail)
        if stage.state is StageState.ACTIVE and not stage.detail
        else stage
        for stage in found
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
