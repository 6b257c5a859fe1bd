"""`weights`: what it writes of which checkpoint, and that plain torchvision loads it with the printed lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torchvision.models import get_model, resnet18

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.retry import NO_RETRY
from ossconsole.training.checkpoints import export
from tests.sandboxed import Sandboxed, set_keys
from tests.torch_files import torch_bytes

CLASSES = ["cat", "dog", "fox"]


def checkpoint(model: str = "resnet18", size: int = 64, **changes: Any) -> dict[str, Any]:
    options = {"image_size": size} if model.startswith("vit_") else {}
    return {
        "format": "ossconsole-checkpoint",
        "version": 1,
        "model": get_model(model, num_classes=3, **options).state_dict(),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
        "model_name": model,
        "classes": CLASSES,
        "image_size": size,
        "epoch": 2,
        "step": 40,
        "metrics": {"top1": 0.75},
        **changes,
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(torch_bytes(checkpoint()))
    return path


def weights(*arguments: object) -> int:
    return run_group(ossconsole, ["weights", *map(str, arguments)])


def printed_code(out: str) -> str:
    return "\n".join(line[4:] for line in out.splitlines() if line.startswith("    "))


def run_plain(code: str, folder: Path) -> str:
    """Runs the code without this package: of it, and of the command line's libraries, nothing is imported."""
    check = "\nimport sys; assert not {'ossconsole', 'click', 'oss2', 'textual', 'msgspec'} & set(sys.modules)"
    shows = "\nimport torch; torch.manual_seed(0); print(model(normalize(torch.rand(2, 3, 64, 64))).sum().item())"
    done = subprocess.run(
        [sys.executable, "-c", code + check + shows], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("w.pt", marks=pytest.mark.slow),
        pytest.param("w.pth", marks=pytest.mark.slow),
        "w.safetensors",
        "with 'quotes'.pt",
    ],
)
def test_plain_torchvision_loads_it_with_the_five_printed_lines(
    file: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = file.parent / name
    assert weights(file, "--out", out) == 0
    code = printed_code(capsys.readouterr().out)
    assert len(code.splitlines()) == 5
    expected = resnet18(num_classes=3).eval()
    expected.load_state_dict(torch.load(file, weights_only=True)["model"])
    torch.manual_seed(0)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted = expected((torch.rand(2, 3, 64, 64) - mean) / std).sum().item()
    assert float(run_plain(code, file.parent)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit_b_16", "googlenet"])
def test_models_with_arguments_of_their_own_load_too(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    state = get_model(model, num_classes=3, **({"aux_logits": False} if model == "googlenet" else {"image_size": 64}))
    path.write_bytes(torch_bytes(checkpoint() | {"model": state.state_dict(), "model_name": model}))
    assert weights(path, "--out", tmp_path / "w.pt") == 0
    run_plain(printed_code(capsys.readouterr().out), tmp_path)


def test_the_metadata_are_in_the_safetensors_and_beside_a_pt(file: Path) -> None:
    expected = {
        "model_name": "resnet18",
        "classes": CLASSES,
        "image_size": 64,
        "epoch": 2,
        "step": 40,
        "top1": 0.75,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "averaged": False,
    }
    assert weights(file, "--out", file.with_name("w.pt")) == 0
    beside = json.loads(file.with_name("w.pt.json").read_text())
    assert beside.pop("written_by").startswith("ossconsole ")
    assert beside == expected
    bare = torch.load(file.with_name("w.pt"), weights_only=True)
    assert bare.keys() == resnet18().state_dict().keys()
    assert weights(file, "--out", file.with_name("w.safetensors")) == 0
    with safe_open(file.with_name("w.safetensors"), "pt") as opened:
        found = dict(opened.metadata())
    assert found.pop("format") == "pt"
    assert json.loads(found["classes"]) == CLASSES
    assert {name: json.loads(found[name]) for name in expected if name != "model_name"} | {
        "model_name": found["model_name"]
    } == expected
    # It can be exported again, with all that it says.
    assert weights(file.with_name("w.safetensors"), "--out", file.with_name("again.pt")) == 0
    again = json.loads(file.with_name("again.pt.json").read_text())
    assert {**again, "written_by": ""} == {**expected, "written_by": ""}


def test_averaged_weights_are_written_where_there_are_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    current, averaged = resnet18(num_classes=3).state_dict(), resnet18(num_classes=3).state_dict()
    path, out = tmp_path / "checkpoint.pt", tmp_path / "w.pt"
    of_torch = {"n_averaged": torch.tensor(2), **{f"module.{name}": value for name, value in averaged.items()}}
    layouts: list[dict[str, Any]] = [
        checkpoint(model="resnet18") | {"model": averaged, "current": current},
        {"model": current, "model_ema": of_torch, "epoch": 3},
    ]
    for layout in layouts:
        path.write_bytes(torch_bytes(layout))
        assert weights(path, "--out", out, "--force") == 0
        assert "the averaged weights (EMA)" in capsys.readouterr().out
        assert torch.equal(torch.load(out, weights_only=True)["conv1.weight"], averaged["conv1.weight"])


def test_what_cannot_be_written_or_read_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = file.parent
    (folder / "there.pt").write_bytes(b"mine")
    (folder / "broken.pt").write_bytes(file.read_bytes()[:5000])
    (folder / "nan.pt").write_bytes(torch_bytes({"w": torch.tensor([float("nan")])}))
    for arguments, problem in (
        ((file, "--out", folder / "w.h5"), "none of the suffixes .pt, .pth, .safetensors, .onnx"),
        ((file, "--out", folder / "there.pt"), "exists already. Add --force"),
        ((folder / "broken.pt", "--out", folder / "w.pt"), "cut short or damaged"),
        ((folder / "nan.pt", "--out", folder / "w.pt"), "NaN or infinite"),
        ((file, "--out", folder / "w.pt", "--model", "resnet19"), "is not a classification model"),
    ):
        assert weights(*arguments) != 0
        assert problem in capsys.readouterr().err
    assert (folder / "there.pt").read_bytes() == b"mine"
    assert not (folder / "w.pt").exists()


def test_onnx_without_its_packages_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert weights(tmp_path / "not-there.pt", "--out", tmp_path / "w.onnx") != 0
    error = " ".join(capsys.readouterr().err.split())
    assert "Writing w.onnx needs onnx" in error
    assert "pip install 'ossconsole[onnx]'" in error


def test_onnx_of_weights_that_do_not_say_their_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "_ONNX_PACKAGES", ())
    (tmp_path / "other.pt").write_bytes(torch_bytes({"state_dict": {"w": torch.ones(2)}}))
    assert weights(tmp_path / "other.pt", "--out", tmp_path / "w.onnx") != 0
    assert "do not say their model, classes and image size" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "w.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "vit_b_16"])
def test_onnx_gives_what_torch_gives_for_batches_of_any_length(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    file, out = tmp_path / "checkpoint.pt", tmp_path / "w.onnx"
    file.write_bytes(torch_bytes(checkpoint(model)))
    assert weights(file, "--out", out) == 0
    code = printed_code(capsys.readouterr().out)
    session = onnxruntime.InferenceSession(str(out))
    said = session.get_modelmeta().custom_metadata_map
    assert (said["model_name"], json.loads(said["classes"]), json.loads(said["image_size"])) == (model, CLASSES, 64)
    assert (json.loads(said["mean"]), json.loads(said["std"])) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    options = {"image_size": 64} if model.startswith("vit_") else {}
    expected = get_model(model, num_classes=3, **options).eval()
    expected.load_state_dict(torch.load(file, weights_only=True)["model"])
    for length in (1, 2, 7):
        images = torch.randn(length, 3, 64, 64)
        names: dict[str, Any] = {"images": images.numpy()}
        exec(code, names)
        assert names["logits"].shape == (length, 3)
        with torch.no_grad():
            difference = (torch.from_numpy(names["logits"]) - expected(images)).abs().max().item()
        assert difference < 1e-4


def test_weights_of_another_program_are_written_without_lines_to_load_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.pt").write_bytes(torch_bytes({"state_dict": {"module.w": torch.ones(2)}, "epoch": 1}))
    assert weights(tmp_path / "other.pt", "--out", tmp_path / "w.pt") == 0
    out = capsys.readouterr().out
    assert "under state_dict, without the prefix module." in out
    assert "does not say its model" in out
    assert torch.load(tmp_path / "w.pt", weights_only=True)["w"].tolist() == [1, 1]


def test_keys_latest_and_best_are_read_from_the_bucket(
    sandboxed_bucket: Sandboxed,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = sandboxed_bucket.profile(f"weights/{request.node.name}")
    store = ObjectStore(profile, sandboxed_bucket.owner, timeout_s=5.0, retry=NO_RETRY)
    prefix, info = profile.checkpoint_prefix, sandboxed_bucket.process.info
    set_keys(monkeypatch, info)
    options = (
        f"--bucket={profile.bucket}",
        f"--region={profile.region}",
        f"--standard-endpoint={profile.standard_endpoint}",
        f"--checkpoint-prefix={prefix}/",
        "--json",
        "--force",
    )

    def step_of(named: str) -> int:
        assert weights(named, "--out", tmp_path / "w.safetensors", *options) == 0
        step: int = json.loads(capsys.readouterr().out)["metadata"]["step"]
        return step

    older = f"{prefix}/resnet18-20260101-000000-aaaa-e01-s000010.pt"
    store.put(older, torch_bytes(checkpoint(step=10)))
    store.put(f"{prefix}/resnet18-20260101-000000-aaaa-e02-s000020.pt", torch_bytes(checkpoint(step=20)))
    store.put(f"{prefix}/resnet18.pt", torch_bytes(checkpoint(step=20)))
    store.put(f"{prefix}/resnet18-best.pt", torch_bytes(checkpoint(step=15)))
    assert [step_of(each) for each in ("latest", "best", older, store.uri(older))] == [20, 15, 10, 10]
    store.put(f"{prefix}/resnet18.pt", torch_bytes(checkpoint(step=20))[:9000])
    assert step_of("latest") == 20
    assert weights("oss://another/x.pt", "--out", tmp_path / "w.pt", *options) == 1
