"""Going on after the process was stopped, by the shell's job control or a machine that slept."""

from __future__ import annotations

import asyncio
import signal

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver


def take_terminal_again_when_continued(app: App[str]) -> None:
    """Whoever stopped the process may have changed the terminal, so its modes are set anew.

    Textual does that too, but as if it had been told before: a second thread then reads the keys, takes some of them
    away from the first, and keeps the program from ending.
    """
    driver = app._driver  # noqa: SLF001 - no public way leads to it
    if isinstance(driver, LinuxDriver):
        asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, _take, driver)


def _take(driver: LinuxDriver) -> None:
    if not driver._must_signal_resume:  # noqa: SLF001 - set where the app itself has put the terminal back before
        driver.suspend_application_mode()
    driver.resume_application_mode()
