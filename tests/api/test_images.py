"""`ossconsole.OssImages` and `OssCheckpoints` on a real sandbox, read and written by the real connector."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ossconsole
from ossconsole.api.arguments import ArgumentError
from ossconsole.api.images import _device
from ossconsole.cli.options import OpenTarget
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.storage.client import ObjectStore
from ossconsole.training.checkpoints.store import CheckpointStore
from ossconsole.training.data import training_data
from ossconsole.training.remote import control
from tests.api.conftest import steps_of


def images(split: str = "train", **settings: object) -> ossconsole.OssImages:
    return ossconsole.OssImages(split, **({"batch_size": 40, "workers": 1, "profile": "sandbox"} | settings))  # type: ignore[arg-type]


def rows(loader: ossconsole.OssImages) -> list[int]:
    """The rows of the newest batch in the dataset."""
    assert loader.last_batch is not None
    return [int(row) for row in loader.last_batch.rows]


def test_an_epoch_has_each_image_once_and_the_next_one_another_order(sandbox: OpenTarget) -> None:
    with images() as loader:
        store = ObjectStore(sandbox.profile, sandbox.credentials)
        count = training_data(store, sandbox.profile.dataset_prefix).count("train")
        epochs = []
        for _ in range(2):
            seen = []
            for pictures, labels in loader:
                assert pictures.shape == (len(labels), 3, loader.image_size, loader.image_size)
                assert (pictures.dtype, labels.dtype) == (torch.uint8, torch.int64)
                seen += rows(loader)
            epochs.append(seen)
        assert len(epochs[0]) == count
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
        assert epochs[0] != epochs[1]
        assert len(loader) == -(-count // 40)


def test_the_validation_split_is_read_in_order_without_augmentation(sandbox: OpenTarget) -> None:
    with images("val", device="cpu") as loader:
        first = [(pictures, rows(loader)) for pictures, _ in loader]
        second = [(pictures, rows(loader)) for pictures, _ in loader]
        assert len(first) == len(loader)
        for (pictures, positions), (again, repeated) in zip(first, second, strict=True):
            assert positions == repeated == sorted(positions)
            assert torch.equal(pictures, again)
            assert pictures.dtype is torch.float32


def test_a_flat_val_takes_its_labels_from_a_file(sandbox: OpenTarget, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "JPEG")
    with contextlib.closing(ObjectStore(sandbox.profile, sandbox.credentials)) as store:
        for key in ("train/a/1.jpg", "train/b/2.jpg", "val/3.jpg", "val/4.jpg"):
            store.put(f"flat/{key}", buffer.getvalue())
    labels = tmp_path / "labels.json"
    labels.write_text('{"3.jpg": "b", "4.jpg": "a"}')
    with images("val", prefix="flat", image_size=32, val_labels=str(labels), class_index="none") as loader:
        assert [found.tolist() for _, found in loader] == [[1, 0]]


@pytest.mark.slow
def test_a_batch_without_usable_samples_is_left_out(sandbox: OpenTarget) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "JPEG")
    with contextlib.closing(ObjectStore(sandbox.profile, sandbox.credentials)) as store:
        for name, content in (("a/1", buffer.getvalue()), ("a/2", b"no image"), ("b/3", buffer.getvalue())):
            store.put(f"broken/train/{name}.jpg", content)
    with images(prefix="broken", image_size=32, batch_size=1, val_split=0.0) as loader:
        assert sorted(found.item() for _, found in loader) == [0, 1]
        assert loader.epoch == 1


def test_a_loop_resumes_with_the_next_batch(sandbox: OpenTarget) -> None:
    with images(seed=3) as loader:
        whole = [rows(loader) for _ in loader]
        whole += [rows(loader) for _ in loader]
    with images(seed=3) as loader:
        first = []
        for number, _ in enumerate(loader):
            first.append(rows(loader))
            if number == 5:
                state = loader.state_dict()
                break
    with images(seed=3) as loader:
        loader.load_state_dict(state)
        rest = [rows(loader) for _ in loader]
        rest += [rows(loader) for _ in loader]
    assert first + rest == whole


def test_a_state_of_another_order_is_refused(sandbox: OpenTarget) -> None:
    with images(seed=1) as loader, pytest.raises(ConsoleError, match="seed 2"):
        loader.load_state_dict(loader.state_dict() | {"seed": 2})


def test_after_a_break_the_next_loop_is_the_next_epoch(sandbox: OpenTarget) -> None:
    with images() as loader:
        next(iter(loader))
        assert len(list(loader)) == len(loader)
        assert loader.last_batch is not None
        assert loader.last_batch.request.epoch == 2


def test_a_console_switches_the_endpoint_of_a_watched_loop(sandbox: OpenTarget) -> None:
    with images() as loader, ossconsole.watch(loader) as watched:
        for number, _ in enumerate(watched):
            if number == 1:
                answer = control.ask(
                    os.getpid(),
                    control.SwitchEndpoint(run=watched.run_id, endpoint=EndpointKind.ACCELERATED),
                )
                assert answer.problem == ""
        for _ in watched:
            pass
    found = steps_of(watched.run_id)
    assert {step.endpoint for step in found} == set(EndpointKind)
    assert found[-1].endpoint is EndpointKind.ACCELERATED
    assert found[-1].bytes > 0


@pytest.mark.slow
def test_each_watch_of_a_loader_is_a_run_of_its_own(sandbox: OpenTarget) -> None:
    with images() as loader:
        with ossconsole.watch(loader) as stopped:
            for _ in stopped:
                assert control.ask(os.getpid(), control.Stop(run=stopped.run_id)).problem == ""
        with ossconsole.watch(loader) as whole:
            assert len(list(whole)) == len(loader)
        assert next(iter(loader), None) is not None
    assert [step.step for step in steps_of(stopped.run_id)] == [1]
    assert len(steps_of(whole.run_id)) == len(loader)


@pytest.mark.parametrize(("problem", "call"), [("is not a split", {"split": "test"}), ("nosuch", {"prefix": "nosuch"})])
def test_wrong_uses_are_one_sentence(sandbox: OpenTarget, problem: str, call: dict[str, str]) -> None:
    with pytest.raises(ConsoleError, match=problem):
        images(**call)


@pytest.mark.parametrize(
    "call",
    [
        {"batch_size": 0},
        {"batch_size": "64"},
        {"batch_size": 64.0},
        {"workers": 0},
        {"seed": "a"},
        {"endpoint": "fast"},
        {"val_split": 2},
        {"image_size": -5},
        {"augment": "yes"},
        {"device": "gpu"},
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_opened(call: dict[str, object]) -> None:
    (name, value), *_ = call.items()
    with pytest.raises(ArgumentError, match=re.escape(f"ossconsole.OssImages got {name}={value!r}")):
        images(**(call | {"profile": "nosuch"}))  # type: ignore[arg-type]


def test_integers_of_numpy_are_whole_numbers(sandbox: OpenTarget) -> None:
    with images(batch_size=np.int64(500)) as loader:
        assert (loader.batch_size, len(loader)) == (500, 1)


def test_cuda_is_the_current_gpu_with_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="PyTorch cannot use a GPU here"):
        _device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    # torch.cuda.set_device refuses a device without an index
    assert [str(_device(name)) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


def test_closed_images_and_states_of_others_are_refused(sandbox: OpenTarget) -> None:
    with images() as loader:
        state = loader.state_dict()
        for wrong in (None, {}, {"model": 1}, state | {"next": "5"}, state | {"next": -1}):
            with pytest.raises(ArgumentError, match="not a state of OssImages"):
                loader.load_state_dict(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConsoleError, match="were closed"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ([1], "The state is a list"),
        ({"best": np.float64(0.5)}, "numpy"),
        ({"arguments": argparse.Namespace(lr=0.1)}, r"argparse\.Namespace"),
        ({"model": torch.nn.Linear(1, 1)}, "Linear"),
        ({"schedule": lambda: 1}, "cannot be saved"),
    ],
)
def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(
    sandbox: OpenTarget, state: dict[str, object], problem: str
) -> None:
    with ossconsole.OssCheckpoints("odd", profile="sandbox") as checkpoints:
        with pytest.raises(ArgumentError, match=problem):
            checkpoints.save(state, step=1)
        with pytest.raises(ArgumentError, match="got step='1'"):
            checkpoints.save({}, step="1")  # type: ignore[arg-type]
    with pytest.raises(ConsoleError, match="were closed"):
        checkpoints.save({}, step=1)


@pytest.mark.parametrize("name", ["", "a/b", None])
def test_a_name_that_is_no_part_of_a_key_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="got the name"):
        ossconsole.OssCheckpoints(name)


def test_checkpoints_are_verified_copied_and_kept(sandbox: OpenTarget) -> None:
    state = {"model": {"weight": torch.arange(6.0)}, "step": 1}
    with ossconsole.OssCheckpoints("mine", keep=2, profile="sandbox") as checkpoints:
        with pytest.raises(ConsoleError, match="There is no checkpoint"):
            checkpoints.load()
        keys = []
        for step, top1 in ((1, 0.5), (2, 0.75), (3, 0.25), (4, 0.3)):
            state["step"] = step
            keys.append(checkpoints.save(state, step=step, epoch=1, top1=top1, background=step % 2 == 0).result())
        assert checkpoints.load()["step"] == 4
        best = checkpoints.load("best")
        assert best["step"] == 2
        assert torch.equal(best["model"]["weight"], torch.arange(6.0))
        assert checkpoints.load(keys[2])["step"] == 3
        store = ObjectStore(sandbox.profile, sandbox.credentials)
        listed = {entry.key for entry in store.list_all(f"{sandbox.profile.checkpoint_prefix}/mine")}
    names = collections.Counter(Path(key).name for key in listed)
    assert set(names) == {"mine.pt", "mine-best.pt", *(Path(key).name for key in keys[1:])}


def test_the_best_checkpoint_is_the_best_of_those_that_were_written(
    sandbox: OpenTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ossconsole.OssCheckpoints("fragile", profile="sandbox") as checkpoints:
        checkpoints.save({"step": 1}, step=1, top1=0.25)
        with monkeypatch.context() as patched:
            patched.setattr(CheckpointStore, "save", refuse)
            with pytest.raises(ConsoleError, match="no space"):
                checkpoints.save({"step": 2}, step=2, top1=0.75)
        checkpoints.save({"step": 3}, step=3, top1=0.5)
        checkpoints.save({"step": 4}, step=4, top1=float("nan"))
        assert checkpoints.load("best")["step"] == 3


def refuse(*_: object, **__: object) -> None:
    raise ConsoleError("There is no space.")


def test_the_readers_end_with_the_loader(sandbox: OpenTarget) -> None:
    before = threading.active_count()
    with images() as loader:
        next(iter(loader))
    assert threading.active_count() <= before + 1
