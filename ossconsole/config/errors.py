"""The error that every layer raises: what happened and where, and what to do next."""

from __future__ import annotations

from ossconsole.config.text import safe_text


class ConsoleError(Exception):
    """A failure that a user can act on.

    `message` says what happened and where; `remedy` what to do next. Both may quote foreign text (names, replies,
    exceptions of libraries), so unprintable characters are escaped. `exit_code` is that of the command.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = safe_text(message)
        self.remedy = safe_text(remedy)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class SettingsError(ConsoleError):
    """Bad usage or settings: the command did not start its work."""

    exit_code = 2
