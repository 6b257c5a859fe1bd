"""Replay: a record played shows what the live run showed, at any speed, also while it grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RunRecord
from ossconsole.telemetry.view import RunView
from ossconsole.tui.train import replay as replay_module
from ossconsole.tui.train.replay import SPEEDS, Replay
from tests.tui.fakes import START, Script


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def script() -> Script:
    made = Script(epochs=1).state(RunState.RUNNING, 3).steps(40).switch(EndpointKind.ACCELERATED)
    return made.steps(38, wait=0.05).end_epoch().state(RunState.FINISHED).summary()


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    with RunRecord(path) as written:
        for event in script().events:
            written.append(event)
    return path


def play(replay: Replay, clock: Clock, seconds: float, *, ticks: int = 10) -> None:
    for _ in range(ticks):
        clock.time += seconds / ticks
        replay.pull()


def test_everything_played_equals_everything_reduced(record: Path) -> None:
    whole = RunView()
    for event in script().events:
        whole.apply(event)
    clock = Clock()
    replay = Replay(record, clock=clock)
    play(replay, clock, 60)
    assert replay.at_end
    assert replay.view.step == whole.step
    assert replay.view.comparison == whole.comparison
    assert [line.text for line in replay.view.log] == [line.text for line in whole.log]


@pytest.mark.parametrize("faster", [-2, 0, 1])
def test_the_speed_is_the_ratio_of_the_clocks(record: Path, faster: int) -> None:
    clock = Clock()
    replay = Replay(record, clock=clock)
    for _ in range(abs(faster)):
        replay.faster(1 if faster > 0 else -1)
    play(replay, clock, 1.0)
    assert replay.now - START == pytest.approx(replay.speed, rel=0.01)
    assert replay.speed == SPEEDS[SPEEDS.index(10.0) + faster]


def test_paused_nothing_moves(record: Path) -> None:
    clock = Clock()
    replay = Replay(record, clock=clock)
    play(replay, clock, 1.0)
    step = replay.view.step
    replay.playing = False
    play(replay, clock, 100.0)
    assert replay.view.step == step
    replay.playing = True
    play(replay, clock, 0.5)
    assert replay.view.step > step


def test_skip_and_restart(record: Path) -> None:
    clock = Clock()
    replay = Replay(record, clock=clock)
    replay.skip()
    play(replay, clock, 0.1)
    assert replay.at_end
    for _ in range(2):
        assert replay.now == pytest.approx(replay.view.last_time or 0)
        replay.skip()
        play(replay, clock, 0.1)
    replay.restart()
    assert replay.view.step == 0
    play(replay, clock, 0.1)
    assert not replay.at_end


def test_a_long_record_is_applied_in_portions(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "MAX_EVENTS_PER_PULL", 30)
    replay = Replay(record, clock=Clock())
    replay.playing = False
    replay.skip()
    replay.pull()
    assert replay.has_backlog
    assert replay.skipping
    assert 0 < replay.read_share <= 1
    assert replay.now == replay.view.last_time
    assert 0 < replay.view.step < 30
    for _ in range(10):
        replay.pull()
    assert replay.at_end
    assert not replay.has_backlog
    assert not replay.skipping


def test_a_growing_record_is_followed(tmp_path: Path) -> None:
    events = script().events
    path = tmp_path / "run.jsonl"
    clock = Clock()
    with RunRecord(path) as written:
        for event in events[:30]:
            written.append(event)
        replay = Replay(path, follow=True, clock=clock)
        play(replay, clock, 0.5, ticks=2)
        before = replay.view.step
        assert before > 0
        for event in events[30:60]:
            written.append(event)
        play(replay, clock, 0.5, ticks=2)
        assert replay.view.step > before
    replay.close()
    replay.pull()
