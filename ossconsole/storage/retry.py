"""Retries: one policy for every request to OSS, and the circuit breaker that ends a job during an outage."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
import tenacity

from ossconsole.storage.errors import NO_CREDENTIALS, StorageError

T = TypeVar("T")


class Wait(msgspec.Struct, frozen=True):
    """A pause of `seconds` before a request is sent again, because of `error`."""

    seconds: float
    error: StorageError

    def __str__(self) -> str:
        why = "OSS is throttling" if self.error.throttled else self.error.code or "no answer"
        return f"{why} while {self.error.action}; retry in {self.seconds:.0f} s"


Pause = Callable[[Wait], None]
"""Spends the wait. What it raises ends the request, such as Cancelled of a job."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long a request is sent again after a retriable StorageError.

    No answer, 5xx and damaged replies: `attempts` in all. Throttling (HTTP 429 and 503) does not count as an attempt:
    its waits may add up to `patience_s` seconds. A wait doubles from `first_wait_s` to `longest_wait_s`, half of it
    random; it is longer where OSS requests more, and where that is more than `patience_s` the request has failed.
    """

    attempts: int = 4
    patience_s: float = 180.0
    first_wait_s: float = 0.4  # three waits of at least 1.4 s in all outlast a restart of a second
    longest_wait_s: float = 8.0

    def run(self, request: Callable[[], T], pause: Pause) -> T:
        """The result of `request`. Raises its last StorageError, and what `pause` raises."""
        if self.attempts == 1 and not self.patience_s:
            return request()
        try:
            return request()  # nearly always the last attempt: tenacity alone costs as much time as signing
        except StorageError as error:
            if not error.retriable:
                raise
            failed = [error]

        def attempt() -> T:
            if failed:
                raise failed.pop()
            return request()

        attempts = _Attempts(self)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, StorageError) and error.retriable),
            wait=attempts.wait,
            stop=attempts.used_up,
            sleep=lambda seconds: pause(Wait(seconds, attempts.error)),
            reraise=True,
        )
        return retrying(attempt)


DEFAULT_RETRY = RetryPolicy()
"""For requests without a policy of their own."""

NO_RETRY = RetryPolicy(attempts=1, patience_s=0)
"""For the state of this moment: whether an endpoint answers, why it refuses."""


# Refusals that every other request would meet too.
_FATAL_CODES = frozenset(
    {
        NO_CREDENTIALS,
        "InvalidAccessKeyId",
        "InvalidSecurityToken",
        "NoSuchBucket",
        "RequestTimeTooSkewed",
        "SecurityTokenExpired",
        "SignatureDoesNotMatch",
    }
)


class CircuitBreaker:
    """Ends a job when a failed request means that every other request would fail too; safe from any thread."""

    def __init__(self, max_unanswered: int = 8, max_denied: float = math.inf) -> None:
        """`max_unanswered` requests in a row without any answer are too many.

        So are `max_denied` refusals for want of a permission before any request got through.
        """
        self._max_unanswered = max_unanswered
        self._max_denied = max_denied
        self._unanswered = self._denied = 0

    def succeeded(self) -> None:
        """A request got through."""
        self._unanswered = 0
        self._max_denied = math.inf

    def check(self, error: StorageError) -> None:
        """Raises `error`, which has used up its retries, unless it concerns its own object alone."""
        if error.code in _FATAL_CODES or error.throttled:
            raise error
        self._unanswered = self._unanswered + 1 if error.status == 0 and error.retriable else 0
        self._denied += error.code == "AccessDenied"
        if self._unanswered >= self._max_unanswered or self._denied >= self._max_denied:
            raise error


class WaitNotes:
    """The retries that requests of several threads wait for at the moment."""

    def __init__(self) -> None:
        self._waits: dict[int, Wait] = {}

    @contextlib.contextmanager
    def noted(self, wait: Wait) -> Iterator[None]:
        """Shows `wait` until the block ends."""
        thread = threading.get_ident()
        self._waits[thread] = wait
        try:
            yield
        finally:
            del self._waits[thread]

    @property
    def text(self) -> str:
        """A description of the newest wait; "" while no request waits."""
        waits = list(self._waits.values())
        return str(waits[-1]) if waits else ""


class _Attempts:
    """The attempts of one request."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._backoff = backoff(policy)
        self._failures = 0
        self._waited_s = 0.0
        self.error: StorageError

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt."""
        return max(_error(state).delay_s, self._backoff(state))

    def used_up(self, state: tenacity.RetryCallState) -> bool:
        """Whether the last error ends the request; tenacity calls it after `wait`."""
        self.error = _error(state)
        if self.error.throttled:
            self._waited_s += state.upcoming_sleep
            return self._waited_s > self._policy.patience_s
        self._failures += 1
        return self._failures >= self._policy.attempts or self.error.delay_s > self._policy.patience_s


def backoff(policy: RetryPolicy) -> tenacity.wait.wait_base:
    """The waits of `policy`, where OSS requests none."""
    halves = {"multiplier": policy.first_wait_s / 2, "max": policy.longest_wait_s / 2}
    return tenacity.wait_exponential(**halves) + tenacity.wait_random_exponential(**halves)


def _error(state: tenacity.RetryCallState) -> StorageError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, StorageError)  # noqa: S101 - no other error is retried
    return error
