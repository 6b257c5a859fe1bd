"""Where weights come from, and what untrusted files cannot do."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.models import WeightsEnum, resnet18, resnet34, resnet50

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.storage.checkpoints.inspect import inspect_local_checkpoint
from ossconsole.training.checkpoints.checkpoint import unpack
from ossconsole.training.compute.model import build_model, is_imagenet

CLASSES = ("cat", "dog", "fox")


def no_fetch(uri: str) -> bytes:
    raise AssertionError(uri)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Bomb:
    """Writes a file when it is unpickled by something that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "boom"))


def test_no_weights_gives_a_head_for_the_classes() -> None:
    assert build_model(CLASSES, "none", no_fetch).state_dict()["fc.bias"].shape == (3,)


def test_a_file_gives_its_weights_and_a_new_head_where_its_own_does_not_fit(tmp_path: Path) -> None:
    source = resnet18(num_classes=7)
    path = tmp_path / "weights.pt"
    path.write_bytes(saved(source.state_dict()))
    model = build_model(CLASSES, str(path), no_fetch)
    assert torch.equal(model.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])
    assert model.state_dict()["fc.weight"].shape[0] == 3


def test_an_object_of_the_bucket_gives_the_model_of_a_checkpoint() -> None:
    source = resnet18(num_classes=3)
    model = build_model(CLASSES, "oss://b/k", lambda _uri: saved({"model": source.state_dict(), "epoch": 1}))
    assert torch.equal(model.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_a_thousand_other_classes_do_not_get_imagenets_head(tmp_path: Path) -> None:
    wordnet = tuple(f"n{number:08d}" for number in range(1000))
    assert is_imagenet(wordnet)
    assert not is_imagenet(tuple(f"c{number}" for number in range(1000)))
    source = resnet18(num_classes=1000)
    path = tmp_path / "weights.pt"
    path.write_bytes(saved(source.state_dict()))
    kept = build_model(wordnet, str(path), no_fetch)
    assert torch.equal(kept.state_dict()["fc.weight"], source.state_dict()["fc.weight"])
    new = build_model(tuple(f"c{number}" for number in range(1000)), str(path), no_fetch)
    assert not torch.equal(new.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_a_failed_download_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: WeightsEnum, *args: object, **kwargs: object) -> None:
        raise URLError("network is unreachable")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(ConsoleError, match="resnet18") as raised:
        build_model(CLASSES, "imagenet", no_fetch)
    assert "--weights FILE" in raised.value.remedy
    assert "checkpoints" in raised.value.remedy


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a ResNet-18 for the classes."""
    return {**resnet18(num_classes=len(CLASSES)).state_dict(), **changes}


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state().items()}


def legacy(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"something")
    return buffer.getvalue()


def tensors_as_safetensors() -> bytes:
    header = json.dumps({"fc.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def whole_model() -> bytes:
    return saved(torch.nn.Sequential(torch.nn.Linear(2, 2)))


_NAMES_CODE = r"runs code when it is loaded .*(getattr|write_text)"
REFUSED: dict[str, tuple[Callable[[Path], bytes], str, str]] = {
    "hostile zip": (
        lambda target: saved(Bomb(target)),
        _NAMES_CODE,
        "trust",
    ),
    "hostile legacy": (lambda target: legacy(Bomb(target)), _NAMES_CODE, "trust"),
    "hostile pickle": (
        lambda target: pickle.dumps(Bomb(target), 4),
        _NAMES_CODE,
        "trust",
    ),
    "hostile in a dictionary": (lambda target: saved({"model": Bomb(target), **state()}), "runs code", "trust"),
    "whole model": (lambda _: whole_model(), "whole pickled model, which is code", "state_dict"),
    "safetensors": (lambda _: tensors_as_safetensors(), "safetensors format", "load_file"),
    "web page": (lambda _: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page", "curl"),
    "empty": (lambda _: b"", "is empty", "Copy it again"),
    "cut": (lambda _: saved(state())[:100_000], "cut short or damaged", "older file"),
    "cut legacy": (lambda _: legacy(state())[:5_000], "cut short or damaged", "older file"),
    "another zip": (lambda _: zipped("word/document.xml"), "no data.pkl", "another file"),
    "gzip": (lambda _: gzip.compress(saved(state())), "gzip", "gunzip"),
    "text": (lambda _: b"not a checkpoint", "not a file that torch.save wrote", "torch.save"),
    "NumPy values": (lambda _: saved({"loss": np.float64(1), **state()}), "other than tensors", "state_dict"),
    "list": (lambda _: saved([torch.zeros(1)]), "contains a list", "state_dict"),
    "no weights": (lambda _: saved({"epoch": 1, "lr": 0.1}), "no weights, only 'epoch', 'lr'", "state_dict"),
    "state_dict": (lambda _: saved({"state_dict": state(), "epoch": 1}), "under 'state_dict'", r"\['state_dict'\]"),
    "model_state_dict": (lambda _: saved({"model_state_dict": state()}), "under 'model_state_dict'", "torch.save"),
    "DistributedDataParallel": (lambda _: saved(renamed("module.")), "DistributedDataParallel", "model.module.state"),
    "torch.compile": (lambda _: saved(renamed("_orig_mod.")), "torch.compile", "model._orig_mod.state"),
    "NaN": (lambda _: saved(state(**{"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)})), "NaN", "earlier"),
    "ResNet-34": (lambda _: saved(resnet34().state_dict()), "the key layer1.2.conv1.weight is unexpected", "resnet18"),
    "ResNet-50": (lambda _: saved(resnet50().state_dict()), "is unexpected|has the shape", "resnet18"),
    "another shape": (
        lambda _: saved(state(**{"bn1.bias": torch.zeros(3)})),
        r"bias has the shape \(3,\)",
        "resnet18",
    ),
    "another model": (lambda _: saved({"layer.weight": torch.zeros(2)}), "conv1.weight is missing", "resnet18"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_are_refused_in_our_own_words_and_nothing_in_them_runs(tmp_path: Path, kind: str) -> None:
    make, what, remedy = REFUSED[kind]
    target, path = tmp_path / "ran", tmp_path / "file.pt"
    path.write_bytes(make(target))
    with pytest.raises(ConsoleError, match=what) as raised:
        build_model(CLASSES, str(path), no_fetch)
    assert re.search(remedy, raised.value.remedy)
    for advice in (
        "weights_only=False",
        "weights_only to False",
        "weights_only` set",
        "Re-running",
        "allowlist",
        "miniz",
    ):
        assert advice not in str(raised.value)
    assert str(path) in raised.value.message
    assert not target.exists()


@pytest.mark.parametrize("kind", ["hostile zip", "whole model", "safetensors", "web page", "empty", "cut", "text"])
def test_the_same_files_are_no_checkpoints_to_resume_from_nor_to_inspect(tmp_path: Path, kind: str) -> None:
    make, what, _ = REFUSED[kind]
    path = tmp_path / "file.pt"
    path.write_bytes(make(tmp_path / "ran"))
    with pytest.raises(ConsoleError, match=what):
        unpack(path.read_bytes(), "oss://b/k")
    if kind in {"hostile zip", "whole model"}:
        assert inspect_local_checkpoint(path).foreign
    else:
        with pytest.raises(ConsoleError) as raised:
            inspect_local_checkpoint(path)
        assert "zlib" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        build_model(CLASSES, str(tmp_path / "missing.pt"), no_fetch)
    with pytest.raises(SettingsError, match="is a folder"):
        build_model(CLASSES, str(tmp_path), no_fetch)


def test_a_checkpoint_of_another_program_or_version_is_refused() -> None:
    with pytest.raises(ConsoleError, match="not a checkpoint of this console"):
        unpack(saved({"model": {}}), "oss://b/k")
    with pytest.raises(ConsoleError, match="version 99"):
        unpack(saved({"format": "ossconsole-checkpoint", "version": 99}), "oss://b/k")
