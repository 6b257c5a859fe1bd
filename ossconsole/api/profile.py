"""The profile of a script, opened as a command opens it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from ossconsole.cli.options import OpenTarget, Target

log = logging.getLogger(__name__)


def open_profile(resources: contextlib.ExitStack, flags: Mapping[str, str]) -> OpenTarget:
    """The bucket and credentials of a profile; `flags` are the values that replace its own, "" for none.

    The sandbox is started where no profile is active, and ends with `resources`. Raises ConsoleError.
    """
    target = Target({name: value for name, value in flags.items() if value})
    return resources.enter_context(target.open(say=log.info))
