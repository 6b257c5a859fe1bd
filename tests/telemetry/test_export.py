from __future__ import annotations

import csv
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry.export import export_csv, export_json, export_tensorboard
from tests.telemetry.samples_of_events import START, one_of_each, run_event, step_event, write_record


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return write_record(tmp_path / "one.jsonl", one_of_each())


def test_csv_has_a_row_per_step_and_per_epoch(record: Path, tmp_path: Path) -> None:
    steps, epochs = export_csv(record, tmp_path / "out.csv")
    assert (steps.name, epochs.name) == ("out.csv", "out-epochs.csv")
    with steps.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["loss"] for row in rows] == ["2.0", "", str(2 / 3)]
    assert [row["endpoint"] for row in rows] == ["standard", "accelerated", "standard"]
    assert float(rows[0]["wait_fraction"]) == pytest.approx(0.75)
    with epochs.open(newline="") as file:
        assert [(row["epoch"], row["top1"]) for row in csv.DictReader(file)] == [("1", "0.5")]


def test_json_holds_every_event(record: Path, tmp_path: Path) -> None:
    path = export_json(record, tmp_path / "out.json")
    assert json.loads(path.read_text()) == [json.loads(line) for line in record.read_text().splitlines()]
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert json.loads(export_json(empty, tmp_path / "none.json").read_text()) == []


def test_a_failed_export_leaves_what_was_there(record: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    with pytest.raises(ConsoleError):
        export_json(tmp_path / "missing.jsonl", target)
    assert target.read_text() == "old"
    with pytest.raises(ConsoleError, match="cannot be written") as caught:
        export_json(record, tmp_path / "no" / "out.json")
    assert "--output" in caught.value.remedy
    assert not list(tmp_path.glob(".*.part"))


def test_a_target_that_cannot_be_created_is_an_error_of_its_own(record: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "out.csv", tmp_path / f"{'x' * 255}.csv"):
        with pytest.raises(ConsoleError, match="cannot be written"):
            export_csv(record, target)
    longest = tmp_path / f"{'x' * 250}.json"
    assert export_json(record, longest).stat().st_size


def test_a_link_is_followed_and_a_pipe_is_written_and_not_replaced(record: Path, tmp_path: Path) -> None:
    """As root, an export to /dev/stdout or /dev/null must not put a file in its place."""
    (tmp_path / "link.json").symlink_to("target.json")
    export_json(record, tmp_path / "link.json")
    whole = (tmp_path / "target.json").read_text()
    assert (tmp_path / "link.json").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        export_json(record, tmp_path / "pipe")
        assert read.result() == whole
    assert (tmp_path / "pipe").is_fifo()


def test_what_a_script_logged_is_exported(tmp_path: Path) -> None:
    steps = [step_event(1, logged={"norm": 3.0}), step_event(2, logged={"auc": 0.5, "norm": None}), step_event(3)]
    record = write_record(tmp_path / "one.jsonl", [run_event(), *steps])
    path, _ = export_csv(record, tmp_path / "out.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["logged.norm"], row["logged.auc"]) for row in rows] == [("3.0", ""), ("", "0.5"), ("", "")]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(export_tensorboard(record, tmp_path / "board")))
    board.Reload()
    assert [event.step for event in board.Tensors("logged/norm")] == [1]
    assert [event.step for event in board.Tensors("logged/auc")] == [2]


def test_tensorboard_reads_the_scalars_back(record: Path, tmp_path: Path) -> None:
    folder = export_tensorboard(record, tmp_path / "board")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(folder))
    board.Reload()
    losses = board.Tensors("train/loss")
    # The diverged loss of step 2 is no point.
    assert [(event.step, event.wall_time) for event in losses] == [(1, START + 1), (3, START + 3)]
    assert [event.tensor_proto.float_val[0] for event in board.Tensors("val/top1")] == [0.5]
    assert len(board.Tensors("throughput/samples_per_s")) == 3
    (power,) = board.Tensors("gpu0/power_w")
    assert power.tensor_proto.float_val[0] == 300.5
    assert "gpu0/memory_bytes" not in board.Tags()["tensors"], "what is not known is no point"


def test_without_tensorboard_the_remedy_is_named(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ConsoleError) as caught:
        export_tensorboard(record, tmp_path / "board")
    assert caught.value.remedy.endswith("pip install 'ossconsole[tensorboard]'")
