"""The entries of the command palette: our actions, and none of Textual's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from textual.command import DiscoveryHit, Hit, Hits, Provider

from ossconsole.tui.kit import actions
from ossconsole.tui.kit.actions import KeyAction
from ossconsole.tui.kit.screen import ConsoleScreen


class ActionProvider(Provider):
    """The command palette: the actions of the screen below it, and those of the App."""

    def _valid(self) -> list[KeyAction]:
        screen = self.screen
        known = screen.actions() if isinstance(screen, ConsoleScreen) else list(actions.of("app"))
        return [
            action
            for action in known
            if action.name != "command_palette" and (action.scope == "app" or screen.check_action(action.name, ()))
        ]

    async def discover(self) -> Hits:
        """All actions that work now."""
        for action in self._valid():
            yield DiscoveryHit(self._title(action), self._run(action), help=action.help)

    async def search(self, query: str) -> Hits:
        """The actions whose title or help matches."""
        matcher = self.matcher(query)
        for action in self._valid():
            title = self._title(action)
            score = max(matcher.match(title), matcher.match(action.help))
            if score > 0:
                yield Hit(score, matcher.highlight(title), self._run(action), help=action.help)

    @staticmethod
    def _title(action: KeyAction) -> str:
        return f"{actions.SCOPE_TITLES[action.scope]}: {action.label} ({action.key_text})"

    def _run(self, action: KeyAction) -> Callable[[], Awaitable[None]]:
        namespace = self.app if action.scope == "app" else self.screen

        async def run() -> None:
            await self.app.run_action(action.call, namespace)

        return run
