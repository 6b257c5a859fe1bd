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
from tests.cli.consoles import TRAIN, Console, cleared, fill_sandbox, processes_of, wait_until
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


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.slow)], ids=str)
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
        reader = next(
            process
            for process in psutil.Process(list_runs()[0].pid).children()
            if "spawn_main" in " ".join(process.cmdline())
        )
        reader.kill()
        console.until_seen("SIGKILL")
        before = list_runs()[0].epoch
        console.until(lambda: list_runs()[0].epoch > before + 1)
        console.send(signal.SIGTERM)
        assert console.finish() == 143
        console.assert_restored()
    found = list(read_events(Path(list_runs()[0].path)))
    numbers = [event.step for event in found if isinstance(event, events.Step)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {event.samples for event in found if isinstance(event, events.Epoch)} == {TRAIN}


def test_a_terminal_that_vanishes_without_a_signal_ends_it(state: Path) -> None:
    with Console(controlling=False) as console:
        console.until_seen("dataset/")
        console.hang_up()
        assert console.process.wait(60) == 129
    wait_until(lambda: not processes_of(state))


def test_a_laptop_that_sleeps_changes_nothing(state: Path) -> None:
    with Console() as console:
        console.until_seen("dataset/")
        child = inner(console)
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(console.process.pid).status() == psutil.STATUS_STOPPED)
        console.send(signal.SIGCONT)
        console.until(lambda: console.output.count(b"\x1b[?1049h") == 2)  # the terminal is taken anew
        console.type("4")
        console.until_seen("No run yet")
        console.type("q")
        assert console.finish() == 0
        console.assert_restored()


def test_a_storm_of_resizes_a_tiny_window_and_pasted_megabytes(state: Path) -> None:
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
        console.type("3")
        console.until_seen("Format")
        paste(console)
        console.type("\t")
        paste(console)
        console.until_seen("pasted")
        console.type("\x1b")
        time.sleep(0.5)  # an escape alone is told from a sequence by the silence after it
        console.type("4")
        console.until_seen("No run yet")
        console.type("q")
        assert console.finish() == 0
        console.assert_restored()


def paste(console: Console) -> None:
    text = "\x1b[200~" + "pasted \n[red] \x01 text " * 50_000 + "\x1b[201~"
    typing = threading.Thread(target=console.type, args=(text,), daemon=True)
    typing.start()
    console.until(lambda: not typing.is_alive())


def test_a_dumb_terminal_is_refused_with_what_works_there(state: Path) -> None:
    with Console(term="dumb", columns=200) as console:
        assert console.finish() == 2
        assert "TERM='dumb'" in "".join(console.lines)
        assert "ossconsole train" in "".join(console.lines)
