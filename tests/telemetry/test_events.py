from __future__ import annotations

import json
import math
from typing import get_args

import msgspec
import pytest

from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState, to_log_line
from tests.telemetry.samples_of_events import epoch_event, one_of_each, step_event


def test_the_samples_cover_every_kind() -> None:
    assert {type(event) for event in one_of_each()} == set(get_args(events.Event))


@pytest.mark.parametrize("event", one_of_each(), ids=lambda event: type(event).__name__)
def test_every_event_survives_its_line(event: events.Event) -> None:
    line = events.encode(event)
    assert b"\n" not in line
    assert events.decode(line) == event
    # The records are searched by the beginning of their lines.
    assert line.startswith(f'{{"event":"{type(event).__struct_config__.tag}","time":'.encode())


def test_the_contract_of_the_step_line() -> None:
    line = json.loads(events.encode(step_event(1)))
    assert line["event"] == "step"
    assert line["endpoint"] == "standard"
    assert {
        *("time", "step", "epoch", "samples", "loss", "lr", "endpoint", "data_wait_s", "step_time_s", "fetch_s"),
        *("bytes", "samples_per_s"),
    } <= set(line)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_is_null_and_stays_readable(loss: float) -> None:
    line = events.encode(step_event(1, loss=loss))
    decoded = events.decode(line)
    assert isinstance(decoded, events.Step)
    assert decoded.loss is None


@pytest.mark.parametrize(("wait", "step", "share"), [(0.3, 0.4, 0.75), (0, 0, 0), (2, 1, 1), (-1, 1, 0)])
def test_wait_fraction(wait: float, step: float, share: float) -> None:
    assert step_event(1, data_wait_s=wait, step_time_s=step).wait_fraction == pytest.approx(share)


def test_an_older_version_timed_no_single_samples() -> None:
    line = json.loads(events.encode(step_event(1, single_s=0.02)))
    assert line.pop("single_s") == 0.02
    assert events.decode(json.dumps(line)) == step_event(1, single_s=None)


def test_an_older_version_did_not_decode_in_the_readers() -> None:
    line = json.loads(events.encode(step_event(1, decode_s=0.1)))
    assert line.pop("decode_s") == 0.1
    assert events.decode(json.dumps(line)) == step_event(1)


def test_a_newer_version_may_add_fields() -> None:
    line = events.encode(step_event(1))[:-1] + b',"added_later":[1]}'
    assert events.decode(line) == step_event(1)


@pytest.mark.parametrize("line", [b"", b"{}", b'{"event":"nothing","time":1}', b'{"event":"step","time":1}', b"[]"])
def test_a_line_that_is_not_an_event_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        events.decode(line)


def test_the_classes_with_the_lowest_top1_are_in_the_log() -> None:
    epoch = epoch_event(1, 3)
    of_four = msgspec.structs.replace(epoch, class_top1={"ant": 1.0, "bee": 0.25, "cat": 0.5, "dog": 0.0})
    of_two = msgspec.structs.replace(epoch, class_top1={"ant": 1.0, "bee": 0.25})
    lines = [to_log_line(each) for each in (of_four, of_two)]
    assert lines[0] is not None
    assert lines[1] is not None
    assert lines[0].text.endswith("top-5 90 %, lowest top-1 dog 0 %, bee 25 %, cat 50 %")
    assert "lowest" not in lines[1].text


def test_final_states() -> None:
    assert {state for state in RunState if state.final} == {RunState.FINISHED, RunState.STOPPED, RunState.FAILED}
