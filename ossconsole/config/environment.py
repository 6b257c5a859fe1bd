"""The environment of child processes: without the credentials that only some of them need."""

from __future__ import annotations

import os
from multiprocessing import resource_tracker

_PRIVATE = ("OSS_", "ALIBABA_CLOUD_", "ALIBABACLOUD_", "ALICLOUD_")


def without_credentials() -> dict[str, str]:
    """This process's environment less what may hold credentials."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}


def start_resource_tracker() -> None:
    """Starts multiprocessing's helper, which would start by itself with the first process, and inherit everything.

    Call it on the main thread, before there are others that read the environment.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PRIVATE)}
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.update(hidden)
