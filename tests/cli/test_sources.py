"""Datasets as people have them, through `ossconsole upload --dry-run`: what was understood, and what is named."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from ossconsole.dataset.manifest import read_manifest
from tests.dataset.conftest import jpeg
from tests.sandboxed import Sandboxed, set_keys

ONE, TWO = "n04487081", "n10148035"
"""The tutorial's two classes."""

Files = dict[str, bytes]


def files(*names: str) -> Files:
    """Images with these names, all different."""
    return {name: jpeg(number + 1, (40 + number, 30)) for number, name in enumerate(names)}


def train_names(folder: str = "train") -> list[str]:
    return [f"{folder}/{name}/{name}_{number}.JPEG" for name in (ONE, TWO) for number in (1, 2)]


VAL = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
VAL_JSON = json.dumps({VAL[0]: ONE, VAL[1]: TWO}).encode()
VAL_CSV = f"ImageId,PredictionString\n{VAL[0][:-5]},{ONE} 1 2 3 4 {ONE} 5 6 7 8\n{VAL[1][:-5]},{TWO} 1 2 3 4\n".encode()
KAGGLE = {
    "LOC_val_solution.csv": VAL_CSV,
    "LOC_synset_mapping.txt": b"n04487081 trolleybus",
    f"ILSVRC/Annotations/CLS-LOC/train/{ONE}/{ONE}_1.xml": b"<annotation/>",
    "ILSVRC/ImageSets/CLS-LOC/val.txt": b"x",
    "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": jpeg(99),
    **files(*train_names("ILSVRC/Data/CLS-LOC/train"), *(f"ILSVRC/Data/CLS-LOC/val/{name}" for name in VAL)),
}
TUTORIAL = {**files(*train_names("dataset/train"), *(f"dataset/val/{name}" for name in VAL))}


def folder(at: Path, content: Files, name: str = "source") -> Path:
    for path, data in content.items():
        (at / name / path).parent.mkdir(parents=True, exist_ok=True)
        (at / name / path).write_bytes(data)
    return at / name


def tar(content: Files, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for path, data in content.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def archived(at: Path, content: Files, name: str = "source.tar", mode: str = "w") -> Path:
    if name.endswith(".zip"):
        with zipfile.ZipFile(at / name, "w") as archive:
            for path, data in content.items():
                archive.writestr(path, data)
    else:
        (at / name).write_bytes(tar(content, mode))
    return at / name


def old_zip(at: Path, encoding: str) -> Path:
    """A zip whose names are bytes of `encoding`, as programs wrote before UTF-8."""
    plain = {"train/犬/1.jpg": jpeg(1), "train/猫/2.jpg": jpeg(2)}
    ascii_names = {name: "".join(c if c.isascii() else "X" * len(c.encode(encoding)) for c in name) for name in plain}
    made = archived(at, {ascii_names[name]: data for name, data in plain.items()}, "old.zip")
    content = made.read_bytes()
    for name, ascii_name in ascii_names.items():
        content = content.replace(ascii_name.encode(), name.encode(encoding))
    made.write_bytes(content)
    return made


class Case(NamedTuple):
    """How a layout is made, the line about it, samples by split, classes, what is said, the options, the exit code."""

    make: Callable[[Path], Path]
    layout: str
    samples: dict[str, int]
    classes: int
    says: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    code: int = 0


WORDNET = "class order from their WordNet IDs"
BESIDE_JSON = "val labels from ILSVRC2012_val_labels.json (beside the images)"
FOUR = {"train": 4}
FOUR_TWO = {"train": 4, "val": 2}


def tutorial(at: Path) -> Path:
    (at / "ILSVRC2012_val_labels.json").write_bytes(VAL_JSON)
    return folder(at, TUTORIAL, ".") / "dataset"


def downloads(at: Path) -> Path:
    """The tutorial's three downloads, compressed tars, with the label files beside them."""
    for name in (ONE, TWO):
        members = [path.removeprefix("train/") for path in train_names() if name in path]
        archived(folder(at, {}, "."), files(*members), f"{name}.tar", "w:gz")
    archived(at, files(*VAL), "val.tar", "w:gz")
    (at / "ILSVRC2012_val_labels.json").write_bytes(VAL_JSON)
    return at


def official(at: Path) -> Path:
    inner = {f"{name}.tar": tar(files(*(f"{name}_{number}.JPEG" for number in (1, 2)))) for name in (ONE, TWO)}
    return archived(at, inner, "ILSVRC2012_img_train.tar")


def both_official(at: Path) -> Path:
    official(at)
    archived(at, files(*VAL), "ILSVRC2012_img_val.tar")
    (at / "ILSVRC2012_val_labels.json").write_bytes(VAL_JSON)
    return at


def one_class(at: Path) -> Path:
    return archived(at, files(f"{ONE}/{ONE}_1.JPEG", f"{ONE}/{ONE}_2.JPEG"), f"{ONE}.tar", "w:gz")


def flat_val(at: Path) -> Path:
    (at / "ILSVRC2012_val_labels.json").write_bytes(VAL_JSON)
    return archived(at, files(*VAL), "val.tar")


def table(at: Path) -> Path:
    folder(at, files("images/1.jpg", "images/2.jpg", "images/3.jpg"), ".")
    (at / "t.csv").write_text(
        "file_name,label,split\nimages/1.jpg,cat,train\nimages/2.jpg,dog,training\nimages/3.jpg,cat,validation\n"
    )
    return at / "t.csv"


def tsv(at: Path) -> Path:
    folder(at, files("1.jpg", "2.jpg"), ".")
    (at / "t.tsv").write_text("1.jpg\tcat\n2.jpg\tdog\n")
    return at / "t.tsv"


def with_hidden(at: Path) -> Path:
    made = folder(at, files("train/cats/1.jpg", "train/dogs/2.jpg", "val/cats/3.jpg"))
    folder(
        made, files("train/.ipynb_checkpoints/1-checkpoint.jpg", "train/cats/.ipynb_checkpoints/2-checkpoint.jpg"), "."
    )
    folder(made, files("train/@eaDir/7.jpg", "train/__MACOSX/8.jpg"), ".")
    return made


def twice(at: Path) -> Path:
    content = files("train/cats/1.jpg", "train/cats/a.jpg", "train/cats/A.jpg", "train/Cats/3.jpg")
    with tarfile.open(at / "a.tar", "w") as archive:
        for name, data in (*content.items(), ("train/cats/1.jpg", jpeg(50))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return at / "a.tar"


CATS_DOGS = files("cats/1.jpg", "cats/2.jpg", "dogs/3.jpg", "dogs/4.jpg")

CASES: dict[str, Case] = {
    "Kaggle's ImageNet, a folder": Case(
        lambda at: folder(at, KAGGLE),
        "train/ and val/ in ILSVRC/Data/CLS-LOC/; val labels from LOC_val_solution.csv (beside the images); " + WORDNET,
        FOUR_TWO,
        2,
        ("Not used: 1 name (beside train/ and val/): test/", "2 of 1,000 classes"),
    ),
    "Kaggle's ImageNet, a zip": Case(
        lambda at: archived(at, {f"data/{path}": data for path, data in KAGGLE.items()}, "imagenet.zip"),
        "train/ and val/ in data/ILSVRC/Data/CLS-LOC/; val labels from LOC_val_solution.csv (in the archive); "
        + WORDNET,
        FOUR_TWO,
        2,
        ("an image outside train/ and val/ in data/ILSVRC/Data/CLS-LOC/", "CLS-LOC/): data/LOC_synset_mapping.txt"),
    ),
    "Kaggle's ImageNet, its Data folder alone": Case(
        lambda at: folder(at, {path: data for path, data in KAGGLE.items() if "/Data/" in path}),
        f"train/ and val/ in ILSVRC/Data/CLS-LOC/; {WORDNET}",
        FOUR,
        2,
        ("the source has no ILSVRC2012_val_labels.json in or beside it: name a file of labels with --val-labels",),
        code=1,
    ),
    "the official train tar, a tar of tars": Case(official, f"class folders (train); {WORDNET}", FOUR, 2),
    "both official tars in a folder": Case(
        both_official,
        f"ILSVRC2012_img_train/ (train) and ILSVRC2012_img_val/ (val); {BESIDE_JSON}; {WORDNET}",
        FOUR_TWO,
        2,
    ),
    "the tutorial's dataset/ folder": Case(tutorial, f"train/ and val/; {BESIDE_JSON}; {WORDNET}", FOUR_TWO, 2),
    "the tutorial's downloads, a folder of three tars": Case(
        downloads, f"val/ and class folders (train); {BESIDE_JSON}; {WORDNET}", FOUR_TWO, 2
    ),
    "the tutorial's tar of one class": Case(one_class, f"class folders (train); {WORDNET}", {"train": 2}, 1),
    "the tutorial's val.tar with labels beside it": Case(
        flat_val, f"images (val); {BESIDE_JSON}; {WORDNET}", {"val": 2}, 2
    ),
    "val.tar without labels": Case(
        lambda at: archived(at, files(*VAL), "val.tar"),
        "images (val)",
        {},
        0,
        ("No image becomes a sample.", "LOC_val_solution.csv beside the source"),
        code=1,
    ),
    "train/ and validation/": Case(
        lambda at: folder(at, files("train/cats/1.jpg", "validation/cats/2.jpg", "test/cats/3.jpg")),
        "train/ and validation/ (val)",
        {"train": 1, "val": 1},
        1,
        ("beside train/ and val/): test/",),
    ),
    "class folders alone, ImageFolder without splits": Case(
        lambda at: folder(at, CATS_DOGS),
        "class folders (train)",
        FOUR,
        2,
        ("No validation images: a run holds out a share of each class, or add --val-split 0.1 here.",),
    ),
    "class folders alone, a share held out": Case(
        lambda at: folder(at, CATS_DOGS),
        "class folders (train)",
        {"train": 2, "val": 2},
        2,
        options=("--val-split", "0.5"),
    ),
    "class folders in a zip of one folder": Case(
        lambda at: archived(at, {f"pets/{path}": data for path, data in CATS_DOGS.items()}, "pets.zip"),
        "class folders (train) in pets/",
        FOUR,
        2,
    ),
    "only train/": Case(
        lambda at: folder(at, files("train/cats/1.jpg")), "train/", {"train": 1}, 1, ("--val-split 0.1",)
    ),
    "the train/ folder itself": Case(
        lambda at: folder(at, files("train/cats/1.jpg", "train/dogs/2.jpg")) / "train",
        "class folders (train)",
        {"train": 2},
        2,
    ),
    "Hugging Face's data/train/ and data/test/": Case(
        lambda at: folder(at, files("data/train/cats/1.jpg", "data/train/dogs/2.jpg", "data/test/cats/3.jpg")),
        "train/ in data/",
        {"train": 2},
        2,
        ("beside train/ and val/): test/",),
    ),
    "a CSV with names of Hugging Face": Case(table, "a table of path and label: t.csv", {"train": 2, "val": 1}, 2),
    "a TSV without a header": Case(tsv, "a table of path and label: t.tsv", {"train": 2}, 2),
    "hidden and tool folders": Case(
        with_hidden,
        "train/ and val/",
        {"train": 2, "val": 1},
        2,
        (
            "4 files (a hidden folder, or one of a tool): train/",
            "/.ipynb_checkpoints/",
        ),
    ),
    "hidden and tool folders in a zip": Case(
        lambda at: archived(
            at,
            files("train/cats/1.jpg", "__MACOSX/train/cats/._1.jpg", "train/.ipynb_checkpoints/1-checkpoint.jpg"),
            "a.zip",
        ),
        "train/",
        {"train": 1},
        1,
        ("1 file (a hidden folder, or one of a tool): train/.ipynb_checkpoints/1-checkpoint.jpg",),
    ),
    "names in Shift-JIS": Case(
        lambda at: old_zip(at, "cp932"),
        "train/",
        {"train": 2},
        2,
        ("Caution: 2 names (not UTF-8; read as cp437. If they look wrong, give --names",),
    ),
    "names in Shift-JIS, with --names": Case(
        lambda at: old_zip(at, "cp932"), "train/", {"train": 2}, 2, options=("--names", "shift_jis")
    ),
    "names in UTF-8 without the flag": Case(lambda at: old_zip(at, "utf-8"), "train/", {"train": 2}, 2),
    "label files, an empty class and a class of val alone": Case(
        lambda at: archived(
            at,
            {
                **files("train/cats/1.jpg", "val/cats/2.jpg", "val/wasps/3.jpg", "train/gifs/4.xyz"),
                "imagenet_class_index.json": b'{"0": ["n01440764", "tench"]}',
            },
        ),
        "train/ and val/",
        {"train": 1, "val": 2},
        2,
        (
            "Not used: 1 class folder (no usable image in it): train/gifs",
            "Caution: 1 val class (no training images of it): wasps",
            "Not used: 1 label file (it lacks the class cats): imagenet_class_index.json (in the archive)",
        ),
    ),
    "a name twice, and names that differ in case": Case(
        twice,
        "train/",
        {"train": 4},
        2,
        (
            "Rejected: train/cats/1.jpg: ",
            "Caution: 1 class (the same name but for upper and lower case): Cats and cats",
            "Caution: 1 name (another name differs only in upper and lower case): train/cats/A.jpg",
        ),
        code=1,
    ),
    "a compressed archive in an archive": Case(
        lambda at: archived(at, {**files("train/cats/1.jpg"), "train/dogs.tar.gz": tar(files("2.jpg"), "w:gz")}),
        "train/",
        {"train": 1},
        1,
        ("train/dogs.tar.gz: an archive in the archive: unpack the outer one, then upload the folder",),
        code=1,
    ),
    "a tar of tars in a zip": Case(
        lambda at: archived(at, {f"{ONE}.tar": tar(files("1.JPEG")), f"{TWO}.tar": tar(files("2.JPEG"))}, "train.zip"),
        "",
        {},
        0,
        ("an archive in the archive: unpack the outer one",),
        code=1,
    ),
    "a folder of Parquet files": Case(
        lambda at: folder(at, {"data/train-00000-of-00001.parquet": b"PAR1"}),
        "",
        {},
        0,
        (
            "has no folder of images",
            "It holds data/. Images in train-00000-of-00001.parquet are not read.",
            "Write the images in them as files",
        ),
        code=1,
    ),
}


@pytest.fixture
def arguments(
    sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The options that select the sandbox's bucket and a prefix of this test."""
    info = sandboxed_bucket.process.info
    profile = sandboxed_bucket.profile(f"sources/{abs(hash(request.node.name))}")
    set_keys(monkeypatch, info)
    return [
        f"--bucket={profile.bucket}",
        f"--region={profile.region}",
        f"--standard-endpoint={profile.standard_endpoint}",
        f"--dataset-prefix={profile.dataset_prefix}",
        "--workers=1",
        "--size=16",
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_layout_is_understood(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    source = str(case.make(tmp_path))
    code = run_group(ossconsole, ["upload", source, "--dry-run", *arguments, *case.options])
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert code == case.code, text
    for line in case.says:
        assert line in text
    if not case.layout:
        return
    assert shown.out.splitlines()[0] == f"Layout: {case.layout}."
    run_group(ossconsole, ["upload", source, "--dry-run", "--json", *arguments, *case.options])
    plan: dict[str, Any] = msgspec.json.decode(capsys.readouterr().out.splitlines()[0])
    assert (plan["samples"], plan["used_classes"]) == (case.samples, case.classes)


@pytest.mark.parametrize(
    "name",
    [
        "Kaggle's ImageNet, a zip",
        "the tutorial's downloads, a folder of three tars",
        "the official train tar, a tar of tars",
        "class folders alone, a share held out",
        "names in Shift-JIS, with --names",
    ],
)
def test_a_layout_arrives_in_the_bucket(
    name: str, arguments: list[str], sandboxed_bucket: Sandboxed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    assert run_group(ossconsole, ["upload", str(case.make(tmp_path)), *arguments, *case.options]) == 0
    assert f"Layout: {case.layout.removesuffix(f'; {WORDNET}')}." in capsys.readouterr().out
    prefix = arguments[3].partition("=")[2]
    store = sandboxed_bucket.store()
    manifest = read_manifest(store, prefix)
    store.close()
    assert {split: len(samples) for split, samples in manifest.splits.items()} == case.samples
    keys = {sample.key for samples in manifest.splits.values() for sample in samples}
    if WORDNET in case.layout:
        assert len(manifest.classes) == 1000
        assert {manifest.classes[s.label] for s in manifest.splits["train"]} == {ONE, TWO}
        assert f"train/{ONE}/{ONE}_1.jpg" in keys
    if "Shift" in name:
        assert keys == {"train/犬/1.jpg", "train/猫/2.jpg"}
