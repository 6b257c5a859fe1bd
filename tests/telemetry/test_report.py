"""The report of a run: one file that loads nothing, with everything escaped."""

from __future__ import annotations

import base64
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.telemetry.page import Chart, Charts, Page, Section, Table, Text, clean, thinned, to_html, to_markdown
from ossconsole.telemetry.predictions import (
    ClassAccuracy,
    Confusion,
    Evaluation,
    WrongImage,
    read_predictions,
    save_predictions,
)
from ossconsole.telemetry.report import run_page, write_report
from ossconsole.telemetry.runs import RecordError
from ossconsole.telemetry.samples import WorkerUsage
from tests.telemetry.samples_of_events import one_of_each, run_event, step_event, write_record


class Tags(HTMLParser):
    """The tags of a page; fails on one that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_the_result_and_loads_nothing() -> None:
    text = to_html(run_page(one_of_each()))
    tags = Tags(text)
    assert {"h1", "svg", "table"} <= {tag for tag, _ in tags.found}
    assert not {"script", "link", "img", "iframe", "object", "form", "a"} & {tag for tag, _ in tags.found}
    assert not re.search(r"url\(|@import|https?://|src=", text)
    assert "default-src 'none'" in text
    assert "width=device-width" in text
    assert "1.40x of the standard one (1.30 to 1.50), 6 pairs" in text
    for heading in ("Result", "Charts", "Epochs", "Checkpoints", "How it was measured"):
        assert f"<h2>{heading}</h2>" in text


def test_the_page_of_a_script_has_the_verdict_on_its_loader_and_no_endpoints() -> None:
    steps = [
        step_event(number, epoch=1 + number // 30, endpoint=None, data_wait_s=0.6, step_time_s=1.0)
        for number in range(1, 60)
    ]
    usage = tuple(WorkerUsage(pid=pid, cpu=0.1, runnable=0.1, idle=0.0) for pid in range(8))
    run = run_event(loader="DataLoader", settings={"batch_size": 8, "workers": 8}, cores=16)
    text = to_markdown(run_page([run, *steps, events.LoaderWorkers(time=time.time(), workers=usage)]))
    verdict = (
        "I/O-bound: training waits 60 % of each step for batches from DataLoader (8 workers); the 8 workers wait for"
    )
    assert f"Verdict: {verdict} storage or network" in text
    assert "p50 1,000 ms, p95 1,000 ms" in text
    for other in ("endpoint", "validated"):
        assert other not in text


HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\" onload='x' `|*_[](http://x) LTAI5tAbCdEfGhIjKlMn"


def test_everything_foreign_is_escaped() -> None:
    found: list[events.Event] = [
        run_event("r", bucket=HOSTILE, profile=HOSTILE, settings={"weights": HOSTILE, HOSTILE: 1}, host=HOSTILE),
        step_event(1),
        events.WarningEvent(time=2.0, message=HOSTILE),
        events.Checkpoint(time=3.0, key=HOSTILE, bytes=1, seconds=1.0, stable_key=HOSTILE),
        events.ErrorEvent(time=4.0, message="GET http://me:pw@host/x?Signature=abc&Expires=1"),
    ]
    page = run_page(found)
    text = to_html(page)
    Tags(text)
    assert "<script" not in text
    assert " onload=" not in text.replace("&quot; onload=", "")
    for raw in ("\x1b", "\u202e", "LTAI", "pw@", "Signature=abc"):
        assert raw not in text
        assert raw not in to_markdown(page)
    assert "<script" not in to_markdown(page).replace("\\<", "")


def test_predictions_are_saved_beside_the_record_and_shown(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run-1.jsonl", [run_event("run-1"), step_event(1)])
    assert read_predictions(record) is None
    thumbnail = b"\xff\xd8" + bytes(range(256)) * 20  # larger than those of 112 pixels
    found = Evaluation(
        images=100,
        unread=0,
        top1=0.5,
        top5=0.875,
        classes=[ClassAccuracy(HOSTILE, 0.25, 50), *(ClassAccuracy(f"c{at}", 0.75, 1) for at in range(50))],
        confusions=[Confusion(HOSTILE, "bees", 12, 0.24)],
        worst=[WrongImage(HOSTILE, HOSTILE, "bees", 0.98, 0.01, thumbnail)] * 24,
        checkpoint="oss://b/checkpoints/resnet18-best.pt",
    )
    save_predictions(record, found)
    assert read_predictions(record) == found
    text = write_report(record, tmp_path / "run-1.html").read_text()
    tags = Tags(text)
    sources = [attributes["src"] for tag, attributes in tags.found if tag == "img"]
    assert sources == [f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}"] * 24
    assert "img-src data:" in text
    assert {"50.0 % of 100 validation images", "12", "24 % of the class", "width:25.0%", "p 0.98"} <= set(
        re.split(r'[<>"]', text)
    )
    assert "39 classes with a higher accuracy not shown." in text
    assert "<script" not in text
    assert "LTAI" not in text
    assert len(text) < 1_000_000
    assert "25.0 % (50 images)" in write_report(record, tmp_path / "run-1.md", "md").read_text()
    save_predictions(record, found).write_text("{}")
    with pytest.raises(RecordError, match="Delete the file"):
        read_predictions(record)


def test_credentials_are_masked() -> None:
    assert clean("id LTAI5tAbCdEfGhIjKlMn, STS.NUabcdefghijk") == "id ***, ***"
    assert clean("http://h/k?x-oss-signature=a%2Fb&x=1&security-token=t") == (
        "http://h/k?x-oss-signature=***&x=1&security-token=***"
    )


def test_a_chart_of_many_points_keeps_its_gaps_and_its_ends() -> None:
    x = [float(number) for number in range(50_000)]
    y = [math.nan if 20_000 <= number < 30_000 else number for number in x]
    thin_x, thin_y = thinned(x, y)
    assert len(thin_x) == len(thin_y) <= 240
    gaps = [at for at, value in zip(thin_x, thin_y, strict=True) if math.isnan(value)]
    assert gaps
    assert 20_000 <= min(gaps) <= max(gaps) < 30_000
    page = Page(
        "t", "h", [], [Section("s", [Charts([Chart("c", x, y, "step"), Chart("none", [1.0], [math.nan], "x")])])]
    )
    text = to_html(page)
    assert text.count("M") >= 2  # a gap begins a new line
    assert "no values" in text
    assert "nan" not in text


def test_markdown_tables_are_tables() -> None:
    page = Page("t", "h", [], [Section("s", [Table(("a", "b"), [("x|y", "1")], note="n"), Text(["p"])])])
    assert "| a | b |\n| :-- | --: |\n| x\\|y | 1 |" in to_markdown(page)


def test_a_long_run_is_written_quickly_and_small(tmp_path: Path) -> None:
    found: list[events.Event] = [run_event("long"), *(step_event(number) for number in range(1, 50_001))]
    record = write_record(tmp_path / "long.jsonl", found)
    begun = time.process_time()
    path = write_report(record, tmp_path / "long.html")
    assert time.process_time() - begun < 5  # 0.7 s on a quiet core; processor time, so others do not count
    assert path.stat().st_size < 200_000


def test_a_record_without_a_run_and_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ConsoleError, match="no start of a run"):
        write_report(empty, tmp_path / "x.html")
    record = write_record(tmp_path / "one.jsonl", one_of_each())
    with pytest.raises(ConsoleError, match="cannot be written"):
        write_report(record, tmp_path / "no" / "x.html")
