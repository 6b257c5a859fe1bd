from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.checkpoints.compare import pair_tensors, tensor_distances
from ossconsole.storage.checkpoints.inspect import (
    CheckpointError,
    CheckpointInfo,
    LocalFiles,
    RangedFile,
    inspect_checkpoint,
    read_checkpoint,
)
from ossconsole.storage.checkpoints.pickle_reader import NotAPickleError, walk_pickle
from ossconsole.storage.client import ObjectStore
from tests.torch_files import torch_bytes


def inspected(path: Path) -> CheckpointInfo:
    """What is in a local file."""
    return inspect_checkpoint(LocalFiles(), str(path), path.stat().st_size)


def read(data: bytes, budget: int = 1 << 24) -> CheckpointInfo:
    file = RangedFile(lambda start, length: data[start : start + length], len(data), budget=budget)
    return read_checkpoint(file, "x.pt")


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
    return sink.getvalue()


def own_checkpoint(scale: float = 1.0) -> dict[str, Any]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        next(model.parameters()).mul_(scale)
    return {
        "format": "ossconsole-checkpoint",
        "version": 1,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": {"last_epoch": 3, "kind": "cosine"},
        "epoch": 3,
        "step": 120,
        "seed": 7,
        "classes": ["ants", "bees"],
        "sample_format": "image-u8",
        "image_size": 64,
        "metrics": {"train_loss": 0.5, "val_loss": np.float64(0.25), "top1": 0.9, "top5": float("nan")},
        "versions": {"torch": torch.__version__, "ossconsole": "0.1"},
        "run": "r1",
    }


def test_a_checkpoint_of_ossconsole_is_described_in_full() -> None:
    checkpoint = read(torch_bytes(own_checkpoint()))
    assert checkpoint.kind == "ossconsole checkpoint"
    assert checkpoint.resumable
    assert checkpoint.foreign == ()
    assert checkpoint.fields["epoch"] == 3
    assert checkpoint.fields["classes"] == ["ants", "bees"]
    assert checkpoint.metrics == {"train_loss": 0.5, "val_loss": 0.25, "top1": 0.9}
    assert checkpoint.versions["torch"] == str(torch.__version__)
    assert checkpoint.optimizer["momentum"] == 0.9
    assert checkpoint.schedule == {"last_epoch": 3, "kind": "cosine"}
    assert [(row.name, row.shape, row.dtype, row.bytes) for row in checkpoint.model[:2]] == [
        ("0.weight", (3, 4), "float32", 48),
        ("0.bias", (3,), "float32", 12),
    ]
    assert checkpoint.parameters == 3 * 4 + 3 + 3 + 3
    assert checkpoint.other_tensors == 4
    assert checkpoint.dtypes == ["float32", "int64"]


def test_any_torch_file_is_read() -> None:
    odd = {
        "half": torch.zeros(3, dtype=torch.bfloat16),
        "param": torch.nn.Parameter(torch.ones(2, 2)),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "sparse": torch.eye(3).to_sparse(),
        "array": np.arange(3),
        "nested": [{"deep": (torch.zeros(2),)}],
    }
    checkpoint = read(torch_bytes(odd))
    assert checkpoint.kind == "state dict"
    assert checkpoint.foreign == ()
    names = {row.name: row for row in checkpoint.model}
    assert names["half"].bytes == 6
    assert names["param"].tensor.is_parameter
    assert "nested.0.deep.0" in names
    assert checkpoint.fields["device"] == "cpu"
    assert read(torch_bytes({"state_dict": {"w": torch.zeros(2)}, "epoch": 1})).kind == "training checkpoint"
    assert read(torch_bytes({"only": 1})).kind == "torch file without tensors"


def read_as(name: str, data: bytes) -> CheckpointInfo:
    file = RangedFile(lambda start, length: data[start : start + length], len(data))
    return read_checkpoint(file, name)


def test_safetensors_are_read_from_their_header_alone() -> None:
    tensors = {"fc.weight": torch.zeros(500, 1000), "fc.bias": torch.zeros(500).half(), "n": torch.tensor(3)}
    metadata = {"classes": '["ants", "bees"]', "image_size": "64", "top1": "0.75", "format": "pt", "note": "[[1]]"}
    found = read_as("a/w.safetensors", safetensors.torch.save(tensors, metadata))
    assert (found.kind, found.resumable, found.foreign) == ("safetensors file", False, ())
    assert {row.name: (row.shape, row.dtype, row.bytes) for row in found.model} == {
        "fc.weight": ((500, 1000), "float32", 2_000_000),
        "fc.bias": ((500,), "float16", 1000),
        "n": ((), "int64", 8),
    }
    assert found.fields == {
        "classes": ["ants", "bees"],
        "image_size": 64,
        "top1": 0.75,
        "format": "pt",
        "note": "[[1]]",
    }
    assert found.metrics == {"top1": 0.75}
    assert (found.fetched, found.requests) == (16 << 10, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (1 << 30).to_bytes(8, "little") + b"{}",
        (99).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (40_000).to_bytes(8, "little") + b"[" * 40_000,
        safetensors.torch.save({"w": torch.zeros(3)})[:-1],
    ],
)
def test_damaged_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        read_as("w.safetensors", data)


def test_the_index_of_a_dcp_folder_lists_its_tensors(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.bfloat16().state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    save_sharded(state, checkpoint_id=tmp_path)
    found = read_as("run/step-9/.metadata", (tmp_path / ".metadata").read_bytes())
    assert (found.kind, found.foreign, found.fields) == ("DCP checkpoint", (), {"files": 1})
    rows = {row.name: (row.shape, row.dtype, row.bytes) for row in found.model}
    assert rows["model.0.weight"] == ((3, 4), "bfloat16", 24)
    assert found.other_tensors == 4
    assert found.parameters == 3 * 4 + 3 + 3 + 3
    with pytest.raises(CheckpointError, match="not the index of a DCP checkpoint"):
        read_as(".metadata", pickle.dumps({"a": 1}))
    with pytest.raises(ConsoleError, match="in other files"):
        list(tensor_distances(found, tmp_path / ".metadata", found, tmp_path / ".metadata"))


def dcp_folder(folder: Path) -> Path:
    """The index of a DCP checkpoint as a training program writes it."""
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "step": 40,
        "run": "r1",
        "classes": ["cat", "dog"],
        "metrics": {"top1": 0.75},
        "versions": {"torch": "2.9"},
        "trainer": {"state": {"global_step": 9}, "name": "not shown"},
        "code": os.getcwd,  # pickled code is neither run nor shown
    }
    save_sharded(state, checkpoint_id=folder)
    return folder / ".metadata"


def test_many_plain_values_do_not_keep_a_dcp_folder_from_being_read(tmp_path: Path) -> None:
    lists = {f"names{number}": [f"class number {each}" for each in range(1500)] for number in range(40)}
    save_sharded({"w": torch.ones(3), "step": 5, **lists}, checkpoint_id=tmp_path)
    found = inspected(tmp_path / ".metadata")
    assert found.fields["step"] == 5
    assert found.fetched > 1 << 20


def test_the_plain_values_of_a_dcp_folder_come_from_the_files_beside_the_index(
    store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    index = dcp_folder(tmp_path)
    for path in tmp_path.iterdir():
        store.put(f"{prefix}{path.name}", path.read_bytes())
    found = inspect_checkpoint(store, f"{prefix}.metadata", index.stat().st_size)
    assert found.fields == {
        "epoch": 3,
        "step": 40,
        "run": "r1",
        "classes": ["cat", "dog"],
        "global_step": 9,
        "files": 1,
    }
    assert (found.metrics, found.versions) == ({"top1": 0.75}, {"torch": "2.9"})
    assert (found.optimizer["lr"], found.optimizer["momentum"]) == (0.1, 0.9)
    assert found.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found.requests <= 5
    assert not found.resumable
    assert inspected(index).fields == found.fields


def test_a_dcp_folder_that_lacks_a_file_or_a_part_of_it_says_which(
    store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    index = dcp_folder(tmp_path)
    data = tmp_path / "__0_0.distcp"
    store.put(f"{prefix}.metadata", index.read_bytes())
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is missing, or shorter"):
        inspect_checkpoint(store, f"{prefix}.metadata", index.stat().st_size)
    whole = data.read_bytes()
    for size in (0, len(whole) // 2):
        data.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"__0_0\.distcp is shorter"):
            inspected(index)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is missing, or shorter"):
        inspected(index)


def test_the_index_of_a_dcp_folder_names_every_file_and_none_outside_the_folder() -> None:
    def stored(name: str, file: str) -> tuple[MetadataIndex, _StorageInfo]:
        return MetadataIndex(name), _StorageInfo(relative_path=file, offset=0, length=10)

    files = dict(stored(f"w{at}", f"__{at}_0.distcp") for at in range(4))
    outside = dict([stored("epoch", "../secret"), stored("step", "/etc/passwd"), stored("run", "..")])
    index = Metadata(
        state_dict_metadata={name: BytesStorageMetadata() for name in ("epoch", "step", "run")},
        storage_data=files | outside,
    )
    data = pickle.dumps(index)
    file = RangedFile(lambda start, length: data[start : start + length], len(data))
    assert read_checkpoint(file, ".metadata", pytest.fail).fields == {"files": 4}


def test_a_pickled_module_is_shown_with_a_note_that_it_names_code() -> None:
    checkpoint = read(torch_bytes(torch.nn.Sequential(torch.nn.Linear(2, 2))))
    assert checkpoint.kind == "pickled object torch.nn.modules.container.Sequential"
    assert [row.name for row in checkpoint.model] == ["0.weight", "0.bias"]
    assert "torch.nn.modules.linear.Linear" in checkpoint.foreign
    assert not checkpoint.resumable


def test_45_megabytes_cost_a_thousandth(store: ObjectStore, prefix: str) -> None:
    model = torchvision.models.resnet18(num_classes=1000)
    data = torch_bytes(model.state_dict())
    store.put(f"{prefix}resnet18.pt", data)
    checkpoint = inspect_checkpoint(store, f"{prefix}resnet18.pt", len(data))
    assert checkpoint.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(checkpoint.model) == len(model.state_dict())
    assert checkpoint.requests == 2
    assert checkpoint.fetched < len(data) / 800


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_hostile_pickle_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    planted = tmp_path / "planted"
    data = zipped(pickle.dumps({"format": "ossconsole-checkpoint", "model": {"w": Hostile(planted)}}, protocol))
    checkpoint = read(data)
    assert checkpoint.foreign == (f"{os.system.__module__}.system",)
    assert not checkpoint.resumable
    assert not planted.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"plain text" * 10, "not a file that torch.save wrote"),
        (torch_bytes({"a": 1}, _use_new_zipfile_serialization=False), "before 1.6"),
        (zipped(pickle.dumps({}), zipfile.ZIP_DEFLATED), "compressed"),
        (zipped(b"\x80\x02}q\x00."[:-1]), "malformed|no end"),
        (zipped(b"\x80\x02\x85."), "malformed"),
        (zipped(b"\x80\x04\x8e" + b"\xff" * 8), "malformed"),
        (zipped(b"\x80\x05\x97."), "NEXT_BUFFER"),
        (zipped(b"(" * 100_000 + b"."), ""),
    ],
    ids=["empty", "text", "legacy", "deflated", "no end", "stack", "length", "buffer", "marks"],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(data: bytes, message: str) -> None:
    if not message:
        assert read(data).model == []
        return
    with pytest.raises(CheckpointError, match=message):
        read(data)


def test_a_zip_of_something_else_says_so() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"without data\.pkl"):
        read(sink.getvalue())


def test_nesting_and_sharing_end() -> None:
    deep = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
    assert read(zipped(deep)).model == []
    tuple_as_key = b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."  # Python's own hash of it would end the process
    assert read(zipped(tuple_as_key)).fields == {"<tuple>": 1}
    shared = (
        b"\x80\x02]q\x00"
        + b"".join(b"]q" + bytes([n + 1]) + b"h" + bytes([n]) + b"ah" + bytes([n]) + b"a" for n in range(200))
        + b"."
    )
    assert read(zipped(shared)).model == []
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    assert read(zipped(pickle.dumps(cyclic, 2))).model == []


def test_the_budget_holds() -> None:
    data = torch_bytes({f"tensor {number}": torch.zeros(1) for number in range(2000)})
    with pytest.raises(CheckpointError, match="more than"):
        read(data, budget=64 << 10)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    with contextlib.suppress(NotAPickleError):
        walk_pickle(data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30))
@example(235635)  # the directory of the zip file names more bytes than there are
def test_a_damaged_checkpoint_is_read_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(DAMAGED)
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    with contextlib.suppress(ConsoleError):
        read(bytes(data[: chance.randint(1, len(data))] if chance.random() < 0.3 else data))


DAMAGED = torch_bytes(own_checkpoint())


def test_two_checkpoints_compared(tmp_path: Path) -> None:
    left_file, right_file = tmp_path / "left.pt", tmp_path / "right.pt"
    other = own_checkpoint(scale=1.5)
    other["model"] = {**other["model"], "new": torch.zeros(2), "0.bias": torch.zeros(9)}
    left_file.write_bytes(torch_bytes(own_checkpoint()))
    right_file.write_bytes(torch_bytes(other))
    left, right = (
        inspected(left_file),
        inspected(right_file),
    )
    changes = {pair.name: pair.change for pair in pair_tensors(left, right)}
    assert changes["0.weight"] == "same shape"
    assert changes["0.bias"] == "other shape"
    assert changes["new"] == "added"
    assert {pair.name: pair.change for pair in pair_tensors(right, left)}["new"] == "removed"
    distances = {found.name: found for found in tensor_distances(left, left_file, right, right_file)}
    weight = own_checkpoint()["model"]["0.weight"].double()
    assert distances["0.weight"].difference == pytest.approx(float((weight * 0.5).norm()), rel=1e-6)
    assert distances["0.weight"].relative == pytest.approx(0.5, rel=1e-6)
    assert distances["0.weight"].largest == pytest.approx(float((weight * 0.5).abs().max()), rel=1e-6)
    assert distances["1.running_mean"].difference == 0
    assert "0.bias" not in distances


def test_a_safetensors_file_is_compared_with_one_of_torch(tmp_path: Path) -> None:
    left, right = {"w": torch.ones(2, 3), "b": torch.zeros(3).bfloat16()}, {"w": torch.full((2, 3), 2.0)}
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(left))
    (tmp_path / "b.pt").write_bytes(torch_bytes(right))
    paths = tmp_path / "a.safetensors", tmp_path / "b.pt"
    infos = [inspected(path) for path in paths]
    (found,) = tensor_distances(infos[0], paths[0], infos[1], paths[1])
    assert (found.name, found.largest) == ("w", 1.0)
    assert found.norm == pytest.approx(6**0.5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_tensors_without_a_distance_are_left_out(tmp_path: Path, dtype: torch.dtype) -> None:
    paths = tmp_path / "left.pt", tmp_path / "right.pt"
    for path, value in zip(paths, (1.0, 3.0), strict=True):
        few = torch.full((2,), value)
        path.write_bytes(torch_bytes({"w": few, "other": few.to(dtype), "u": few.to(torch.uint16)}))
    infos = [inspected(path) for path in paths]
    found = tensor_distances(infos[0], paths[0], infos[1], paths[1])
    assert {each.name: each.largest for each in found} == {"w": 2.0, "u": 2.0}


def test_numbers_that_cannot_be_printed_are_left_out(tmp_path: Path) -> None:
    path, long = tmp_path / "long.pt", {"lr": 10**5000, "momentum": 0.5, "last": float("nan")}
    path.write_bytes(
        torch_bytes({"model": {}, "optimizer": {"param_groups": [long]}, "schedule": long, "versions": long})
    )
    found = inspected(path)
    assert found.optimizer == found.schedule == {"momentum": 0.5}
    assert found.versions == {"momentum": "0.5"}


def test_distances_of_views_and_bfloat16(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    left_file, right_file = tmp_path / "left.pt", tmp_path / "right.pt"
    left_file.write_bytes(torch_bytes({"t": base.t(), "h": torch.ones(4, dtype=torch.bfloat16), "e": torch.zeros(0)}))
    right_file.write_bytes(
        torch_bytes({"t": (base * 2).t(), "h": torch.full((4,), 3.0, dtype=torch.bfloat16), "e": torch.zeros(0)})
    )
    left, right = (
        inspected(left_file),
        inspected(right_file),
    )
    distances = {found.name: found for found in tensor_distances(left, left_file, right, right_file)}
    assert distances["t"].difference == pytest.approx(float(base.norm()))
    assert distances["h"].difference == pytest.approx(4.0)
    assert distances["e"].difference == 0
