"""`ossconsole train` as a process of its own: its lines, its exit codes, and what it says about bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from tests.dataset.conftest import jpeg

DEADLINE_S = 120
SIDE = 64
SAMPLES = 24

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with SandboxProcess.start(tmp_path_factory.mktemp("sandbox"), unshaped=True) as process:
        profile = process.profile()
        store = ObjectStore(profile, FixedSource(process.credentials()))
        samples = tuple(Sample(f"train/c{number % 2}/{number}.u8", number % 2, SIDE, SIDE) for number in range(SAMPLES))
        random = np.random.default_rng(0)
        for sample in samples:
            picture = random.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
            store.put(object_key(profile.dataset_prefix, sample.key), picture.tobytes())
        splits = {"train": samples[8:], "val": samples[:8]}
        manifest = Manifest(format=SampleFormat.IMAGE_U8, size=SIDE, classes=("c0", "c1"), splits=splits)
        write_manifest(store, profile.dataset_prefix, manifest)
        yield process


@pytest.fixture
def start(sandbox: SandboxProcess, tmp_path: Path) -> Iterator[Start]:
    """Starts `ossconsole train` on the sandbox, as a user with a bucket of their own would."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(
        *arguments: str, secret: str | None = None, profile: Profile | None = None, launcher: Sequence[str] = ("-m",)
    ) -> subprocess.Popen[bytes]:
        target = profile or sandbox.profile()
        environment = {
            **os.environ,
            "OSSCONSOLE_STATE_DIR": str(tmp_path / "state"),
            "OSSCONSOLE_CONFIG_DIR": str(tmp_path / "config"),
            "OSS_ACCESS_KEY_ID": sandbox.info.access_key_id,
            "OSS_ACCESS_KEY_SECRET": secret or sandbox.info.access_key_secret.reveal(),
        }
        flags: Sequence[str] = (
            f"--bucket={target.bucket}",
            f"--region={target.region}",
            f"--standard-endpoint={target.standard_endpoint}",
            f"--accelerated-endpoint={target.accelerated_endpoint}",
            f"--dataset-prefix={target.dataset_prefix}",
            "--batch-size=8",
            "--workers=1",
        )
        process = subprocess.Popen(
            [sys.executable, *launcher, "ossconsole", "train", *flags, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, list[events.Event], str]:
    """Exit code, the events that `--json` wrote to stdout, and stderr."""
    out, err = process.communicate(timeout=DEADLINE_S)
    json = "--json" in process.args  # type: ignore[operator]
    return process.returncode, [events.decode(line) for line in out.splitlines()] if json else [], err.decode()


def test_json_lines_describe_the_run_and_nothing_else(start: Start) -> None:
    code, found, _ = ended(start("--json", "--epochs=1"))
    assert code == 0
    assert isinstance(found[0], events.Run)
    assert [event.step for event in found if isinstance(event, events.Step)] == [1, 2]
    assert isinstance(found[-1], events.Summary)
    assert found[-1].samples == SAMPLES - 8


def test_a_prefix_of_photographs_needs_no_upload(start: Start, sandbox: SandboxProcess) -> None:
    profile = msgspec.structs.replace(sandbox.profile(), dataset_prefix="photos")
    store = ObjectStore(profile, FixedSource(sandbox.credentials()))
    for number in range(30):
        size = (40 + number, 60)
        store.put(f"photos/train/{'ab'[number % 2]}/{number}.JPG", jpeg(number, size))
    store.put("photos/train/a/broken.jpg", jpeg(1)[:40])
    store.put("photos/train/a/readme.txt", b"text")
    code, found, err = ended(start("--json", "--epochs=1", "--image-size=32", "--val-split=0.2", profile=profile))
    assert code == 0, err
    messages = [event.message for event in found if isinstance(event, events.InfoEvent)]
    assert messages[0].startswith("Listed 31 train images in ")
    assert messages[1] == "20 % of the training images (6) are held out for validation."
    warnings = [event.message for event in found if isinstance(event, events.WarningEvent)]
    assert "Not used: 1 object (neither an image nor a .pt sample): train/a/readme.txt." in warnings
    assert any(message.startswith("Skipped train/a/broken.jpg: it cannot be decoded") for message in warnings)
    (epoch,) = [event for event in found if isinstance(event, events.Epoch)]
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (epoch.samples + epoch.val_samples, summary.skipped_samples) == (30, 1)


def test_max_steps_ends_early_with_validation_and_checkpoint(start: Start) -> None:
    code, found, _ = ended(start("--json", "--epochs=5", "--max-steps=1"))
    assert code == 0
    assert sum(isinstance(event, events.Step) for event in found) == 1
    assert any(isinstance(event, events.Checkpoint) for event in found)


def test_ctrl_c_stops_after_the_step_with_a_checkpoint(start: Start) -> None:
    process = start("--json", "--epochs=1000")
    assert process.stdout is not None
    for line in process.stdout:
        if isinstance(events.decode(line), events.Step):
            break
    process.send_signal(signal.SIGINT)
    code, found, _ = ended(process)
    assert code == 130
    assert isinstance(found[-1], events.Summary)
    assert found[-1].state is events.RunState.STOPPED
    assert found[-1].checkpoint


def test_a_wrong_secret_is_reported_with_code_and_request_id(start: Start) -> None:
    code, _, err = ended(start(secret="not-the-secret"))
    assert code == 1
    assert "SignatureDoesNotMatch" in err
    assert "request id" in err
    assert "not-the-secret" not in err
    assert "Traceback" not in err


def test_an_unknown_bucket_is_reported(start: Start, sandbox: SandboxProcess) -> None:
    endpoint = sandbox.info.path_style_endpoint
    other = msgspec.structs.replace(
        sandbox.profile(), bucket="no-such-bucket", standard_endpoint=endpoint, accelerated_endpoint=endpoint
    )
    code, _, err = ended(start(profile=other))
    assert code == 1
    assert "NoSuchBucket" in err


def test_a_dead_endpoint_is_reported_within_the_deadline(start: Start, sandbox: SandboxProcess) -> None:
    dead = msgspec.structs.replace(sandbox.profile(), standard_endpoint="http://0.0.1:9")
    code, _, err = ended(start(profile=dead))
    assert code == 1
    assert "refused" in err
    assert "http://0.0.1:9" in err


def test_an_empty_prefix_is_reported_with_a_remedy(start: Start, sandbox: SandboxProcess) -> None:
    empty = msgspec.structs.replace(sandbox.profile(), dataset_prefix="nothing/here")
    code, _, err = ended(start(profile=empty))
    assert code == 1
    assert "is empty" in err
    assert "ossconsole upload" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs=0"], "--epochs"),
        (["--endpoint=fast"], "standard"),
        (["--resume=oss://another/x.pt"], "is not an object of the bucket"),
    ],
)
def test_bad_usage_is_reported(start: Start, arguments: list[str], words: str) -> None:
    code, _, err = ended(start(*arguments))
    assert code in {1, 2}
    assert words in err


def test_resume_takes_over_the_settings_of_the_checkpoint_or_refuses_others(start: Start) -> None:
    code, _, err = ended(start("--json", "--epochs=2", "--max-steps=2", "--seed=5", "--model=squeezenet1_1"))
    assert code == 0, err
    code, _, err = ended(start("--resume=latest", "--model=squeezenet1_1", "--seed=6"))
    assert code == 2
    assert "was written with --seed 5; this run has 6. Leave --seed out" in err
    code, found, err = ended(start("--json", "--epochs=2", "--resume=latest", "--model=squeezenet1_1"))
    assert code == 0, err
    assert "--seed 5" in err
    begun = found[0]
    assert isinstance(begun, events.Run)
    assert (begun.settings["seed"], begun.settings["image_size"]) == (5, SIDE)
    assert [event.step for event in found if isinstance(event, events.Step)] == [3, 4]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m")


@pytest.mark.slow
def test_torchrun_restarts_a_run_from_its_last_checkpoint(start: Start) -> None:
    process = start("--json", "--epochs=4", "--warmup-steps=0", "--checkpoint-every=1", launcher=TORCHRUN)
    assert process.stdout is not None
    found: list[events.Event] = []
    for line in process.stdout:
        found.append(events.decode(line))
        if isinstance(found[-1], events.Checkpoint):
            break
    assert isinstance(found[0], events.Run)
    assert found[0].world == 2
    ranks = [child for child in psutil.Process(process.pid).children() if "ossconsole" in child.cmdline()]
    follower = next(rank for rank in ranks if rank.pid != found[0].pid)
    follower.kill()
    code, rest, err = ended(process)
    assert code == 0, err
    again = next(event for event in rest if isinstance(event, events.Run))
    assert again.run == found[0].run
    after = rest[rest.index(again) :]
    assert isinstance(after[-1], events.Summary)
    steps = [event.step for event in after if isinstance(event, events.Step)]
    assert steps == list(range(steps[0], 5))
    assert steps[0] > 1
