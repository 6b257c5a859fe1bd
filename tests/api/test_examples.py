"""Complete scripts as users write them, on a real sandbox: watched, switched, killed and resumed."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ossconsole.cli.options import OpenTarget
from ossconsole.config.endpoints import EndpointKind
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.training.data import training_data
from ossconsole.training.remote import control
from tests.api.conftest import Folders, events_of, newest_run

EXAMPLES = Path(__file__).with_name("examples")
DEADLINE_S = 150.0


@contextmanager
def script(name: str, *arguments: str, ranks: int = 1) -> Iterator[subprocess.Popen[str]]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, str(EXAMPLES / name), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        kill(process)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, for the ranks of torchrun too: each of them has a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        for each in [found, *found.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def line(process: subprocess.Popen[str], fits: Callable[[str], bool]) -> str:
    """The next line of output that fits."""
    assert process.stdout is not None
    read = []
    for text in process.stdout:
        read.append(text)
        if fits(text):
            return text
    raise AssertionError("".join(read))


def rest(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    assert process.wait(DEADLINE_S) == 0, lines
    return lines


def live_run(process: subprocess.Popen[str]) -> control.Report:
    """The report of the script's run, as a console finds it."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        found = [report for report in control.peers() if report.run]
        if found:
            return found[0]
    raise AssertionError("no run is reported")


def batches_of(lines: list[str]) -> dict[int, list[str]]:
    """The labels of each batch by its step, as the script printed them: a word, the step, the labels."""
    rows = [text.split() for text in lines]
    return {
        int(row[1]): row[2:]
        for row in rows
        if len(row) > 2 and (row[0].isdigit() or row[0] == "batch") and all(word.isdigit() for word in row[1:])
    }


SCRIPTS = [
    pytest.param("plain.py", 1, marks=pytest.mark.slow, id="plain PyTorch"),
    pytest.param("ddp.py", 2, marks=pytest.mark.slow, id="DistributedDataParallel"),
    pytest.param("lightning.py", 1, marks=pytest.mark.slow, id="Lightning"),
    pytest.param("hugging_face.py", 1, marks=pytest.mark.slow, id="Hugging Face"),
]


@pytest.mark.timeout(900)  # a script runs three times, some in two processes
@pytest.mark.parametrize(("name", "ranks"), SCRIPTS)
def test_a_script_is_watched_switched_killed_and_resumed(
    sandbox: OpenTarget, folders: Folders, name: str, ranks: int
) -> None:
    with script(name, "--epochs", "3", ranks=ranks) as process:
        lines = rest(process)
    whole = batches_of(lines)
    first = []
    with script(name, "--epochs", "3", ranks=ranks) as process:
        first += [line(process, _is_batch) for _ in range(8)]
        report = live_run(process)
        control.ask(report.pid, control.SwitchEndpoint(run=report.run, endpoint=EndpointKind.ACCELERATED))
        first += [line(process, _is_batch) for _ in range(4)]
        kill(process)
        assert process.stdout is not None
        first += process.stdout.read().splitlines()
    switches = [event for event in events_of(report.run) if isinstance(event, events.Switch)]
    assert [switch.endpoint for switch in switches] == [EndpointKind.ACCELERATED]
    with script(name, "--epochs", "3", "--resume", ranks=ranks) as process:
        resumed = batches_of(rest(process))
    begun = min(resumed)
    assert 1 < begun <= max(batches_of(first)) + 1
    assert {step: labels for step, labels in batches_of(first).items() if step < begun} | resumed == whole
    found = events_of(newest_run(folders))
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.state, summary.steps) == (RunState.FINISHED, len(resumed))
    assert {step.loss is None for step in found if isinstance(step, events.Step)} == {False}


def _is_batch(text: str) -> bool:
    return bool(batches_of([text]))


@pytest.mark.slow
def test_an_epoch_of_a_script_has_each_sample_once(sandbox: OpenTarget) -> None:
    with script("plain.py", "--epochs", "1") as process:
        found = batches_of(rest(process))
    store = ObjectStore(sandbox.profile, sandbox.credentials)
    data = training_data(store, sandbox.profile.dataset_prefix, val_split=0.1)
    expected = collections.Counter(str(label) for label in data.columns("train").labels)
    assert collections.Counter(itertools.chain.from_iterable(found.values())) == expected


def test_two_ranks_are_one_run_and_end_together(sandbox: OpenTarget) -> None:
    with script("ddp.py", ranks=2) as process:
        line(process, lambda text: text.startswith("1 "))  # the second epoch
        report = live_run(process)
        control.ask(report.pid, control.Pause(run=report.run))
        control.ask(report.pid, control.Resume(run=report.run))
        wait_for(report.run, lambda found: any(isinstance(event, events.RankWork) for event in found))
        control.ask(report.pid, control.Stop(run=report.run))
        lines = rest(process)
    assert not any("Error" in text for text in lines), lines
    found = events_of(report.run)
    assert isinstance(found[0], events.Run)
    assert found[0].world == 2
    ranks = next(event for event in found if isinstance(event, events.RankWork))
    assert [rank.rank for rank in ranks.ranks] == [0, 1]
    assert all(rank.step_s > 0 for rank in ranks.ranks)
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert summary.state is RunState.STOPPED


def wait_for(run: str, fits: Callable[[list[events.Event]], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not fits(events_of(run)):
        assert time.monotonic() < until


def test_a_script_started_by_run_outlives_its_terminal_and_is_restarted(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "fails_once.py").write_text(
        "import pathlib, sys\nmark = pathlib.Path(sys.argv[1])\nprint('started', flush=True)\n"
        "if not mark.exists():\n    mark.touch()\n    sys.exit(3)\nprint('done')\n"
    )
    command = [sys.executable, "-m", "ossconsole", "run", "--restarts", "1", "--", sys.executable]
    done = subprocess.run(
        [*command, str(tmp_path / "fails_once.py"), str(tmp_path / "mark")],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout.count("started"), "done" in done.stdout) == (0, 2, True), done
    assert "ended with exit code 3" in done.stdout
    logs = list(Path(folders["OSSCONSOLE_STATE_DIR"], "logs").glob("run-*.log"))
    assert any("done" in log.read_text() for log in logs)


def test_run_prints_where_the_output_is_and_lets_go_on_interrupt(folders: Folders, tmp_path: Path) -> None:
    end = str(tmp_path / "end")
    code = f"import os; print('ready', flush=True)\nwhile not os.path.exists({end!r}): pass\nprint('ended')"
    command = [sys.executable, "-m", "ossconsole", "run", "--", sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, 2)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert "The script continues. To end it: kill " in errors
    log = Path(errors.split("its output is in ")[1].split("\n")[0].rstrip("."))
    (tmp_path / "end").touch()
    until = time.monotonic() + DEADLINE_S
    while "ended" not in log.read_text():
        assert time.monotonic() < until
