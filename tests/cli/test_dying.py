"""Every way the real command can end or be hurt: exit code, terminal, one line of words, and what goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ossconsole.telemetry import events
from ossconsole.telemetry.record import read_events
from ossconsole.telemetry.runs import list_runs
from tests.cli.consoles import Console, cleared, fill_sandbox, processes_of, wait_until
from tests.cli.crashing import SENTINEL

pytestmark = pytest.mark.timeout(300)
F12 = "\x1b[24~"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    fill_sandbox(folder)
    return folder


@pytest.fixture
def state(filled: Path, home: Path) -> Iterator[Path]:
    folder = home / "state"
    shutil.copytree(filled, folder)
    with cleared(folder):
        yield folder


def inner(console: Console) -> psutil.Process:
    """The process that draws; the one in front is its parent."""
    (child,) = [
        process for process in psutil.Process(console.process.pid).children() if "sandbox" not in process.cmdline()
    ]
    return child


def training() -> bool:
    return any(run.step > 0 for run in list_runs())


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=str,
)
def test_a_signal_ends_it_in_good_order(state: Path, number: signal.Signals, code: int) -> None:
    with Console() as console:
        console.until_seen("dataset/")
        console.send(number)
        assert console.finish() == code
        console.assert_restored()
        assert console.lines == [f"ossconsole: {number.name} received."]
    wait_until(lambda: not processes_of(state))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=str)
def test_killed_without_a_chance_the_terminal_is_put_back_all_the_same(state: Path, number: signal.Signals) -> None:
    with Console() as console:
        console.until_seen("dataset/")
        inner(console).send_signal(number)
        assert console.finish() == 128 + number
        console.assert_restored()
        assert f"ossconsole was killed by {number.name}" in console.lines[0]
        assert str(state / "logs" / "ossconsole.log") in "".join(console.lines)
    wait_until(lambda: not processes_of(state))


def test_killed_in_front_the_inner_one_leaves_in_good_order(state: Path) -> None:
    with Console() as console:
        console.until_seen("dataset/")
        console.send(signal.SIGKILL)
        console.process.wait(60)
        wait_until(lambda: not processes_of(state))
        while console.read():
            pass
        assert console.changed_modes == set()


def test_a_widget_that_fails_is_one_line_and_a_report_and_the_run_goes_on(state: Path) -> None:
    with Console("demo", module="tests.cli.crashing", columns=200) as console:
        console.until(training)
        console.type(F12)
        assert console.finish() == 1
        console.assert_restored()
        text = "".join(console.lines)
        assert SENTINEL not in console.output.decode(errors="replace")
    assert "ossconsole crashed: RuntimeError: a widget failed with" in text
    assert "The work goes on without the console" in text
    (report,) = (state / "crashes").iterdir()
    assert str(report) in text
    assert SENTINEL not in report.read_text() + (state / "logs" / "ossconsole.log").read_text()
    (run,) = list_runs()
    wait_until(lambda: list_runs()[0].step > run.step + 1)
    os.kill(run.pid, signal.SIGTERM)
    wait_until(lambda: not processes_of(state))
    assert list_runs()[0].checkpoint


def test_a_killed_reader_is_replaced_and_told_and_every_sample_is_read(state: Path) -> None:
    with Console("demo", columns=160) as console:
        console.until(training)
        (worker,) = [
            process
            for process in psutil.Process(list_runs()[0].pid).children()
            if any("spawn_main" in word for word in process.cmdline())
            and "resource_tracker" not in " ".join(process.cmdline())
        ][:1]
        worker.kill()
        console.until_seen("SIGKILL")
        before = list_runs()[0].step
        console.until(lambda: list_runs()[0].step > before + 2)
        console.send(signal.SIGTERM)
        assert console.finish() == 143
        console.assert_restored()
    record = Path(list_runs()[0].path)
    steps = [event for event in read_events(record) if isinstance(event, events.Step)]
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert {step.samples for step in steps} == {32}


def test_without_a_terminal_nothing_spins(state: Path) -> None:
    with Console("demo") as console:
        console.until(training)
        console.type(" ")
        console.until_seen("paused")
        console.hang_up()
        assert console.process.wait(60) == 129
    (run,) = list_runs()
    process = psutil.Process(run.pid)
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(3)
    after, waited = process.cpu_times(), time.monotonic() - began
    assert after.user + after.system - before.user - before.system < 0.5 * waited
    process.terminate()
    wait_until(lambda: not processes_of(state))


def test_a_laptop_that_sleeps_changes_nothing(state: Path) -> None:
    with Console() as console:
        console.until_seen("dataset/")
        child = inner(console)
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(console.process.pid).status() == psutil.STATUS_STOPPED)
        console.send(signal.SIGCONT)
        wait_until(lambda: child.status() != psutil.STATUS_STOPPED)
        console.type("4")
        console.until_seen("Making ready")
        console.type("q")
        assert console.finish() == 0
        console.assert_restored()


def test_a_storm_of_resizes_and_a_tiny_window(state: Path) -> None:
    dice = random.Random(7)
    with Console() as console:
        console.until_seen("dataset/")
        for _ in range(200):
            console.resize(dice.randint(20, 200), dice.randint(5, 60))
            console.read(0.001)
        console.resize(20, 5)
        console.until_seen("This terminal has 20")
        console.resize(110, 36)
        console.until_seen("dataset/", "Browse")
        console.type("q")
        assert console.finish() == 0
        console.assert_restored()


@pytest.mark.parametrize("where", ["nowhere", "input"])
def test_a_pasted_megabyte_is_no_trouble(state: Path, where: str) -> None:
    text = "\x1b[200~" + "pasted \n[red] \x01 text " * 50_000 + "\x1b[201~"
    with Console() as console:
        console.until_seen("dataset/")
        console.type("3")
        console.until_seen("Format")
        if where == "input":
            console.type("\t")
        paste = threading.Thread(target=console.type, args=(text,), daemon=True)
        paste.start()
        console.until(lambda: not paste.is_alive())
        if where == "input":
            console.until_seen("pasted")
            console.type("\x1b")
        time.sleep(0.5)  # an escape alone is told from a sequence by the silence after it
        console.type("4")
        console.until_seen("Making ready")
        console.type("q")
        assert console.finish() == 0
        console.assert_restored()


def test_a_dumb_terminal_is_refused_with_what_works_there(state: Path) -> None:
    with Console(term="dumb", columns=200) as console:
        assert console.finish() == 2
        assert "TERM='dumb'" in "".join(console.lines)
        assert "ossconsole train" in "".join(console.lines)
