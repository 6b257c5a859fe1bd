"""Faults: the rules by themselves, and each action as a client meets it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import urlsplit

import msgspec
import oss2
import psutil
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.sandbox import faults, response
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import FaultCandidate, FaultEngine, FaultPlan, Rule
from ossconsole.sandbox.process import SandboxInfo, SandboxProcess
from tests.sandbox.conftest import make_bucket
from tests.sandbox.test_objects import fails
from tests.sandbox.wire import Answer, Signer, call, send
from tests.sandboxed import read_log
from tests.waiting import wait_until

ERROR = faults.Error(code="InternalError")
GET = FaultCandidate("GET", "GetObject", EndpointKind.STANDARD, "dataset/a.pt", "OSSConnector")


def strikes(rule: Rule, requests: list[FaultCandidate], at: float = 0.0, seed: int = 0) -> list[bool]:
    engine = FaultEngine(FaultPlan(rules=[rule], seed=seed), 0.0)
    return [engine.decide(request, at) is not None for request in requests]


@pytest.mark.parametrize(
    ("rule", "hit"),
    [
        (Rule(action=ERROR), True),
        (Rule(action=ERROR, method="GET", operation="GetObject", key="dataset/*", user_agent="OSS*"), True),
        (Rule(action=ERROR, method="PUT"), False),
        (Rule(action=ERROR, operation="HeadObject"), False),
        (Rule(action=ERROR, endpoint=EndpointKind.ACCELERATED), False),
        (Rule(action=ERROR, key="checkpoints/*"), False),
        (Rule(action=ERROR, user_agent="aliyun*"), False),
        (Rule(action=ERROR, probability=0.0), False),
    ],
)
def test_matching(rule: Rule, hit: bool) -> None:
    assert strikes(rule, [GET]) == [hit]


def test_skip_times_and_seconds() -> None:
    rule = Rule(action=ERROR, skip=2, times=2, seconds=60)
    assert strikes(rule, [GET] * 6) == [False, False, True, True, False, False]
    assert strikes(rule, [GET] * 6, at=61) == [False] * 6


def test_probability_is_repeatable_and_about_right() -> None:
    rule = Rule(action=ERROR, probability=0.05)
    first, second = (strikes(rule, [GET] * 4000, seed=7) for _ in range(2))
    assert first == second
    assert 100 < sum(first) < 300
    assert strikes(rule, [GET] * 4000, seed=8) != first


def test_the_first_rule_that_strikes_wins() -> None:
    engine = FaultEngine(FaultPlan(rules=[Rule(action=ERROR, times=1), Rule(action=faults.WrongCrc())]), 0.0)
    assert [engine.decide(GET, 0.0) for _ in range(2)] == [ERROR, faults.WrongCrc()]
    assert engine.hits == [1, 1]


def test_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    rule = {"action": {"type": "slow", "bytes_per_s": 10}, "endpoint": "accelerated", "times": 3}
    path.write_text(json.dumps({"rules": [rule], "outages": {"standard": 2.5}, "clock_skew_s": -60}))
    plan = faults.read_plan(path)
    assert plan.rules[0].action == faults.Slow(bytes_per_s=10)
    assert plan.outages == {EndpointKind.STANDARD: 2.5}
    assert msgspec.json.decode(msgspec.json.encode(plan), type=FaultPlan) == plan
    path.write_text('{"rules": [{"action": {"type": "slow"}}]}')
    with pytest.raises(SettingsError, match="bytes_per_s"):
        faults.read_plan(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        faults.read_plan(tmp_path / "missing")


Arm = Callable[..., None]


@pytest.fixture
def control(info: SandboxInfo) -> Iterator[SandboxControl]:
    control = SandboxControl(info)
    yield control
    control.clear_faults()


@pytest.fixture
def arm(control: SandboxControl, prefix: str) -> Arm:
    """Sets one rule for the keys of this test."""

    def set_rule(action: faults.Action, **criteria: Any) -> None:
        pattern = prefix.replace("[", "[[]") + "*"
        control.set_faults(FaultPlan(rules=[Rule(action=action, key=pattern, **criteria)]))

    return set_rule


DATA = bytes(range(256)) * 8192


@pytest.fixture
def key(bucket: Any, prefix: str) -> str:
    """The key of a 2 MiB object."""
    bucket.put_object(f"{prefix}x", DATA)
    return f"{prefix}x"


def test_error_and_throttling(info: SandboxInfo, bucket: Any, arm: Arm, key: str) -> None:
    arm(faults.Error(code="QpsLimitExceeded", qos_delay_ms=1500), times=1)
    answer = call(info, "GET", key)
    assert (answer.status, answer.code, answer.headers["x-oss-qos-delay-time"]) == (429, "QpsLimitExceeded", "1500")
    assert call(info, "GET", key).body == DATA
    arm(faults.Error(code="InternalError", status=507, message="No space left on device"))
    assert fails(bucket.put_object, key, b"new") == (507, "InternalError")
    assert fails(bucket.head_object, key) == (507, "InternalError")


def test_a_failed_write_changes_nothing_and_a_lost_reply_hides_a_change(
    info: SandboxInfo, control: SandboxControl, arm: Arm, key: str
) -> None:
    for action in (ERROR, faults.Reset()):
        arm(action, method="PUT")
        try:
            assert call(info, "PUT", key, body=b"new").status == 500
        except ConnectionError:
            assert isinstance(action, faults.Reset)
        assert call(info, "GET", key).body == DATA
    arm(faults.LostReply(), method="PUT")
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        call(info, "PUT", key, body=b"new")
    assert call(info, "GET", key).body == b"new"


def test_reset_in_mid_body(info: SandboxInfo, arm: Arm, key: str) -> None:
    arm(faults.Reset(after_bytes=100_000))
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        call(info, "GET", key)


def test_truncated_body(info: SandboxInfo, arm: Arm, key: str) -> None:
    arm(faults.Truncate(after_bytes=100_000))
    with pytest.raises(http.client.IncompleteRead) as caught:
        call(info, "GET", key)
    assert caught.value.partial == DATA[:100_000]
    arm(faults.Truncate(after_bytes=100_000, quietly=True))
    answer = call(info, "GET", key)
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "100000", DATA[:100_000])


def test_wrong_crc_and_corrupt_byte(info: SandboxInfo, bucket: Any, arm: Arm, key: str, tmp_path: Path) -> None:
    right = call(info, "GET", key).headers["x-oss-hash-crc64ecma"]
    arm(faults.WrongCrc())
    answer = call(info, "GET", key)
    assert answer.body == DATA
    assert answer.headers["x-oss-hash-crc64ecma"] != right
    with pytest.raises(oss2.exceptions.InconsistentError):
        bucket.put_object(key, DATA)
    arm(faults.Corrupt(), method="GET")
    answer = call(info, "GET", key)
    assert answer.headers["x-oss-hash-crc64ecma"] == right
    assert [index for index, (a, b) in enumerate(zip(answer.body, DATA, strict=True)) if a != b] == [0]
    with pytest.raises(oss2.exceptions.InconsistentError):
        bucket.get_object_to_file(key, str(tmp_path / "x"))


def test_slow_body(info: SandboxInfo, arm: Arm, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arm(faults.Slow(bytes_per_s=50_000_000))
    assert call(info, "GET", key).body == DATA
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def chunks() -> AsyncIterator[bytes]:
        yield DATA

    async def slowly() -> bytes:
        parts = response._faulty_chunks(MagicMock(), chunks(), faults.Slow(bytes_per_s=100_000))
        return b"".join([part async for part in parts])

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert asyncio.run(slowly()) == DATA
    assert sum(waits) == pytest.approx(len(DATA) / 100_000, rel=0.01)


@pytest.mark.parametrize("after_bytes", [0, 1000])
def test_stall_ends_when_the_client_leaves(
    sandbox: SandboxProcess, info: SandboxInfo, arm: Arm, key: str, after_bytes: int
) -> None:
    arm(faults.Stall(after_bytes=after_bytes, seconds=600))
    parts = urlsplit(info.path_style_endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=0.3)
    path = f"/127/{key}".replace("%", "%25")
    headers = Signer.of(info).headers("GET", f"/127/{key}", {}, {})
    connection.request("GET", path, headers=headers)
    with pytest.raises(TimeoutError):
        connection.getresponse().read()
    connection.close()
    stalled = {"fault": "stall", "key": key}
    wait_until(lambda: any(stalled.items() <= msgspec.structs.asdict(r).items() for r in read_log(sandbox.log_path)))


def test_a_stall_ends_after_its_time(info: SandboxInfo, arm: Arm, key: str) -> None:
    arm(faults.Stall(after_bytes=1000, seconds=0.05))
    assert call(info, "GET", key).body == DATA


@pytest.mark.parametrize("action", [faults.Stall(), faults.Reset()])
def test_what_happened_before_the_operation_does_not_happen_again(action: faults.Action) -> None:
    """A stall before the operation stalled the reply as well: it lasted twice its time."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"data"

    async def sent() -> list[bytes]:
        return [data async for data in response._faulty_chunks(MagicMock(), chunks(), action)]

    assert asyncio.run(asyncio.wait_for(sent(), 5)) == [b"data"]


def test_malformed_listing(info: SandboxInfo, control: SandboxControl, key: str) -> None:
    control.set_faults(FaultPlan(rules=[Rule(action=faults.MalformedListing(), operation="ListObjects", times=1)]))
    with pytest.raises(ET.ParseError):
        ET.fromstring(call(info, "GET").body)
    ET.fromstring(call(info, "GET").body)


def test_outage_of_one_endpoint(info: SandboxInfo, control: SandboxControl, key: str) -> None:
    """Open connections are dropped and new ones refused; the other endpoint goes on, and the outage ends."""
    accelerated = SandboxControl(
        msgspec.structs.replace(info, path_style_endpoint=info.path_style_endpoint.replace("127.0.0.1", "127.0.0.2"))
    )
    accelerated.set_faults(FaultPlan(outages={EndpointKind.STANDARD: 600}))
    with pytest.raises(ConnectionRefusedError):
        call(info, "GET", key)
    assert call(info, "GET", key, accelerated=True).body == DATA
    accelerated.clear_faults()
    wait_until(lambda: answers(info, key))
    accelerated.set_faults(FaultPlan(outages={EndpointKind.STANDARD: 0.05}))
    wait_until(lambda: answers(info, key))


def answers(info: SandboxInfo, key: str) -> bool:
    try:
        return call(info, "GET", key).status == 200
    except ConnectionError:
        return False


def test_clock_skew(info: SandboxInfo, control: SandboxControl, key: str) -> None:
    control.set_faults(FaultPlan(clock_skew_s=-7200))
    answer = call(info, "GET", key)
    assert (answer.status, answer.code) == (403, "RequestTimeTooSkewed")
    server = oss2.http_to_unixtime(answer.headers["date"])
    assert abs(time.time() - 7200 - server) < 60


def test_one_in_twenty_fails_and_retries_get_through(info: SandboxInfo, arm: Arm, prefix: str) -> None:
    arm(faults.Error(code="ServiceUnavailable"), probability=0.2, method="PUT")
    refused = 0
    for number in range(60):
        answer = Answer(503, {}, b"")
        while answer.status == 503:
            answer = call(info, "PUT", f"{prefix}{number}", body=b"x")
            refused += answer.status == 503
    assert 3 <= refused <= 40
    assert SandboxControl(info).status().fault_hits == [refused]


def test_the_log_names_the_fault(sandbox: SandboxProcess, info: SandboxInfo, arm: Arm, key: str) -> None:
    arm(faults.Error(code="AccessDenied"))
    answer = call(info, "GET", key)
    record = next(r for r in read_log(sandbox.log_path) if r.request_id == answer.headers["x-oss-request-id"])
    assert (record.fault, record.code, record.status) == ("error", "AccessDenied", 403)


def test_plan_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(
        json.dumps({"rules": [{"operation": "ListObjects", "action": {"type": "error", "code": "InternalError"}}]})
    )
    with SandboxProcess.start(tmp_path / "dir", unshaped=True, arguments=["--faults", str(path)]) as running:
        assert call(running.info, "GET").status == 500
        assert make_bucket(running.info).put_object("x", b"").status == 200


def test_steering_needs_the_owner(info: SandboxInfo) -> None:
    for headers in ({}, {"Authorization": "Basic eDp5"}):
        answer = send(info.path_style_endpoint, "PUT", "/-/faults", headers=headers, body=b"{}")
        assert answer.status in (401, 403)
    control = SandboxControl(info)
    with pytest.raises(ConsoleError, match="unknown field"):
        control._call("PUT", "faults", {"unknown": 1})
    with pytest.raises(ConsoleError, match="refused"):
        control._call("GET", "nothing")
    assert call(info, "PUT", "-/faults", body=b"an object all the same").status == 200


def test_faults_leave_no_descriptors_behind(
    sandbox: SandboxProcess, info: SandboxInfo, arm: Arm, bucket: Any, key: str
) -> None:
    process = psutil.Process(sandbox.pid)
    bucket.session.session.close()
    wait_until(lambda: not any(entry.status == "ESTABLISHED" for entry in process.net_connections()))
    before = process.num_fds()
    for action in (
        faults.Reset(after_bytes=100),
        faults.Truncate(after_bytes=100),
        faults.Corrupt(),
        faults.LostReply(),
        faults.Stall(after_bytes=100, seconds=0.01),
        ERROR,
    ):
        arm(action)
        for method in ("GET", "HEAD", "PUT"):
            with contextlib.suppress(OSError, http.client.HTTPException):
                call(info, method, key, body=DATA if method == "PUT" else None)
    wait_until(lambda: process.num_fds() <= before)


def test_a_disk_error_is_an_error_reply_although_replies_are_slow(
    sandbox: SandboxProcess, info: SandboxInfo, arm: Arm, key: str, prefix: str
) -> None:
    """It came after the headers: the error reply arrived as bytes of the object."""
    before = set((sandbox.directory / "blobs").iterdir())
    assert call(info, "PUT", f"{prefix}short", body=DATA).status == 200
    (blob,) = set((sandbox.directory / "blobs").iterdir()) - before
    os.truncate(blob, 1000)
    arm(faults.Slow(bytes_per_s=1e9))
    assert call(info, "GET", f"{prefix}short").code == "InternalError"
    assert call(info, "GET", key).body == DATA


def test_a_stalled_request_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with SandboxProcess.start(tmp_path, unshaped=True) as running:
        SandboxControl(running.info).set_faults(FaultPlan(rules=[Rule(action=faults.Stall())]))
        parts = urlsplit(running.info.path_style_endpoint)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        connection.request("GET", "/127/", headers=Signer.of(running.info).headers("GET", "/127/", {}, {}))
        wait_until(lambda: SandboxControl(running.info).status().fault_hits == [1])
        running.stop()
        assert running._process.returncode == 0
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            connection.getresponse()
        connection.close()
