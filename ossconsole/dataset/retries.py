"""Retries of an upload: with growing waits that a cancel ends at once, and counted where the screen sees them."""

from __future__ import annotations

from collections.abc import Callable

import tenacity

from ossconsole.dataset.flow import Gate
from ossconsole.dataset.scoreboard import Scoreboard
from ossconsole.storage.errors import StorageError

_ATTEMPTS = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 8.0
# Refusals that concern every object alike.
_FATAL_CODES = frozenset(
    {
        "InvalidAccessKeyId",
        "InvalidSecurityToken",
        "NoSuchBucket",
        "RequestTimeTooSkewed",
        "SecurityTokenExpired",
        "SignatureDoesNotMatch",
    }
)


def retrying(gate: Gate, board: Scoreboard, is_over: Callable[[], bool]) -> tenacity.Retrying:
    """Retries what is retriable; a wait ends early once `is_over`, and raises Stopped when the gate is stopped."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, StorageError) and error.retriable),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=_wait,
        sleep=lambda seconds: gate.wait_until(is_over, seconds),
        before_sleep=lambda _: board.retried(),
        reraise=True,
    )


class Refusals:
    """Tells a refusal of one object from trouble that would meet every other one too."""

    def __init__(self, give_up_after: int) -> None:
        """Gives up after so many objects in a row that got no answer at all."""
        self._give_up_after = give_up_after
        self._silent = 0

    def accepted(self) -> None:
        self._silent = 0

    def weigh(self, error: StorageError) -> None:
        """Raises the error when going on makes no sense."""
        if error.code in _FATAL_CODES:
            raise error
        if error.status == 0 and error.retriable:
            self._silent += 1
            if self._silent >= self._give_up_after:
                raise error


_backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.delay_s if isinstance(error, StorageError) else 0.0
    return max(asked, _backoff(state))
