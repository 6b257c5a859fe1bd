"""Where weights come from, and what untrusted files cannot do."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import WeightsEnum, resnet18

from ossconsole.config.errors import ConsoleError
from ossconsole.training.checkpoint import unpack
from ossconsole.training.model import build_model, is_imagenet, load_untrusted

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


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: WeightsEnum, *args: object, **kwargs: object) -> None:
        raise URLError("network is unreachable")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(ConsoleError, match="resnet18") as raised:
        build_model(CLASSES, "imagenet", no_fetch)
    assert "--weights FILE" in raised.value.remedy
    assert "checkpoints" in raised.value.remedy


@pytest.mark.parametrize("name", ["missing.pt", "text.pt", "foreign.pt", "cut.pt"])
def test_weights_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "foreign.pt").write_bytes(saved({"layer.weight": torch.zeros(2)}))
    (tmp_path / "cut.pt").write_bytes(saved(resnet18(num_classes=3).state_dict())[:100_000])
    with pytest.raises(ConsoleError):
        build_model(CLASSES, str(tmp_path / name), no_fetch)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "boom"
    for data in (pickle.dumps(Bomb(target), protocol), saved({"format": Bomb(target)})):
        with pytest.raises(ConsoleError, match=r"cannot be read safely|not a checkpoint"):
            load_untrusted(data, "oss://b/k")
    assert not target.exists()


def test_a_checkpoint_of_another_program_or_version_is_told_apart() -> None:
    with pytest.raises(ConsoleError, match="not a checkpoint of this console"):
        unpack(saved({"model": {}}), "oss://b/k")
    with pytest.raises(ConsoleError, match="version 99"):
        unpack(saved({"format": "ossconsole-checkpoint", "version": 99}), "oss://b/k")
