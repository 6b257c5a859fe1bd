"""SetupScreen: the profile setting by setting, the credentials, and whether the endpoints answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.credentials import Credentials
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.secret import mask_key_id
from ossconsole.tui import actions
from ossconsole.tui.screens.base import ConsoleScreen
from ossconsole.tui.text import Line, moment, safe, shorten_middle, wrap
from ossconsole.tui.widgets.panel import Panel

LABEL = 22


class SetupScreen(ConsoleScreen):
    """Read-only view of what is in force, and a check of it."""

    SCOPE = "setup"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("setup")]

    def __init__(self) -> None:
        super().__init__()
        self._credentials: Credentials | None = None
        self._credentials_problem = ""
        self._answers: dict[EndpointKind, str] = {}
        self._checking = False

    def body(self) -> ComposeResult:
        yield Panel(self._page, id="setup")

    def on_mount(self) -> None:
        self._load_credentials()

    def tick(self) -> None:
        if self._credentials is None and not self._credentials_problem and self.services.profile is not None:
            self._load_credentials()
        for panel in self.query(Panel):
            panel.redraw()

    @work(thread=True, exclusive=True, group="credentials", exit_on_error=False)
    def _load_credentials(self) -> None:
        if self.services.profile is None:
            return
        try:
            self._credentials = self.services.credentials()
        except ConsoleError as error:
            self._credentials_problem = safe(str(error))

    def action_check(self) -> None:
        if self.services.profile is not None and not self._checking:
            self._answers = {}
            self._checking = True
            self._check()

    @work(thread=True, exclusive=True, group="check", exit_on_error=False)
    def _check(self) -> None:
        """Ask the bucket through each endpoint."""
        profile = self.services.profile
        for kind in profile.endpoints if profile else ():
            self._answers[kind] = self._ask(kind)
        self._checking = False

    def _ask(self, kind: EndpointKind) -> str:
        """Empty where the bucket answers, else why it does not."""
        try:
            self.services.store(kind).head_bucket()
        except ConsoleError as error:
            return str(error)
        return ""

    # Drawing

    def _page(self, width: int, height: int) -> Sequence[Line]:
        lines = [*self._profile(width), Line(), *self._keys(width), Line(), *self._endpoints(width)]
        return lines[:height]

    def _heading(self, title: str, width: int) -> Line:
        rule = self.glyphs.rule
        return Line((f"{rule} ", "rule"), (f"{title} ", "title")).to(width, "rule", rule)

    def _profile(self, width: int) -> list[Line]:
        profile = self.services.profile
        if profile is None:
            return [self._heading("Profile", width), Line((" The sandbox is starting.", "dim"))]
        lines = [self._heading("Profile", width)]
        if profile.simulated:
            lines.append(Line((" sandbox: simulated", "warn"), (" no profile is in use; figures are shaped.", "dim")))
        for setting in self.services.settings():
            value = shorten_middle(safe(setting.value), width - LABEL - len(setting.origin) - 4)
            line = Line((f" {setting.name}", "dim")).to(LABEL).add(value, "text")
            lines.append(line.right(Line((f"{safe(setting.origin)} ", "dim")), width))
        return lines

    def _keys(self, width: int) -> list[Line]:
        lines = [self._heading("Credentials", width)]
        if self._credentials_problem:
            return [*lines, *(Line((f" {part}", "bad")) for part in wrap(self._credentials_problem, width - 2))]
        found = self._credentials
        if found is None:
            return [*lines, Line((f" looking for them{self.glyphs.ellipsis}", "dim"))]
        rows = [
            ("AccessKey ID", mask_key_id(found.access_key_id)),
            ("AccessKey secret", str(found.access_key_secret)),
            ("security token", str(found.security_token) if found.security_token else "none"),
            ("from", found.source),
            ("ends", moment(found.expiration.timestamp()) if found.expiration else "never"),
        ]
        return [*lines, *(Line((f" {name}", "dim")).to(LABEL).add(safe(value), "text") for name, value in rows)]

    def _endpoints(self, width: int) -> list[Line]:
        profile = self.services.profile
        lines = [self._heading("Endpoints", width)]
        for kind in EndpointKind:
            url = profile.endpoint(kind) if profile else None
            line = Line((f" {self.glyphs.named(kind)}", str(kind))).to(LABEL)
            line.add(safe(url or "none in this profile"), "text" if url else "dim")
            lines.append(line)
            if url:
                lines += self._answer(kind, width)
        return lines

    def _answer(self, kind: EndpointKind, width: int) -> list[Line]:
        if kind in self._answers:
            problem = self._answers[kind]
            if not problem:
                return [Line().to(LABEL).add(f"{self.glyphs.done} the bucket answers", "good")]
            return [Line().to(LABEL).add(part, "bad") for part in wrap(safe(problem), width - LABEL - 1)]
        words = f"checking{self.glyphs.ellipsis}" if self._checking else "press c to check"
        return [Line().to(LABEL).add(words, "dim")]
