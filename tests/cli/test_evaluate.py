"""`evaluate`: its figures against those computed by hand, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.retry import NO_RETRY
from ossconsole.telemetry import events
from ossconsole.telemetry.predictions import read_predictions
from ossconsole.telemetry.runs import RunRecord, record_path
from ossconsole.training.remote.control import Report
from ossconsole.training.run_evaluation import EvaluationJob
from tests.sandboxed import Sandboxed, set_keys
from tests.torch_files import torch_bytes
from tests.waiting import run_to_end

SIDE, VAL_SAMPLES = 32, 21
CLASSES = ("cat", "dog", "fox")


def image(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(number).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)


def packed(state: dict[str, torch.Tensor], **changes: object) -> bytes:
    facts = {"model_name": "squeezenet1_1", "classes": list(CLASSES), "image_size": SIDE, "seed": 3, **changes}
    return torch_bytes({"format": "ossconsole-checkpoint", "version": 1, "model": state, **facts})


@pytest.fixture
def store(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    profile = sandboxed_bucket.profile(f"evaluate/{request.node.name}")
    store = ObjectStore(profile, sandboxed_bucket.owner, timeout_s=5.0, retry=NO_RETRY)
    samples = [
        Sample(f"{split}/{number}.u8", number % 3, SIDE, SIDE)
        for split in ("train", "val")
        for number in range(VAL_SAMPLES)
    ]
    for number, sample in enumerate(samples):
        store.put(object_key(profile.dataset_prefix, sample.key), image(number % VAL_SAMPLES).tobytes())
    splits = {split: tuple(each for each in samples if each.key.startswith(split)) for split in ("train", "val")}
    write_manifest(
        store,
        profile.dataset_prefix,
        Manifest(format=SampleFormat.IMAGE_U8, size=SIDE, classes=CLASSES, splits=splits),
    )
    info = sandboxed_bucket.process.info
    set_keys(monkeypatch, info)
    return store


def evaluate(store: ObjectStore, *arguments: str) -> int:
    profile = store.profile
    options = (
        f"--bucket={profile.bucket}",
        f"--region={profile.region}",
        f"--standard-endpoint={profile.standard_endpoint}",
        f"--dataset-prefix={profile.dataset_prefix}/",
        f"--checkpoint-prefix={profile.checkpoint_prefix}/",
        "--workers=1",
        "--batch-size=8",
        "--device=cpu",
    )
    return run_group(ossconsole, ["evaluate", *arguments, *options])


def test_the_figures_are_those_computed_by_hand(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    model = squeezenet1_1(num_classes=3).eval()
    store.put(f"{store.profile.checkpoint_prefix}/squeezenet1_1-best.pt", packed(model.state_dict()))
    assert evaluate(store, "--model=squeezenet1_1", "--json", "--worst=4") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = torch.stack([(torch.from_numpy(image(number)) / 255 - mean) / std for number in range(VAL_SAMPLES)])
    with torch.no_grad():
        probabilities = model(images).softmax(1)
    labels = torch.arange(VAL_SAMPLES) % 3
    predicted = probabilities.argmax(1)
    right = predicted == labels
    assert (found["images"], found["unread"], found["top5"]) == (VAL_SAMPLES, 0, 1.0)
    assert found["top1"] == pytest.approx(right.double().mean().item())
    by_class = {each["name"]: each["top1"] for each in found["classes"]}
    assert by_class == {
        name: pytest.approx(right[labels == label].double().mean().item(), abs=1e-3)
        for label, name in enumerate(CLASSES)
    }
    assert list(by_class.values()) == sorted(by_class.values())
    assert sum(pair["images"] for pair in found["confusions"]) == int((~right).sum())
    wrong = [number for number in range(VAL_SAMPLES) if not right[number]]
    wrong.sort(key=lambda number: float(probabilities[number, labels[number]]))
    assert [each["key"].rpartition("/val/")[2] for each in found["worst"]] == [f"{number}.u8" for number in wrong[:4]]
    assert found["worst"][0]["predicted"] == CLASSES[int(predicted[wrong[0]])]


def test_text_names_classes_confusions_and_images(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(packed(squeezenet1_1(num_classes=3).state_dict()))
    idle, training = Report(pid=7, region="r", bucket="b"), Report(pid=8, region="r", bucket="b", run="trained")
    monkeypatch.setattr("ossconsole.training.remote.control.peers", lambda: iter([idle, training]))
    assert evaluate(store, str(path), "--worst=2") == 0
    out, warnings = capsys.readouterr()
    assert warnings.count("Warning: ") == 1
    assert "The run trained (process 8) is active on this machine" in warnings
    assert f"of {VAL_SAMPLES} images" in out
    assert " taken for " in out
    assert out.count(f"{store.profile.dataset_prefix}/val/") == 2


def test_the_result_is_saved_beside_the_record_of_the_run(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(packed(squeezenet1_1(num_classes=3).state_dict(), run="20260101-000000-abcd"))
    assert evaluate(store, str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["saved"] == ""  # this machine has no such run
    record = record_path("20260101-000000-abcd")
    RunRecord(record).close()
    assert evaluate(store, str(path), "--worst=2") == 0
    assert "`ossconsole report 20260101-000000-abcd` shows it" in capsys.readouterr().out
    found = read_predictions(record)
    assert found is not None
    assert (found.images, found.checkpoint) == (VAL_SAMPLES, str(path))
    for wrong in found.worst:
        shown = np.asarray(Image.open(io.BytesIO(wrong.thumbnail)), np.float32)
        as_stored = image(int(wrong.key.rpartition("/")[2].removesuffix(".u8"))).transpose(1, 2, 0)
        assert np.abs(shown.mean((0, 1)) - as_stored.mean((0, 1))).max() < 4  # of 255; noise compresses badly


def test_a_run_is_evaluated_with_its_best_checkpoint_that_is_left(
    store: ObjectStore, sandboxed_bucket: Sandboxed, tmp_path: Path
) -> None:
    profile, record = store.profile, tmp_path / "run.jsonl"
    run = events.Run(
        time=1.0,
        run="run",
        version="1",
        bucket=profile.bucket,
        region=profile.region,
        dataset_prefix=profile.dataset_prefix,
        settings={"device": "cpu"},
    )
    saved = [
        events.Checkpoint(time=2.0 + at, key=key, bytes=1, seconds=1.0, stable_key="s", best_key=best)
        for at, (key, best) in enumerate((("evaluated/best.pt", "b"), ("evaluated/newest.pt", "")))
    ]
    with RunRecord(record) as opened:
        opened.append(run, *saved)
    store.put("evaluated/newest.pt", packed(squeezenet1_1(num_classes=3).state_dict()))
    elsewhere = msgspec.structs.replace(profile, dataset_prefix="elsewhere")
    for best in (False, True):
        if best:
            store.put("evaluated/best.pt", packed(squeezenet1_1(num_classes=3).state_dict()))
        job = run_to_end(EvaluationJob(record, elsewhere, sandboxed_bucket.owner))
        assert (job.state, job.progress().items_done) == (JobState.DONE, VAL_SAMPLES), job.error
        found = read_predictions(record)
        assert found is not None
        assert found.checkpoint == store.uri(f"evaluated/{'best' if best else 'newest'}.pt")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": ["a", "b", "c"]}, "is not for the 3 classes of this dataset"),
        ({"image_size": None}, "does not say for which model and image size"),
        ({"model_name": "another"}, "does not say for which model and image size"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(packed(squeezenet1_1(num_classes=3).state_dict(), **changes))
    assert evaluate(store, str(path)) == 1
    assert problem in capsys.readouterr().err


def test_a_gpu_and_the_cpu_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["evaluate", "best", "--device=cpu", "--gpu=1"]) == 2
    assert "--gpu has no effect with --device cpu" in capsys.readouterr().err
