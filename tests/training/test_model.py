"""Where weights come from, and what untrusted files cannot do."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18, resnet34, resnet50

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.dataset.labels import imagenet_classes
from ossconsole.storage.checkpoints.inspect import LocalFiles, inspect_checkpoint
from ossconsole.training.checkpoints.checkpoint import unpack
from ossconsole.training.compute import weights
from ossconsole.training.compute.model import batch_size_for, build_model, check_image_size, head_parameters
from ossconsole.training.compute.weights_file import load_untrusted, read_weights
from ossconsole.training.settings import BACKBONE, MODELS, TrainSettings
from tests.torch_files import torch_bytes

CLASSES = ("cat", "dog", "fox")


def no_fetch(uri: str) -> bytes:
    raise AssertionError(uri)


def model_of(
    classes: tuple[str, ...],
    weights: str = "none",
    *,
    size: int = 64,
    fetch: Callable[[str], bytes] = no_fetch,
    said: list[str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> nn.Module:
    report = [] if said is None else said
    chosen = TrainSettings(weights=weights, **settings)
    return build_model(chosen, classes, size, fetch, report=report.append, stopped=stopped)


class Bomb:
    """Writes a file when it is unpickled by something that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "boom"))


def test_no_weights_gives_a_head_for_the_classes() -> None:
    assert model_of(CLASSES, "none").state_dict()["fc.bias"].shape == (3,)


def test_a_file_gives_its_weights_and_a_new_head_where_its_own_does_not_fit(tmp_path: Path) -> None:
    source = resnet18(num_classes=7)
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_bytes(source.state_dict()))
    model = model_of(CLASSES, str(path))
    assert torch.equal(model.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])
    assert model.state_dict()["fc.weight"].shape[0] == 3


def test_an_object_of_the_bucket_gives_the_model_of_a_checkpoint() -> None:
    source = resnet18(num_classes=3)
    model = model_of(CLASSES, "oss://b/k", fetch=lambda _uri: torch_bytes({"model": source.state_dict(), "epoch": 1}))
    assert torch.equal(model.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_a_head_has_the_rows_of_the_classes_where_the_weights_have_them_all(tmp_path: Path) -> None:
    source = resnet18(num_classes=1000)
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_bytes(source.state_dict()))
    head = source.state_dict()["fc.weight"]
    wordnet = imagenet_classes()
    assert torch.equal(model_of(wordnet, str(path)).state_dict()["fc.weight"], head)
    few = (wordnet[700], wordnet[3], wordnet[999])  # those of a dataset are sorted; any order is right
    said: list[str] = []
    assert torch.equal(model_of(few, str(path), said=said).state_dict()["fc.weight"], head[[700, 3, 999]])
    assert said == []
    others = tuple(f"c{number}" for number in range(1000))
    new = model_of(others, str(path), said=said).state_dict()["fc.weight"]
    assert not torch.equal(new, head)
    assert said == ["The head is new: the weights are for 1000 other classes."]
    model_of(CLASSES, str(path), said=said)
    assert said[1:] == ["The head is new: 1000 → 3 classes."]


def test_a_checkpoint_says_which_class_each_row_of_its_head_is_for() -> None:
    source = resnet18(num_classes=3)
    objects = {"oss://b/k": torch_bytes({"model": source.state_dict(), "classes": list(CLASSES)})}
    bias = source.state_dict()["fc.bias"]
    for given, rows in ((CLASSES, [0, 1, 2]), (("fox", "dog"), [2, 1])):
        model = model_of(given, "oss://b/k", fetch=objects.__getitem__)
        assert torch.equal(model.state_dict()["fc.bias"], bias[rows])
    other = model_of(("cat", "elk", "fox"), "oss://b/k", fetch=objects.__getitem__)
    assert not torch.equal(other.state_dict()["fc.bias"], bias)


def test_weights_of_a_checkpoint_are_the_averaged_ones() -> None:
    current, averaged = (resnet18(num_classes=3).state_dict() for _ in range(2))
    of_torch = {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in averaged.items()}}
    layouts = [{"model": averaged, "current": current}, {"model": current, "average": of_torch}]
    for layout in (*layouts, {"model": current, "average": averaged}):
        model = model_of(CLASSES, "oss://b/k", fetch={"oss://b/k": torch_bytes(layout)}.__getitem__)
        torch.testing.assert_close(model.state_dict(), averaged)


def test_imagenets_classes_are_in_the_order_of_its_labels() -> None:
    classes = imagenet_classes()
    assert (len(set(classes)), list(classes)) == (1000, sorted(classes))
    categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    some = {"n01440764": "tench", "n02510455": "giant panda", "n04285008": "sports car", "n15075141": "toilet tissue"}
    assert {name: categories[classes.index(name)] for name in some} == some


# Those whose heads, sizes or weights are not as those of the others.
SMALL_MODELS = (
    "alexnet",
    "densenet121",
    "inception_v3",
    "googlenet",
    "maxvit_t",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "squeezenet1_1",
    "swin_t",
    "vit_b_32",
)


def test_the_models_are_those_of_torchvision() -> None:
    assert set(torchvision.models.list_models(module=torchvision.models)) == MODELS


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_family_has_a_head_for_the_classes_and_freezes_the_rest(name: str) -> None:
    heads = {name: head_parameters(name, 5, 224) for name in (name, "resnet18")}
    assert heads["resnet18"] == {"fc.weight", "fc.bias"}
    model = model_of(tuple("abcde"), size=224, model=name, freeze=BACKBONE, resume="latest").eval()
    assert {key for key, value in model.named_parameters() if value.requires_grad} == heads[name]
    outputs = model(torch.zeros(2, 3, 224, 224))
    assert outputs.shape == (2, 5)
    assert outputs.requires_grad


def test_images_that_a_model_does_not_take_are_refused_with_a_size_that_it_takes() -> None:
    for name, size, fits in (("vit_b_16", 100, 128), ("maxvit_t", 64, 224), ("inception_v3", 64, 96)):
        with pytest.raises(SettingsError, match=f"{name} does not take images of {size} px") as raised:
            model_of(CLASSES, size=size, model=name)
        assert f"--image-size {fits}" in raised.value.remedy
        check_image_size(name, fits)


def test_the_automatic_batch_fits_into_the_memory_of_the_gpu() -> None:
    def batch(memory_gb: float | None, *, half: bool = True, **settings: Any) -> int:
        memory = None if memory_gb is None else int(memory_gb * 1e9)
        return batch_size_for(TrainSettings(**settings), 1000, 224, memory=memory, half=half)

    assert batch(None) == 64
    assert [batch(gigabytes) for gigabytes in (1, 4, 16, 80)] == [32, 128, 256, 256]
    assert batch(4, half=False) == 64
    assert [batch(gigabytes, model="vit_b_16") for gigabytes in (16, 80)] == [64, 256]


def weights_of(name: str, size: int, **changes: torch.Tensor) -> dict[str, Any]:
    """As torchvision would download them."""
    model = torchvision.models.get_model(name, weights=None, **({"image_size": size} if "vit" in name else {}))
    return {**model.state_dict(), **changes}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torchvision's downloads."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def put_weights(hub: Path, name: str, state: dict[str, Any]) -> None:
    """A file where torchvision looks for it, whose hash it does not check."""
    enum = torchvision.models.get_model_weights(name).DEFAULT
    (hub / enum.url.rpartition("/")[2]).write_bytes(torch_bytes(state))


_SLOW_MODELS = [pytest.param(name, marks=pytest.mark.slow) for name in ("inception_v3", "vit_b_32")]


@pytest.mark.parametrize("name", ["resnet18", "densenet121", *_SLOW_MODELS])
def test_imagenets_weights_keep_the_rows_of_a_subset(hub: Path, name: str) -> None:
    state = weights_of(name, 224)
    if name == "densenet121":  # its file has names of an early torchvision
        early = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        early = {re.sub(r"(denselayer\d+\.\w+?)([12]\.)", r"\1.\2", key): value for key, value in early.items()}
    put_weights(hub, name, early if name == "densenet121" else state)
    classes = (imagenet_classes()[1], imagenet_classes()[207])
    model = model_of(classes, "imagenet", size=96, model=name)
    (head,) = (key for key in head_parameters(name, 2, 96) if key.endswith("weight"))
    assert torch.equal(model.state_dict()[head], state[head][[1, 207]])
    assert model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 2)


class Server(BaseHTTPRequestHandler):
    """Serves `body`, as slowly as the test wants."""

    body = b""
    asked: ClassVar[list[str]] = []
    going: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body[:1000])
        self.wfile.flush()
        self.going.wait(10)
        with contextlib.suppress(OSError):
            self.wfile.write(self.body[1000:])

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    """torchvision's ResNet-18 weights on this machine."""

    class Fresh(Server):
        asked: ClassVar[list[str]] = []
        going: ClassVar[threading.Event] = threading.Event()
        body = torch_bytes(weights_of("resnet18", 64))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    name = f"resnet18-{hashlib.sha256(Fresh.body).hexdigest()[:8]}.pth"
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _name: SimpleNamespace(DEFAULT=Enum(url)))
    yield Fresh
    Fresh.going.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Enum:
    """Stands in for an entry of torchvision's enum."""

    def __init__(self, url: str) -> None:
        self.url = url


def loaded_by_torchvision(name: str, *, weights: Enum | None, **options: Any) -> nn.Module:
    """As torchvision loads a file of its cache."""
    model: nn.Module = resnet18(**options) if weights is None else resnet18()
    if weights is not None:
        path = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        model.load_state_dict(torch.load(path, weights_only=True))
    return model


def test_one_process_downloads_says_so_and_the_others_wait(
    hub: Path, served: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, **options: loaded_by_torchvision(
            name, weights=options.pop("weights"), **{key: options[key] for key in options if key == "num_classes"}
        ),
    )
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        models = [pool.submit(model_of, imagenet_classes(), "imagenet", said=said) for _ in range(2)]
        served.going.set()
        first, second = (each.result(60).state_dict() for each in models)
    assert torch.equal(first["fc.weight"], second["fc.weight"])
    assert len(served.asked) == 1
    assert [text.split()[0] for text in said] == ["Downloading", "Downloaded"]
    assert [path.suffix for path in hub.iterdir()] == [".pth"]


def test_a_download_ends_when_the_run_is_stopped(hub: Path, served: type[Server]) -> None:
    said: list[str] = []
    served.going.set()
    model_of(CLASSES, "imagenet", said=said, stopped=lambda: bool(said))
    assert [text.split()[0] for text in said] == ["Downloading"]
    assert list(hub.iterdir()) == []


def test_a_file_with_another_checksum_than_in_its_name_is_refused(hub: Path, served: type[Server]) -> None:
    served.going.set()
    served.body = served.body[:-1] + b"?"
    with pytest.raises(ConsoleError, match="does not have the SHA-256 in its name"):
        model_of(CLASSES, "imagenet")
    assert list(hub.iterdir()) == []


def test_a_download_that_a_proxy_cuts_is_reported(
    hub: Path, served: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(self: Server) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc")

    monkeypatch.setattr(served, "do_GET", cut)
    with pytest.raises(ConsoleError, match="IncompleteRead") as raised:
        model_of(CLASSES, "imagenet")
    assert "--weights FILE" in raised.value.remedy
    assert list(hub.iterdir()) == []


def test_a_server_that_does_not_respond_is_not_waited_for(
    hub: Path, served: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_TIMEOUT_S", 0.2)
    with pytest.raises(ConsoleError, match="timed out") as raised:
        model_of(CLASSES, "imagenet")
    assert "--weights FILE" in raised.value.remedy
    assert str(hub) in raised.value.remedy


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a ResNet-18 for the classes."""
    return {**resnet18(num_classes=len(CLASSES)).state_dict(), **changes}


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state().items()}


def legacy(value: object) -> bytes:
    return torch_bytes(value, _use_new_zipfile_serialization=False)


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"something")
    return buffer.getvalue()


def whole_model() -> bytes:
    return torch_bytes(torch.nn.Sequential(torch.nn.Linear(2, 2)))


_NAMES_CODE = r"runs code when it is loaded .*(getattr|write_text)"
REFUSED: dict[str, tuple[Callable[[Path], bytes], str, str]] = {
    "hostile zip": (
        lambda target: torch_bytes(Bomb(target)),
        _NAMES_CODE,
        "trust",
    ),
    "hostile legacy": (lambda target: legacy(Bomb(target)), _NAMES_CODE, "trust"),
    "hostile pickle": (
        lambda target: pickle.dumps(Bomb(target), 4),
        _NAMES_CODE,
        "trust",
    ),
    "hostile in a dictionary": (lambda target: torch_bytes({"model": Bomb(target), **state()}), "runs code", "trust"),
    "whole model": (lambda _: whole_model(), "whole pickled model, which is code", "state_dict"),
    "cut safetensors": (
        lambda _: safetensors.torch.save(state())[:-9],
        "safetensors file that is cut short",
        "Copy it",
    ),
    "safetensors with a wrong header": (
        lambda _: (9).to_bytes(8, "little") + b'{"a": 1}x',
        "safetensors file",
        "Copy it",
    ),
    "whole model in a wrapper": (
        lambda _: torch_bytes({"ema": nn.Linear(2, 2), "epoch": 1}),
        "whole pickled model",
        "state_dict",
    ),
    "web page": (lambda _: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page", "curl"),
    "empty": (lambda _: b"", "is empty", "Copy it again"),
    "cut": (lambda _: torch_bytes(state())[:100_000], "cut short or damaged", "older file"),
    "cut legacy": (lambda _: legacy(state())[:5_000], "cut short or damaged", "older file"),
    "another zip": (lambda _: zipped("word/document.xml"), "no data.pkl", "another file"),
    "gzip": (lambda _: gzip.compress(torch_bytes(state())), "gzip", "gunzip"),
    "text": (lambda _: b"not a checkpoint", "not a file that torch.save wrote", "torch.save"),
    "NumPy values": (lambda _: torch_bytes({"loss": np.float64(1), **state()}), "other than tensors", "state_dict"),
    "list": (lambda _: torch_bytes([torch.zeros(1)]), "contains a list", "state_dict"),
    "no weights": (lambda _: torch_bytes({"epoch": 1, "lr": 0.1}), "no weights, only 'epoch', 'lr'", "state_dict"),
    "unknown key": (lambda _: torch_bytes({"teacher": state(), "epoch": 1}), "under 'teacher'", r"\['teacher'\]"),
    "half precision beyond float16": (
        lambda _: torch_bytes(
            {name: (value * 1e6).half() if name == "conv1.weight" else value for name, value in state().items()}
        ),
        "infinite",
        "earlier",
    ),
    "complex": (
        lambda _: torch_bytes(state(**{"bn1.bias": torch.zeros(64, dtype=torch.complex64)})),
        "complex64",
        "resnet18",
    ),
    "NaN": (lambda _: torch_bytes(state(**{"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)})), "NaN", "earlier"),
    "ResNet-34": (
        lambda _: torch_bytes(resnet34().state_dict()),
        "the key layer1.2.conv1.weight is unexpected",
        "resnet18",
    ),
    "ResNet-50": (lambda _: torch_bytes(resnet50().state_dict()), "is unexpected|has the shape", "resnet18"),
    "another shape": (
        lambda _: torch_bytes(state(**{"bn1.bias": torch.zeros(3)})),
        r"bias has the shape \(3,\)",
        "resnet18",
    ),
    "another model": (lambda _: torch_bytes({"layer.weight": torch.zeros(2)}), "conv1.weight is missing", "resnet18"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_are_refused_in_our_own_words_and_nothing_in_them_runs(tmp_path: Path, kind: str) -> None:
    make, what, remedy = REFUSED[kind]
    target, path = tmp_path / "ran", tmp_path / "file.pt"
    path.write_bytes(make(target))
    with pytest.raises(ConsoleError, match=what) as raised:
        model_of(CLASSES, str(path))
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


def averaged_by_torch() -> dict[str, torch.Tensor]:
    return {"n_averaged": torch.tensor(3), **renamed("module.")}


def halved(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state().items()}


ACCEPTED: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "bare": (lambda: torch_bytes(state()), []),
    "legacy": (lambda: legacy(state()), []),
    "DistributedDataParallel": (lambda: torch_bytes(renamed("module.")), ["without the prefix module."]),
    "torch.compile": (lambda: torch_bytes(renamed("_orig_mod.")), ["without the prefix _orig_mod."]),
    "both": (lambda: torch_bytes(renamed("module._orig_mod.")), ["without the prefix _orig_mod.module."]),
    "torch.compile of a part": (
        lambda: torch_bytes({name.replace("layer1.", "layer1._orig_mod."): value for name, value in state().items()}),
        ["without the prefix _orig_mod."],
    ),
    "pytorch/examples": (
        lambda: torch_bytes({"state_dict": renamed("module."), "epoch": 1, "best_acc1": torch.tensor(70.0)}),
        ["under state_dict, without the prefix module."],
    ),
    "model_state_dict": (lambda: torch_bytes({"model_state_dict": state(), "loss": 0.1}), ["under model_state_dict"]),
    "model": (lambda: torch_bytes({"model": state(), "epoch": 1}), []),
    "Lightning": (lambda: torch_bytes({"state_dict": renamed("model."), "epoch": 1}), ["without the prefix model."]),
    "torchvision's averaged weights": (
        lambda: torch_bytes({"model": resnet18(num_classes=3).state_dict(), "model_ema": averaged_by_torch()}),
        ["the averaged weights under model_ema"],
    ),
    "ema": (
        lambda: torch_bytes({"model": resnet18(num_classes=3).state_dict(), "ema": state()}),
        ["the averaged weights under ema"],
    ),
    "a wrapper in a wrapper": (lambda: torch_bytes({"ema": {"module": state()}}), ["under ema.module"]),
    "safetensors": (lambda: safetensors.torch.save(state()), []),
    "safetensors of DistributedDataParallel": (
        lambda: safetensors.torch.save(renamed("module.")),
        ["without the prefix module."],
    ),
    "half": (lambda: torch_bytes(halved(torch.float16)), ["converted from float16 to float32"]),
    "bfloat16": (lambda: safetensors.torch.save(halved(torch.bfloat16)), ["converted from bfloat16 to float32"]),
}


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("place", ["file", "oss"])
def test_weights_of_other_programs_are_accepted(tmp_path: Path, kind: str, place: str) -> None:
    make, notes = ACCEPTED[kind]
    torch.manual_seed(3)
    wanted = state()
    torch.manual_seed(3)
    data = make() if "averaged" not in kind and kind != "ema" else b""
    if not data:  # another model is made first
        data = make()
        wanted = read_weights(data, "").state
        assert not torch.equal(wanted["conv1.weight"], load_untrusted(data, "")["model"]["conv1.weight"])
    said: list[str] = []
    where = "oss://b/k"
    if place == "file":
        where = str(tmp_path / "weights")
        Path(where).write_bytes(data)
    model = model_of(CLASSES, where, fetch={"oss://b/k": data}.__getitem__, said=said)
    loaded = model.state_dict()
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if "converted" in "".join(notes) else {"rtol": 0, "atol": 0}
    for name, value in wanted.items():
        torch.testing.assert_close(loaded[name], value, **tolerance)
        assert loaded[name].dtype in {torch.float32, torch.int64}
    assert len(said) == len(notes)
    assert all(note in text for note, text in zip(notes, said, strict=True))


def test_safetensors_with_classes_in_their_metadata_keep_the_rows_of_the_head() -> None:
    source = state()
    data = safetensors.torch.save(source, {"classes": json.dumps(CLASSES), "format": "pt"})
    model = model_of(("fox", "cat"), "oss://b/k", fetch={"oss://b/k": data}.__getitem__)
    assert torch.equal(model.state_dict()["fc.bias"], source["fc.bias"][[2, 0]])


@pytest.mark.parametrize("kind", ["hostile zip", "whole model", "web page", "empty", "cut", "text"])
def test_the_same_files_are_no_checkpoints_to_resume_from_nor_to_inspect(tmp_path: Path, kind: str) -> None:
    make, what, _ = REFUSED[kind]
    path = tmp_path / "file.pt"
    path.write_bytes(make(tmp_path / "ran"))
    with pytest.raises(ConsoleError, match=what):
        unpack(path.read_bytes(), "oss://b/k")
    if kind in {"hostile zip", "whole model"}:
        assert inspect_checkpoint(LocalFiles(), str(path), path.stat().st_size).foreign
    else:
        with pytest.raises(ConsoleError) as raised:
            inspect_checkpoint(LocalFiles(), str(path), path.stat().st_size)
        assert "zlib" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        model_of(CLASSES, str(tmp_path / "missing.pt"))
    with pytest.raises(SettingsError, match="is a folder"):
        model_of(CLASSES, str(tmp_path))


def test_a_checkpoint_of_another_program_or_version_is_refused() -> None:
    with pytest.raises(ConsoleError, match="not a checkpoint of this console"):
        unpack(torch_bytes({"model": {}}), "oss://b/k")
    with pytest.raises(ConsoleError, match="version 99"):
        unpack(torch_bytes({"format": "ossconsole-checkpoint", "version": 99}), "oss://b/k")
