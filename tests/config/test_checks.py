from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from ossconsole.config import checks
from ossconsole.config.checks import Check, CheckJob, CheckStatus, LimitError, limited, ok, run_checks
from ossconsole.config.errors import ConsoleError


def test_jobs_run_side_by_side_and_answer_in_order() -> None:
    meeting = threading.Barrier(2)

    def job(name: str) -> CheckJob:
        def run() -> Sequence[Check]:
            meeting.wait(5)
            return [ok(name, "")]

        return CheckJob((name,), run, 10)

    found = [check.name for checks in run_checks([job("a"), job("b")]) for check in checks]
    assert found == ["a", "b"]


def test_a_job_that_hangs_fails_under_its_own_names_and_holds_nothing_up() -> None:
    release = threading.Event()

    def hang() -> Sequence[Check]:
        release.wait(30)
        return []

    jobs = [CheckJob(("a", "b"), hang, 0.1), CheckJob(("c",), lambda: [ok("c", "fine")], 10)]
    found = [check for checks in run_checks(jobs) for check in checks]
    release.set()
    assert [(check.name, check.status) for check in found] == [
        ("a", CheckStatus.FAIL),
        ("b", CheckStatus.FAIL),
        ("c", CheckStatus.OK),
    ]
    assert "0.1 s" in found[0].detail


@pytest.mark.parametrize(
    ("error", "words"),
    [(ConsoleError("No luck.", remedy="Try."), "No luck."), (ValueError("odd"), "ValueError: odd")],
)
def test_a_job_that_raises_is_a_failed_check(error: Exception, words: str) -> None:
    def run() -> Sequence[Check]:
        raise error

    ((check,),) = run_checks([CheckJob(("a",), run, 5)])
    assert check.status is CheckStatus.FAIL
    assert words in check.detail
    assert check.remedy


def test_limited_gives_results_errors_and_limits() -> None:
    assert limited(5, lambda: 7, "seven") == 7
    with pytest.raises(ZeroDivisionError):
        limited(5, lambda: 1 // 0, "nothing")
    release = threading.Event()
    with pytest.raises(LimitError, match="waiting took longer than"):
        limited(0.05, lambda: release.wait(30), "waiting")
    release.set()


def test_a_slow_check_is_reported_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LONG_S", 0.01)
    reported = threading.Event()
    names: list[tuple[str, ...]] = []

    def work() -> list[Check]:
        reported.wait(60)
        return [ok("a", "fine")]

    def on_wait(job: CheckJob, seconds: float) -> None:
        assert seconds > 0
        names.append(job.names)
        reported.set()

    ((check,),) = run_checks([CheckJob(("a",), work, 60)], on_wait)
    assert check.detail == "fine"
    assert ("a",) in names
