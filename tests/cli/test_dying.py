"""Every way the real command can end or be hurt: exit code, terminal, one line of words, and what goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ossconsole.sandbox.process import INFO_NAME, SandboxInfo
from ossconsole.telemetry import events
from ossconsole.telemetry.runs import list_runs, read_events
from tests.cli.consoles import TRAIN, Console, processes_of, training, wait_until
from tests.cli.crashing import PLACES, SENTINEL
from tests.terminal.screen import DEADLINE_S

pytestmark = pytest.mark.timeout(300)
F12 = "\x1b[24~"


def inner(console: Console) -> psutil.Process:
    """The process that draws; the one in front is its parent."""
    (child,) = [
        process for process in psutil.Process(console.process.pid).children() if "sandbox" not in process.cmdline()
    ]
    return child


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=str,
)
def test_a_signal_ends_it_in_good_order(state: Path, number: signal.Signals, code: int) -> None:
    with Console() as console:
        console.browse()
        console.send(number)
        assert console.finish() == code
        console.assert_restored()
        assert console.lines == [f"ossconsole: {number.name} received."]
    wait_until(lambda: not processes_of(state))


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.slow)], ids=str)
def test_the_terminal_is_restored_after_a_kill(state: Path, number: signal.Signals) -> None:
    with Console() as console:
        console.browse()
        inner(console).send_signal(number)
        assert console.finish() == 128 + number
        console.assert_restored()
        assert f"ossconsole was killed by {number.name}" in console.lines[0]
        assert str(state / "logs" / "ossconsole.log") in "".join(console.lines)
    wait_until(lambda: not processes_of(state))


@pytest.mark.parametrize(
    ("arguments", "code", "words"), [(["--version"], 0, "version"), (["ls", "--no-such-option"], 2, "No such option")]
)
def test_a_command_ends_although_a_thread_does_not(arguments: list[str], code: int, words: str) -> None:
    """The interpreter would wait for it, and take torch apart object by object after that."""
    started = "import threading, time; threading.Thread(target=time.sleep, args=(3600,)).start()"
    command = f"{started}; from ossconsole.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], capture_output=True, check=False, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == code
    assert words in done.stdout + done.stderr


def test_killed_in_front_the_inner_one_leaves_in_good_order(state: Path) -> None:
    with Console() as console:
        console.browse()
        console.send(signal.SIGKILL)
        console.process.wait(60)
        wait_until(lambda: not processes_of(state))
        while console.read():
            pass
        assert console.changed_modes == set()


@pytest.mark.parametrize("place", ["in_a_widget", pytest.param("in_the_input_thread", marks=pytest.mark.slow)])
def test_a_crash_is_one_line_and_a_report_and_the_run_continues(state: Path, place: str) -> None:
    with Console(place, "demo", module="tests.cli.crashing", columns=200) as console:
        console.until(training)
        text = crash(console)
    assert "The work continues without the console" in text
    (report,) = (state / "crashes").iterdir()
    assert str(report) in text
    assert SENTINEL not in report.read_text() + (state / "logs" / "ossconsole.log").read_text()
    (run,) = list_runs()
    wait_until(lambda: list_runs()[0].step > run.step + 1)
    os.kill(run.pid, signal.SIGTERM)
    wait_until(lambda: not processes_of(state))
    assert list_runs()[0].checkpoint


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_anywhere_is_a_crash_and_never_an_end_by_the_user(state: Path, place: str) -> None:
    """One row for each thread and task of Textual, and for each way in which it reports a failure."""
    with Console(place, module="tests.cli.crashing", columns=200) as console:
        console.browse()
        text = crash(console)
    (report,) = (state / "crashes").iterdir()
    assert str(report) in text
    assert SENTINEL not in report.read_text() + (state / "logs" / "ossconsole.log").read_text()
    wait_until(lambda: not processes_of(state))


def crash(console: Console) -> str:
    """Press F12, on which this console fails; what it leaves on the terminal."""
    console.type(F12)
    assert console.finish() == 1
    console.assert_restored()
    assert SENTINEL not in console.output.decode(errors="replace")
    text = "".join(console.lines)
    assert text.startswith("ossconsole crashed: ")
    assert "Traceback" not in text
    return text


def test_bytes_that_are_no_keys_change_nothing(state: Path) -> None:
    """No UTF-8, a mouse report of the oldest kind, an impossible key, answers that another program has asked for."""
    with Console() as console:
        console.browse()
        for sent in (b"\xff", b"\x1b[M\xff\xfe\x80", b"\x82", b"\x1b[99999999999u", b"\x1b]11;rgb:1e1e/1e1e/1e1e\x07"):
            os.write(console.master, sent)
        console.type("4")
        console.until_seen("No run yet")
        console.quit()
        assert console.lines == []
    assert not (state / "crashes").exists()


def test_escape_and_a_key_in_one_packet_are_both_taken(state: Path) -> None:
    with Console() as console:
        console.browse()
        console.type("?")
        console.until_seen("esc close")
        console.type("\x1b4")
        console.until_seen("No run yet")
        console.quit()


@pytest.mark.slow
def test_a_killed_reader_is_replaced_and_reported_and_every_sample_is_read(state: Path) -> None:
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


def test_a_killed_sandbox_is_named_and_comes_back_and_the_run_continues(state: Path) -> None:
    with Console("demo", columns=160) as console:
        console.until(training)
        before = SandboxInfo.decode((state / "sandbox" / INFO_NAME).read_bytes())
        os.kill(before.pid, signal.SIGKILL)
        console.until_seen(f"The embedded sandbox (pid {before.pid}) ended: killed by SIGKILL.", "is running again")
        step = list_runs()[0].step
        console.until(lambda: list_runs()[0].step > step)
        console.send(signal.SIGTERM)
        assert console.finish() == 143
        console.assert_restored()
    assert f"s{list_runs()[0].step:06}" in list_runs()[0].checkpoint
    wait_until(lambda: not processes_of(state))


def test_a_terminal_that_vanishes_without_a_signal_ends_it(state: Path) -> None:
    with Console(controlling=False) as console:
        console.browse()
        console.hang_up()
        assert console.process.wait(60) == 129
    wait_until(lambda: not processes_of(state))


def test_a_laptop_that_sleeps_changes_nothing(state: Path) -> None:
    with Console() as console:
        console.browse()
        child = inner(console)
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(console.process.pid).status() == psutil.STATUS_STOPPED)
        console.send(signal.SIGCONT)
        console.until(lambda: console.output.count(b"\x1b[?1049h") == 2)  # the terminal is taken anew
        console.type("4")
        console.until_seen("No run yet")
        console.quit()


def test_a_storm_of_resizes_a_tiny_window_and_pasted_megabytes(state: Path) -> None:
    dice = random.Random(7)
    with Console() as console:
        console.browse()
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
        console.quit()


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
