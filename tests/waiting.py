"""Waits of tests: for a condition that has no event, and for the end of a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ossconsole.storage.jobs.job import Job

LIMIT_S = 60.0

JobT = TypeVar("JobT", bound=Job)


def wait_until(condition: Callable[[], bool], every_s: float = 0.005) -> None:
    """Returns once `condition` is true, tested every `every_s` seconds. Raises AssertionError after LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(every_s)


def run_to_end(job: JobT) -> JobT:
    """Starts the job, and returns it once it has ended. Raises AssertionError after LIMIT_S."""
    job.start()
    assert job.wait(LIMIT_S)
    return job
