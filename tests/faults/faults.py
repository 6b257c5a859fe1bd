"""The faults of the outside world, as plans of the sandbox, and what each must be called when it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox.faults import (
    Action,
    Corrupt,
    Error,
    FaultPlan,
    LostReply,
    MalformedListing,
    Reset,
    Rule,
    Slow,
    Stall,
    Truncate,
    WrongCrc,
)

READS = ("GetObject",)
WRITES = ("PutObject", "UploadPart")
LISTS = ("ListObjects",)

PlanMaker = Callable[[Sequence[str], int | None], FaultPlan]


@dataclass(frozen=True)
class Fault:
    """`plan(operations, times)` breaks the first `times` requests (None: all) of these kinds.

    `words` is one of the texts that a message about it must have. `endless` is False for what slows down and ends well,
    which `outlasted` says of single operations: the connector goes on where a body broke off, and the checksum of a
    sample is the manifest's and not the reply's.
    """

    name: str
    plan: PlanMaker
    words: tuple[str, ...]
    operations: tuple[str, ...] = (*READS, *WRITES, *LISTS)
    fatal: bool = False
    endless: bool = True
    outlasted: tuple[str, ...] = ()


def _rules(action: Action, key: str | None = None) -> PlanMaker:
    def plan(operations: Sequence[str], times: int | None) -> FaultPlan:
        rules = [Rule(action=action, operation=operation, times=times, key=key) for operation in operations]
        return FaultPlan(rules=rules)

    return plan


def _outage(_operations: Sequence[str], times: int | None) -> FaultPlan:
    return FaultPlan(outages={EndpointKind.STANDARD: 3600.0 if times is None else 1.0})


def _skew(_operations: Sequence[str], _times: int | None) -> FaultPlan:
    return FaultPlan(clock_skew_s=3600.0)


_BROKEN = ("reset", "broken", "closed", "Connection", "IncompleteRead", "bytes", "errno", "cannot be read")


def _error(code: str, key: str | None = None, *, status: int = 0, qos_delay_ms: int | None = None) -> PlanMaker:
    return _rules(Error(code=code, status=status, qos_delay_ms=qos_delay_ms), key)


def _slow(operations: Sequence[str], times: int | None) -> FaultPlan:
    """Some seconds for each body, whatever its size."""
    rates = (("*large*", 2e6), (None, 4000.0))
    return FaultPlan(
        rules=[
            Rule(action=Slow(bytes_per_s=rate), operation=operation, times=times, key=key)
            for operation in operations
            for key, rate in rates
        ]
    )


def _throttled_for_a_while(operations: Sequence[str], _times: int | None) -> FaultPlan:
    """More often than any request is tried after a failure."""
    return _error("QpsLimitExceeded", status=429)(operations, 8)


FAULTS = (
    Fault("connection refused", _outage, ("refused", "errno")),
    Fault("reset mid-body", _rules(Reset(after_bytes=200)), _BROKEN, (*READS, *LISTS)),
    Fault("reset before the reply", _rules(Reset()), _BROKEN),
    Fault("reply lost", _rules(LostReply()), _BROKEN, WRITES),
    Fault("truncated body", _rules(Truncate(after_bytes=200)), _BROKEN, (*READS, *LISTS), outlasted=("training",)),
    Fault(
        "wrong CRC",
        _rules(WrongCrc()),
        ("CRC64", "checksum", "errno"),
        (*READS, *WRITES, "HeadObject"),
        outlasted=("training",),
    ),
    Fault("one wrong byte", _rules(Corrupt()), ("CRC64", "checksum", "errno"), READS),
    Fault("slow body", _slow, (), (*READS, *LISTS), endless=False),
    Fault("silent stall", _rules(Stall()), ("timed out", "within", "errno")),
    Fault("403, key rotated", _error("InvalidAccessKeyId"), ("InvalidAccessKeyId",), fatal=True),
    Fault("STS expired", _error("SecurityTokenExpired"), ("SecurityTokenExpired",), fatal=True),
    Fault(
        "404 of a sample",
        _error("NoSuchKey", "*001*", status=404),
        ("NoSuchKey", "not in the bucket"),
        READS,
        fatal=True,
    ),
    Fault("429 throttled", _error("QpsLimitExceeded", qos_delay_ms=100), ("QpsLimitExceeded",)),
    Fault("503 throttled", _error("ServiceUnavailable", qos_delay_ms=100), ("ServiceUnavailable",)),
    Fault("throttled for a while", _throttled_for_a_while, ("QpsLimitExceeded", "Waiting"), endless=False),
    Fault("500", _error("InternalError"), ("InternalError",)),
    Fault("malformed listing", _rules(MalformedListing()), ("cannot be read",), LISTS),
    Fault("clock skew", _skew, ("RequestTimeTooSkewed",), fatal=True),
)
NAMES = tuple(fault.name for fault in FAULTS)
