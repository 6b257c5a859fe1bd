"""What cannot work is refused before anything starts: a library that is missing, a precision, a file of weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ossconsole.cli.app import ossconsole
from ossconsole.cli.application import Application
from ossconsole.cli.options import Target
from ossconsole.cli.output import run_group
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import state_dir
from ossconsole.config.profiles import Profile
from ossconsole.telemetry.sampler import Sampler
from ossconsole.training import preflight
from ossconsole.training.preflight import MissingLibraryError, check_device
from ossconsole.training.settings import TrainSettings, check_weights
from tests.sandboxed import Sandboxed, set_keys

_RUN_WITHOUT = """
import sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hook())
from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
sys.exit(run_group(ossconsole, {arguments!r}))
"""


def run_without(missing: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A command in a process where importing `missing` fails as if they were not installed."""
    code = _RUN_WITHOUT.format(missing=missing, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["torch"], "torch, which is not installed: pip install torch"),
        (["torch", "torchvision"], "torch and torchvision, which are not installed: pip install torch"),
        (
            ["osstorchconnector"],
            "osstorchconnector, which is not installed: pip install osstorchconnector",
        ),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_missing_library_is_one_sentence(missing: list[str], words: str, command: str) -> None:
    done = run_without(missing, [command, "--profile", "sandbox"])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert words in line
    assert not done.stdout
    assert not list(state_dir().rglob("*.jsonl"))
    assert not (state_dir() / "sandbox").exists()


def test_the_console_refuses_to_start_a_run_without_its_libraries(
    sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, profile = sandboxed_bucket.owner(), sandboxed_bucket.profile("preflight")
    set_keys(monkeypatch, owner)
    names = ("bucket", "region", "standard_endpoint")
    application = Application(Target({name: str(getattr(profile, name)) for name in names}))
    application.open()
    with Target(application._target.flags).open() as opened:
        application._opened, application._sampler = opened, Sampler()
        monkeypatch.setattr(preflight, "_is_installed", lambda name: name != "torch")
        with pytest.raises(MissingLibraryError, match="pip install torch"):
            application.start_run(TrainSettings())
    assert application.run is None
    assert not list(state_dir().rglob("*.jsonl"))


def test_a_run_of_the_console_is_on_the_dataset_of_its_form(
    sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, profile = sandboxed_bucket.owner(), sandboxed_bucket.profile("preflight")
    set_keys(monkeypatch, owner)
    started: list[str] = []

    class Run:
        """Stands for TrainingRun."""

        alive = False

        def __init__(self, profile: Profile, *_: object, **__: object) -> None:
            started.append(profile.dataset_prefix)

        def start(self) -> None:
            pass

    monkeypatch.setattr("ossconsole.training.run.TrainingRun", Run)
    names = ("bucket", "region", "standard_endpoint", "dataset_prefix")
    application = Application(Target({name: str(getattr(profile, name)) for name in names}))
    application.open()
    with Target(application._target.flags).open() as opened:
        application._opened, application._sampler = opened, Sampler()
        application.start_run(TrainSettings())
        application.start_run(TrainSettings(), "photos")
    assert started == [profile.dataset_prefix, "photos"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--precision", "fp16"],
        ["bench", "--precision", "fp16"],
        ["train", "--weights", "/nonexistent"],
        ["train", "--weights", "/"],
        ["train", "--gpu", "3"],
        ["bench", "--gpu", "3"],
        ["bench", "--gpu", "3", "--device", "cpu"],
    ],
    ids=" ".join,
)
def test_settings_that_cannot_work_are_usage_errors(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run_group(ossconsole, [*arguments, "--profile", "sandbox"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert not (state_dir() / "sandbox").exists()


def test_what_works_here_is_let_through(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    for weights in ("none", "imagenet", "oss://127/key", str(file)):
        check_weights(weights)
    for precision in ("auto", "fp32", "bf16"):
        check_device(TrainSettings(precision=precision))
    with pytest.raises(SettingsError):
        check_weights("\0")
