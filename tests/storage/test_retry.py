"""The retry policy: failures are counted, throttling is waited out, and a wait is shown and can be cancelled."""

from __future__ import annotations

import threading
from email.utils import formatdate

import oss2
import pytest

from ossconsole.storage.errors import StorageError, translate
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.retry import NO_RETRY, CircuitBreaker, RetryPolicy, Wait, WaitNotes

FAILURE = StorageError("no answer", retriable=True)
REFUSAL = StorageError("denied", status=403, code="AccessDenied")
LONG_S = 3600.0


def throttled(delay_s: float = 0.0) -> StorageError:
    return StorageError(
        "slow down",
        status=429,
        code="QpsLimitExceeded",
        retriable=True,
        delay_s=delay_s,
        action="listing oss://b/x",
    )


class Endpoint:
    """Raises `errors` one after the other, then answers."""

    def __init__(self, *errors: StorageError) -> None:
        self.waits: list[Wait] = []
        self._errors = list(errors)

    def request(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        return "answer"

    def run(self, policy: RetryPolicy) -> str:
        return policy.run(self.request, self.waits.append)


def test_throttling_does_not_count_as_a_failure() -> None:
    endpoint = Endpoint(*[throttled(1.0)] * 9, FAILURE, *[throttled(1.0)] * 9)
    assert endpoint.run(RetryPolicy(attempts=2, patience_s=100, longest_wait_s=1)) == "answer"
    assert len(endpoint.waits) == 19


@pytest.mark.parametrize(
    ("policy", "errors", "waits"),
    [
        pytest.param(RetryPolicy(attempts=3), [FAILURE] * 3, 2, id="failures"),
        pytest.param(RetryPolicy(patience_s=10), [throttled(4.0)] * 3, 2, id="throttled for longer than the patience"),
        pytest.param(RetryPolicy(patience_s=10), [throttled(LONG_S)], 0, id="asked to wait for longer"),
        pytest.param(
            RetryPolicy(patience_s=10),
            [StorageError("a gateway", status=504, retriable=True, delay_s=LONG_S)],
            0,
            id="a gateway's Retry-After of an hour",
        ),
        pytest.param(RetryPolicy(), [REFUSAL], 0, id="refused"),
        pytest.param(NO_RETRY, [throttled()], 0, id="once"),
        pytest.param(NO_RETRY, [FAILURE], 0, id="once, no answer"),
    ],
)
def test_when_it_gives_up(policy: RetryPolicy, errors: list[StorageError], waits: int) -> None:
    endpoint = Endpoint(*errors)
    with pytest.raises(StorageError) as caught:
        endpoint.run(policy)
    assert caught.value is errors[-1]
    assert len(endpoint.waits) == waits


def test_waits_grow_are_random_and_keep_to_what_oss_asks() -> None:
    endpoint = Endpoint(*[FAILURE] * 5, throttled(30.0))
    endpoint.run(RetryPolicy(attempts=9, first_wait_s=1.0, longest_wait_s=4.0))
    seconds = [wait.seconds for wait in endpoint.waits]
    for wait, most in zip(seconds, [1, 2, 4, 4, 4], strict=False):
        assert most / 2 <= wait <= most
    assert seconds[-1] == 30.0


def test_what_the_pause_raises_ends_the_request() -> None:
    def cancelled(_wait: Wait) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RetryPolicy().run(Endpoint(throttled()).request, cancelled)


def test_a_wait_says_what_for() -> None:
    notes = WaitNotes()
    with notes.noted(Wait(3.2, throttled())):
        assert notes.text == "OSS is throttling while listing oss://b/x; retry in 3 s"
    assert not notes.text


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"x-oss-qos-delay-time": "700", "Retry-After": "9"}, 0.7, 0.7),
        ({"Retry-After": "9"}, 9, 9),
        ({"retry-after": formatdate(4102444800)}, LONG_S, 1e12),
        ({"Retry-After": formatdate(0)}, 0, 0),
        ({"Retry-After": "soon"}, 0, 0),
        ({"Retry-After": "nan"}, 0, 0),
        ({"Retry-After": "-4"}, 0, 0),
        ({"x-oss-qos-delay-time": "1e999"}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_how_long_oss_asks_to_wait(headers: dict[str, str], least: float, most: float) -> None:
    refusal = oss2.exceptions.ServerError(429, headers, "", {"Code": "QpsLimitExceeded"})
    assert least <= translate(refusal, "listing", "the endpoint").delay_s <= most


class _Waiting(Job):
    """Waits for an hour before its request is sent again."""

    def __init__(self) -> None:
        super().__init__("waits")
        self.began = threading.Event()

    def work(self) -> None:
        self.began.set()
        RetryPolicy(patience_s=2 * LONG_S).run(Endpoint(throttled(LONG_S)).request, self.wait_to_retry)


def test_a_cancel_ends_the_wait_of_a_job() -> None:
    job = _Waiting()
    job.start()
    while not job.waiting:
        assert job.alive
    assert "OSS is throttling" in job.waiting
    job.cancel()
    assert job.wait(60)
    assert (job.state, job.waiting) == (JobState.CANCELLED, "")


def test_the_breaker_opens_after_a_run_of_unanswered_requests() -> None:
    breaker = CircuitBreaker(max_unanswered=3)
    for interruption in (breaker.succeeded, lambda: breaker.check(REFUSAL)):
        breaker.check(FAILURE)
        breaker.check(FAILURE)
        interruption()
    breaker.check(FAILURE)
    breaker.check(FAILURE)
    with pytest.raises(StorageError, match="no answer"):
        breaker.check(FAILURE)


def test_the_breaker_opens_where_nothing_is_permitted_and_not_where_something_was() -> None:
    denied = StorageError("no", status=403, code="AccessDenied")
    breaker = CircuitBreaker(max_denied=2)
    breaker.check(denied)
    with pytest.raises(StorageError, match="no"):
        breaker.check(denied)
    breaker = CircuitBreaker(max_denied=2)
    breaker.succeeded()
    for _ in range(3):
        breaker.check(denied)


@pytest.mark.parametrize(
    "error", [throttled(), StorageError("unknown key", status=403, code="InvalidAccessKeyId")], ids=["throttled", "key"]
)
def test_the_breaker_opens_immediately_where_every_request_would_fail(error: StorageError) -> None:
    with pytest.raises(StorageError):
        CircuitBreaker().check(error)
