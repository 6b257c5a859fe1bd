"""Fault injection: which requests fail, how, and for how long. Plain data, which the server applies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Union

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError


class Error(msgspec.Struct, frozen=True, kw_only=True, tag="error", forbid_unknown_fields=True):
    """An error reply in place of the operation. Without `status`, the usual status of `code`."""

    code: str
    status: int = 0
    message: str = ""
    ec: str = ""
    qos_delay_ms: int | None = None
    """Sent as `x-oss-qos-delay-time`, as the service does when it throttles."""


class Reset(msgspec.Struct, frozen=True, kw_only=True, tag="reset", forbid_unknown_fields=True):
    """A TCP reset after `after_bytes` of the reply's body; with 0, before the operation."""

    after_bytes: int = 0


class LostReply(msgspec.Struct, frozen=True, tag="lost-reply", forbid_unknown_fields=True):
    """The operation takes effect, then a TCP reset comes in place of the reply."""


class Truncate(msgspec.Struct, frozen=True, kw_only=True, tag="truncate", forbid_unknown_fields=True):
    """The body ends after `after_bytes`. Content-Length is the full length or, with `quietly`, the short one."""

    after_bytes: int = 0
    quietly: bool = False


class WrongCrc(msgspec.Struct, frozen=True, tag="wrong-crc", forbid_unknown_fields=True):
    """The CRC64 header is not that of the bytes."""


class Corrupt(msgspec.Struct, frozen=True, tag="corrupt", forbid_unknown_fields=True):
    """One byte of the body is changed; the headers are right."""


class Slow(msgspec.Struct, frozen=True, kw_only=True, tag="slow", forbid_unknown_fields=True):
    """The body is sent at this rate."""

    bytes_per_s: float


class Stall(msgspec.Struct, frozen=True, kw_only=True, tag="stall", forbid_unknown_fields=True):
    """Nothing is sent for `seconds` after `after_bytes` of the reply's body (0: before the operation)."""

    after_bytes: int = 0
    seconds: float = 3600.0


class MalformedListing(msgspec.Struct, frozen=True, tag="malformed-listing", forbid_unknown_fields=True):
    """The XML of the reply ends in the middle, with a matching Content-Length."""


Action = Union[Error, Reset, LostReply, Truncate, WrongCrc, Corrupt, Slow, Stall, MalformedListing]  # noqa: UP007 - msgspec, 3.10


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests an action applies to. `key` and `user_agent` are shell patterns; None matches everything.

    Of the matching requests the first `skip` pass, then `times` are hit (None: all), each with `probability`, and
    only within `seconds` of the moment the plan was set.
    """

    action: Action
    method: str | None = None
    operation: str | None = None
    endpoint: EndpointKind | None = None
    key: str | None = None
    user_agent: str | None = None
    probability: float = 1.0
    skip: int = 0
    times: int | None = None
    seconds: float | None = None


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules, tried in order; at most one hits a request. `outages` (seconds) refuse connections to an endpoint
    from now on; `clock_skew_s` shifts the server's clock. `seed` makes probabilities repeatable.
    """

    rules: Sequence[Rule] = ()
    outages: dict[EndpointKind, float] = {}
    clock_skew_s: float = 0.0
    seed: int = 0


def read_plan(path: Path) -> FaultPlan:
    """Reads a fault plan from a JSON file. Raises SettingsError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=FaultPlan)
    except OSError as error:
        raise SettingsError(f"The fault plan {path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise SettingsError(
            f"{path} is not a fault plan: {error}.", remedy="Correct it; see `Rule` for the fields."
        ) from error


@dataclass(frozen=True)
class FaultCandidate:
    """The facts of a request that rules match."""

    method: str
    operation: str
    endpoint: EndpointKind
    key: str
    user_agent: str


@dataclass
class _Armed:
    rule: Rule
    dice: random.Random
    seen: int = 0
    hits: int = 0


class FaultEngine:
    """Applies a plan to one request after the other. Times are seconds of a monotonic clock."""

    def __init__(self, plan: FaultPlan, now: float) -> None:
        self.plan = plan
        self._since = now
        self._armed = [_Armed(rule, random.Random(f"{plan.seed}/{n}")) for n, rule in enumerate(plan.rules)]  # noqa: S311

    @property
    def hits(self) -> list[int]:
        """How many requests each rule has hit."""
        return [armed.hits for armed in self._armed]

    def decide(self, request: FaultCandidate, now: float) -> Action | None:
        """The action for this request; None for none."""
        return next((armed.rule.action for armed in self._armed if self._hits(armed, request, now)), None)

    def _hits(self, armed: _Armed, request: FaultCandidate, now: float) -> bool:
        rule = armed.rule
        if not _matches(rule, request) or (rule.seconds is not None and now - self._since > rule.seconds):
            return False
        armed.seen += 1
        if armed.seen <= rule.skip or (rule.times is not None and armed.hits >= rule.times):
            return False
        if rule.probability < 1.0 and armed.dice.random() >= rule.probability:
            return False
        armed.hits += 1
        return True


def _matches(rule: Rule, request: FaultCandidate) -> bool:
    return (
        rule.method in (None, request.method)
        and rule.operation in (None, request.operation)
        and rule.endpoint in (None, request.endpoint)
        and (rule.key is None or fnmatchcase(request.key, rule.key))
        and (rule.user_agent is None or fnmatchcase(request.user_agent, rule.user_agent))
    )
