from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.terminal.child import SENTINEL
from tests.terminal.screen import DEADLINE_S, Terminal

CHILD = "tests.terminal.child"
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "native.log"


def test_native_prints_are_in_the_log_and_ours_on_the_screen(log: Path) -> None:
    with Terminal(CHILD, "prints", log, columns=90, rows=30) as terminal:
        assert terminal.finish() == 0
        lines = terminal.lines
    ours = ["drawn-stdout", "drawn-stderr", "drawn-original", "size 90x30", "native-after", "printed-after"]
    assert lines == ours
    assert log.read_text().split() == ["native-one", "native-two", "child-out", "child-err"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_crash_puts_everything_back_and_names_the_report(log: Path, home: Path) -> None:
    with Terminal(CHILD, "draws_and_raises", log, columns=250) as terminal:
        assert terminal.finish() == 1
        terminal.assert_restored()
        (line,) = terminal.lines
    assert line.startswith("ossconsole crashed: ValueError: failed with 20 characters. Report: ")
    report = Path(line.rpartition(" ")[2])
    assert report.parent == home / "state" / "crashes"
    assert "ValueError" in report.read_text()
    for text in (report.read_text(), log.read_text(), terminal.output.decode()):
        assert SENTINEL not in text


def test_what_an_app_put_back_itself_is_not_undone_again(log: Path) -> None:
    with Terminal(CHILD, "draws_and_leaves", log) as terminal:
        assert terminal.finish() == 0
        terminal.assert_restored()
    assert terminal.output.count(b"\x1b[?1049l") == 1
    assert terminal.output.count(b"\x1b[<u") == 1


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("scenario", ["loops", "app"])
def test_signals_end_the_app_with_the_terminal_restored(
    scenario: str, number: signal.Signals, code: int, log: Path
) -> None:
    with Terminal(CHILD, scenario, log) as terminal:
        if scenario == "app":
            terminal.until(lambda: log.exists() and "mounted" in log.read_text())
        else:
            terminal.until(b"ready")
        assert 1049 in terminal.changed_modes
        terminal.send(number)
        assert terminal.finish() == code
        terminal.assert_restored()
        if scenario == "loops":
            assert terminal.lines[-1] == f"cause: {number.name} received"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals_before_the_app_runs(number: signal.Signals, code: int, log: Path) -> None:
    with Terminal(CHILD, "unattached", log) as terminal:
        terminal.until(b"ready")
        terminal.send(number)
        assert terminal.finish() == code
        terminal.assert_restored()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_to_another_thread_is_handled(number: signal.Signals, code: int, log: Path) -> None:
    """As one that comes just before the main thread falls asleep: Python alone would act on it after a minute."""
    with Terminal(CHILD, "unattached", log, str(int(number))) as terminal:
        assert terminal.finish() == code
        terminal.assert_restored()


def test_a_second_signal_does_not_disturb_the_end(log: Path) -> None:
    with Terminal(CHILD, "unwinds", log) as terminal:
        assert terminal.finish() == 143
        terminal.assert_restored()
    assert b"put away" in terminal.output


def test_an_app_that_does_not_end_is_ended_by_the_second_request(log: Path) -> None:
    with Terminal(CHILD, "ignores", log) as terminal:
        terminal.until(b"ready")
        terminal.send(signal.SIGTERM)
        terminal.until(lambda: log.exists() and "asked" in log.read_text())
        end = time.monotonic() + DEADLINE_S
        # A repetition within the grace period is no second request, so that one arriving twice does no harm.
        while terminal.process.poll() is None:
            terminal.send(signal.SIGTERM)
            terminal.read()
            assert time.monotonic() < end
        assert terminal.finish() == 143
        terminal.assert_restored()
    assert log.read_text().count("asked") == 1


def test_an_exception_in_the_app_leaves_no_broken_terminal(log: Path) -> None:
    with Terminal(CHILD, "app", log, "crash") as terminal:
        assert terminal.finish() == 1
        terminal.assert_restored()


def test_processes_start_and_die_inside_the_app(log: Path) -> None:
    with Terminal(CHILD, "app", log, "spawn") as terminal:
        assert terminal.finish() == 10 + signal.SIGKILL
        terminal.assert_restored()
        assert b"printed by a worker" not in terminal.output
    assert "printed by a worker" in log.read_text()
    assert "Error" not in log.read_text()


@pytest.mark.parametrize("scenario", ["loops", "app"])
def test_a_dropped_connection_ends_the_app(scenario: str, log: Path) -> None:
    with Terminal(CHILD, scenario, log) as terminal:
        if scenario == "app":
            terminal.until(lambda: log.exists() and "mounted" in log.read_text())
        else:
            terminal.until(b"ready")
        terminal.hang_up()
        assert terminal.process.wait(DEADLINE_S) == 129


def test_a_terminal_that_vanishes_without_a_signal_is_noticed(log: Path) -> None:
    with Terminal(CHILD, "loops", log, controlling=False) as terminal:
        terminal.until(b"ready")
        terminal.hang_up()
        assert terminal.process.wait(DEADLINE_S) == 129
    assert log.read_text().endswith("cause: the terminal is gone\n")


def test_drawing_on_a_terminal_that_is_gone_does_not_stop_the_loop(log: Path) -> None:
    with Terminal(CHILD, "app", log, "flood", controlling=False) as terminal:
        terminal.until(lambda: log.exists() and "mounted" in log.read_text())
        terminal.hang_up()
        assert terminal.process.wait(DEADLINE_S) == 129
    assert "Error" not in log.read_text()


def test_work_continues_without_the_terminal_and_prints_into_the_log(log: Path) -> None:
    with Terminal(CHILD, "goes_on", log) as terminal:
        terminal.until(b"ready")
        terminal.hang_up()
        assert terminal.process.wait(DEADLINE_S) == 0
    text = log.read_text()
    assert "headless after 129" in text
    assert "native headless" in text
    assert "Error" not in text


def test_a_terminal_that_does_not_read_blocks_nothing(log: Path) -> None:
    with Terminal(CHILD, "app", log, "flood") as terminal:
        terminal.until(lambda: log.exists() and "mounted" in log.read_text())
        process = psutil.Process(terminal.process.pid)
        # Nobody reads: the pty fills, then Textual's queue, and the event loop stands in its put().
        before = -1.0
        while (used := process.cpu_times().user) != before:
            before = used
            time.sleep(0.5)
        terminal.send(signal.SIGTERM)
        assert terminal.process.wait(DEADLINE_S) == 143
        while terminal.read():
            pass
        assert terminal.line_discipline_restored


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"term": "dumb"}, "TERM='dumb'"),
        ({"term": ""}, "TERM=''"),
        ({"columns": 19}, "has 19x24 characters"),
        ({"rows": 4}, "has 80x4 characters"),
    ],
)
def test_an_unusable_terminal_is_refused_with_a_way_out(settings: dict[str, int | str], words: str, log: Path) -> None:
    with Terminal(CHILD, "refused", log, **settings) as terminal:  # type: ignore[arg-type]
        assert terminal.finish() == 2
        text = terminal.output.decode().replace("\r\n", "")
    assert words in text
    assert "ossconsole train" in text
    assert not log.exists()


@pytest.mark.parametrize(("columns", "rows"), [(20, 5), (0, 0)])
def test_the_smallest_and_the_unknown_size_are_taken(columns: int, rows: int, log: Path) -> None:
    with Terminal(CHILD, "refused", log, columns=columns, rows=rows) as terminal:
        assert terminal.finish() == 0


def test_pipes_are_refused(log: Path) -> None:
    command = [sys.executable, "-m", CHILD, "refused", str(log)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False, text=True
    )
    assert done.returncode == 2
    assert "ssh -t" in done.stderr


def test_a_log_that_is_a_link_is_refused(log: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    log.symlink_to(target)
    with Terminal(CHILD, "refused", log) as terminal:
        assert terminal.finish() == 2
        terminal.assert_restored()
    assert target.read_text() == "kept"


def test_a_large_log_makes_room(log: Path) -> None:
    log.touch(mode=0o644)
    os.truncate(log, 5 << 20)
    with Terminal(CHILD, "prints", log) as terminal:
        assert terminal.finish() == 0
    assert log.stat().st_size < 1000
    assert log.with_name("native.log.1").stat().st_size == 5 << 20
