"""The error every layer raises: what happened and where, and what to do next."""

from __future__ import annotations

from ossconsole.config.text import safe_text


class ConsoleError(Exception):
    """A failure a user can act on.

    `message` says what happened and where; `remedy` what to do next. `exit_code` is what a command ends with.
    Both quote what others wrote (names, replies, exceptions of libraries): what a terminal would act on is spelled out.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = safe_text(message)
        self.remedy = safe_text(remedy)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class SettingsError(ConsoleError):
    """Bad usage or settings: the command never started its work."""

    exit_code = 2
