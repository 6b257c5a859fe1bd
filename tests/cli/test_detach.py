"""Left, lost and found again: work that goes on without its terminal, and the consoles that come back to it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from ossconsole.config.profiles import OnHangup, Settings, save_settings
from ossconsole.dataset.manifest import read_manifest
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.runs import RunSummary, list_runs, read_events
from ossconsole.training.remote.control import Resume, ask, peers
from ossconsole.tui.kit import memory
from ossconsole.tui.upload.screen import FORM
from tests.cli.consoles import Console, cleared, processes_of, training, wait_until
from tests.dataset.conftest import make_pictures
from tests.sandboxed import Sandboxed, set_keys

pytestmark = pytest.mark.timeout(300)
LEAVE_RUNNING, STOP_AND_LEAVE = "\x1b[C\r", "\x1b[C\x1b[C\r"


def the_run() -> RunSummary:
    (run,) = list_runs()
    return run


def happened(run: RunSummary, kind: type[Event]) -> list[Event]:
    return [event for event in read_events(Path(run.path)) if isinstance(event, kind)]


def states(run: RunSummary) -> list[RunState]:
    return [event.state for event in happened(run, events.State) if isinstance(event, events.State)]


def test_a_run_is_left_found_again_steered_by_two_and_stopped(state: Path) -> None:
    with Console("demo") as first:
        first.until_seen("running")
        first.until(training)
        first.type("q")
        first.until_seen("Quit the console?")
        first.type(LEAVE_RUNNING)
        assert first.finish() == 0
        first.assert_restored()
        assert "The work continues without the console" in " ".join(first.lines)
    run = the_run()
    assert run.alive
    worker = psutil.Process(run.pid)
    assert worker.terminal() is None
    assert {Path(f"/proc/{run.pid}/fd/{fd}").readlink() for fd in (1, 2)} == {state / "logs" / "native.log"}
    with Console("demo") as second, Console() as third:
        second.until_seen("Pause")  # "running" is also in the list of runs that an idle screen shows
        third.until_seen("Pause")  # it opens where the run is
        second.type("e")
        second.until(lambda: bool(happened(run, events.Switch)))
        third.type(" ")
        third.until(lambda: states(run)[-1] is RunState.PAUSED)
        third.until_seen("paused")
        second.until_seen("paused")
        assert [console.process.poll() for console in (second, third)] == [None, None]
        second.type(" ")
        second.until_seen("running")
        third.quit()
        assert f"The run {run.run} continues in its own process" in " ".join(third.lines)
        assert the_run().alive
        second.type("s")
        second.until_seen("Stop the run?")
        second.type("\x1b[C\r")
        second.until_seen("stopped")
        wait_until(lambda: not worker.is_running())
        assert [type(event) for event in read_events(Path(run.path))][-1] is events.Summary
        assert happened(run, events.Checkpoint)
        second.quit()
    wait_until(lambda: not processes_of(state))


def test_a_dropped_connection_leaves_the_run_going_and_nothing_spins(state: Path) -> None:
    with Console("demo") as console:
        console.until(training)
        console.type(" ")
        console.until_seen("paused")
        console.hang_up()
        assert console.process.wait(60) == 129
    run = the_run()
    worker = psutil.Process(run.pid)
    before, began = worker.cpu_times(), time.monotonic()
    time.sleep(2)
    after, waited = worker.cpu_times(), time.monotonic() - began
    assert after.user + after.system - before.user - before.system < 0.5 * waited
    ask(run.pid, Resume(run=run.run))
    wait_until(lambda: the_run().step > run.step + 2)
    os.kill(run.pid, signal.SIGHUP)  # the late ones of a dropped connection
    assert the_run().alive
    os.kill(run.pid, signal.SIGTERM)
    wait_until(lambda: not processes_of(state))
    assert states(run)[-1] is RunState.STOPPED
    assert happened(run, events.Checkpoint)


@pytest.mark.slow
def test_the_settings_may_ask_for_a_stop_instead(state: Path) -> None:
    save_settings(Settings(on_hangup=OnHangup.STOP))
    with Console("demo") as console:
        console.until(training)
        console.hang_up()
        console.process.wait(60)
    wait_until(lambda: not processes_of(state))
    assert states(the_run())[-1] is RunState.STOPPED
    assert happened(the_run(), events.Checkpoint)


def test_a_second_run_on_the_same_prefix_is_refused_and_a_headless_one_is_shown(state: Path) -> None:
    options = ("train", "--profile", "sandbox", "--epochs", "50", "--batch-size", "32", "--workers", "1")
    with Console() as console:
        console.until_seen("Connect a bucket")
        console.type("4")
        console.until_seen("the samples are in the bucket")
        with Console(*options) as headless:
            headless.until(training)
            with Console(*options) as second:
                assert second.finish() == 1
                assert f"The run {the_run().run} (process {headless.process.pid}) is active" in " ".join(second.lines)
            console.type("n")
            console.until_seen("Start")
            console.type("\r")
            console.until_seen("Pause")  # not "running", as above
            console.type(" ")
            console.until(lambda: states(the_run())[-1] is RunState.PAUSED)
            console.until_seen("paused")
            console.type(" ")
            console.until(lambda: states(the_run())[-1] is RunState.RUNNING)
            headless.hang_up()
            step = the_run().step
            wait_until(lambda: the_run().step > step + 2)
            headless.send(signal.SIGINT)
            assert headless.process.wait(60) == 130
        console.until_seen("stopped")
        console.quit()
    wait_until(lambda: not processes_of(state))
    assert len(list_runs()) == 1


def test_an_upload_is_lost_found_again_and_has_one_writer(
    sandboxed_bucket: Sandboxed, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_pictures(tmp_path / "pictures", train=700, val=10)
    use_bucket(sandboxed_bucket, "lost-upload", monkeypatch)
    memory.remember(FORM, "mine", {"recent": [str(source)], "size": "64"})
    with cleared(home / "state"):
        with Console() as console:
            begin_upload(console, source)
            console.type("p")
            console.until_seen("paused")
            console.hang_up()
            assert console.process.wait(60) == 129
        with Console("upload", str(source), columns=200) as second:
            assert second.finish() == 1
            assert "Another upload to this dataset prefix is running" in " ".join(second.lines)
        with Console() as console:
            console.until_seen("Browse")
            console.type("3")
            console.until_seen("paused")
            console.type("p")
            console.until_seen("done", "710 uploaded")
            console.quit()
        wait_until(lambda: not processes_of(home / "state"))


def test_an_upload_continues_without_a_console_as_well(
    sandboxed_bucket: Sandboxed, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_pictures(tmp_path / "pictures", train=100, val=10)
    use_bucket(sandboxed_bucket, "headless-upload", monkeypatch)
    with cleared(home / "state"), Console("upload", str(source), "--size", "16", "--bandwidth", "0.05") as console:
        wait_until(lambda: any(report.upload and report.upload.progress.uploaded for report in peers()))
        console.hang_up()
        (before,) = [report.upload.progress.uploaded for report in peers() if report.upload]
        wait_until(lambda: all(report.upload.progress.uploaded > before for report in peers() if report.upload))
        assert console.process.wait(60) == 0
    with contextlib.closing(sandboxed_bucket.store()) as store:
        assert len(read_manifest(store, "headless-upload/data").splits["train"]) == 100


def use_bucket(sandboxed_bucket: Sandboxed, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The active profile and the key in the environment lead to a prefix of the test's own."""
    profile = msgspec.structs.replace(sandboxed_bucket.profile(folder), name="mine", simulated=False)
    save_settings(Settings().with_profile(profile, activate=True))
    owner = sandboxed_bucket.owner()
    set_keys(monkeypatch, owner)


def begin_upload(console: Console, source: Path) -> None:
    """Starts the upload that the form remembers."""
    console.until_seen("Browse")
    console.type("3")
    console.until_seen(source.name)

    def begun() -> bool:
        console.type("\x13")  # shows the plan, then starts it
        return "uploading" in console.screen

    console.until(begun)
