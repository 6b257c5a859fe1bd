"""Layouts: which files become samples of which class, under which keys, from folders, archives and tables."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.labels import LabelFiles, find_labels, parse_val_labels, read_label_file
from ossconsole.dataset.source.files import FolderSource, PlannedSample, SkippedFile, is_image_name, read_location
from ossconsole.dataset.source.layout import Layout, SourceOptions
from tests.dataset.conftest import jpeg, make_pictures


def planned(path: Path) -> dict[str, PlannedSample]:
    return {item.path: item for item in Layout(path).items() if isinstance(item, PlannedSample)}


def skipped(path: Path) -> dict[str, SkippedFile]:
    return {item.path: item for item in Layout(path).items() if isinstance(item, SkippedFile)}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(len(name)))


def test_class_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/1.JPEG", "train/ants/deep/2.jpg", "val/bees/3.png")
    found = planned(tmp_path)
    assert {(item.split, item.class_name, item.key) for item in found.values()} == {
        ("train", "ants", "train/ants/1"),
        ("train", "ants", "train/ants/deep/2"),
        ("val", "bees", "val/bees/3.png"),
    }
    assert found["train/ants/1.JPEG"].size == (tmp_path / "train/ants/1.JPEG").stat().st_size


def test_files_that_are_not_pictures_are_skipped_and_reported(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/1.jpg", "train/ants/imageNotFound.gif", "train/ants/._1.jpg", "train/notes.txt")
    (tmp_path / "train/ants/gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "train/ants/pipe.jpg")
    found = skipped(tmp_path)
    assert set(found) == {
        *("train/ants/imageNotFound.gif", "train/ants/._1.jpg", "train/notes.txt", "train/ants/gone.jpg"),
        "train/ants/pipe.jpg",
    }
    lost = {path for path, item in found.items() if item.lost}
    assert lost == {"train/ants/gone.jpg", "train/ants/pipe.jpg"}  # by their names, pictures should be behind them
    assert list(planned(tmp_path)) == ["train/ants/1.jpg"]


def test_a_link_that_leads_to_itself_hides_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/1.jpg", "val/bees/2.jpg")
    for folder in (tmp_path, tmp_path / "train", tmp_path / "train/ants"):
        (folder / "loop").symlink_to("loop")
    assert list(planned(tmp_path)) == ["train/ants/1.jpg", "val/bees/2.jpg"]
    counted = list(FolderSource(tmp_path).counts())
    assert sum(counted) == 5


def test_a_source_that_may_not_be_read_is_named(refused_link: Path) -> None:
    with pytest.raises(ConsoleError, match="link cannot be read: Permission denied"):
        Layout(refused_link)
    with pytest.raises(ConsoleError, match=r"~nobody-here/labels\.csv does not exist"):
        find_labels((), LabelFiles(val_labels="~nobody-here/labels.csv"), lambda path: read_label_file(Path(path)))


def test_a_picture_without_a_class_is_lost_not_ignored(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/1.jpg", "train/stray.jpg", "val/flat.jpg")
    found = skipped(tmp_path)
    assert set(found) == {"train/stray.jpg", "val/flat.jpg"}
    assert all(item.lost for item in found.values())


def test_names_that_cannot_be_keys_are_lost(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/good.jpg", "train/ants/new\nline.jpg")
    (tmp_path / os.fsdecode(b"train/ants/\xff.jpg")).write_bytes(b"x")
    reasons = {item.reason.rpartition("' ")[2] for item in skipped(tmp_path).values()}
    assert reasons == {"has control characters", "is not UTF-8"}
    assert len(planned(tmp_path)) == 1


def test_class_folders_may_be_links_and_links_do_not_loop(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/1.jpg", "train/bees/2.jpg")
    (tmp_path / "train/ants").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/bees/loop").symlink_to(tmp_path / "train")
    assert set(planned(tmp_path)) == {"train/ants/1.jpg", "train/bees/2.jpg"}


def test_a_class_folder_that_leads_to_its_own_folder_is_no_class(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/1.jpg")
    for name, target in (("self", "."), ("top", "../.."), ("same", "ants")):
        (tmp_path / "train" / name).symlink_to(target)
    assert set(planned(tmp_path)) == {"train/ants/1.jpg", "train/same/1.jpg"}
    assert {path: item.lost for path, item in skipped(tmp_path).items()} == {"train/self": False, "train/top": False}
    folder = FolderSource(tmp_path)
    folder.starts = ["train"]
    assert sum(folder.counts()) == len(list(Layout(tmp_path).items()))


def test_the_tutorials_flat_val_with_its_label_files_beside_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "dataset/train/n02/a.JPEG", "dataset/val/V1.JPEG", "dataset/val/V9.JPEG")
    (tmp_path / "ILSVRC2012_val_labels.json").write_text('{"V1.JPEG": "n01"}', encoding="utf-8-sig")
    (tmp_path / "imagenet_class_index.json").write_text(
        '{"0":["n02","goldfish"],"1":["n01","tench"],"2":["n00","x"]}', encoding="utf-8-sig"
    )
    layout = Layout(tmp_path / "dataset")
    found = {item.path: item.class_name for item in layout.items() if isinstance(item, PlannedSample)}
    assert found == {"train/n02/a.JPEG": "n02", "val/V1.JPEG": "n01"}
    assert layout.label_order(found.values()) == ("n02", "n01", "n00")
    assert layout.label_order(["cats", "n01"]) == ("cats", "n01")


def test_tensors_have_the_keys_of_the_tutorials_script(tmp_path: Path) -> None:
    write(tmp_path, "train/n02/n02_1.JPEG", "train/n02/deep/n02_2.JPEG", "val/ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "ILSVRC2012_val_labels.json").write_text('{"ILSVRC2012_val_00000001.JPEG": "n02"}')
    theirs = {str(path.relative_to(tmp_path)).replace(".JPEG", ".pt") for path in tmp_path.rglob("*.JPEG")}
    assert {item.key + SampleFormat.TENSOR_F32.suffix for item in planned(tmp_path).values()} == theirs


@pytest.mark.parametrize("text", ["[]", '{"V": 1}', "{"])
def test_a_malformed_label_file_is_named(tmp_path: Path, text: str) -> None:
    make_pictures(tmp_path / "source")
    (tmp_path / "ILSVRC2012_val_labels.json").write_text(text)
    with pytest.raises(ConsoleError, match="ILSVRC2012_val_labels"):
        Layout(tmp_path / "source")


def test_the_lists_of_imagenets_validation_images_are_understood() -> None:
    image = "ILSVRC2012_val_00000001"
    for text, label in (
        (f"{image}.JPEG n01440764\n", "n01440764"),  # names with spaces between
        (f"{image}.JPEG 1\n", "n01443537"),  # Caffe's numbers, in the order of the names
        (f"{image}.JPEG,1\n", "n01443537"),
        (f"{image}.JPEG 1001\n", "1001"),  # not ImageNet's
    ):
        assert parse_val_labels(text.encode(), "val.txt") == {image: label}
    assert parse_val_labels(b"photo.jpg 1\n", "val.txt") == {"photo": "1"}
    with pytest.raises(ConsoleError, match=r"numbers without names.*meta\.mat"):
        parse_val_labels(b"490\n361\n", "ground_truth.txt")


def test_a_class_index_with_a_hole_is_named(tmp_path: Path) -> None:
    make_pictures(tmp_path / "source")
    (tmp_path / "imagenet_class_index.json").write_text('{"0":["n02","goldfish"],"2":["n01","tench"]}')
    with pytest.raises(ConsoleError, match="no entry '1'"):
        Layout(tmp_path / "source")


@pytest.mark.parametrize("name", ["pictures.tar", "pictures.tar.gz", "pictures.zip", "really-gzip.tar"])
def test_archives_are_read_without_unpacking(tmp_path: Path, name: str) -> None:
    make_pictures(tmp_path / "in" / "root", train=4, val=2)
    archive = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in (tmp_path / "in").rglob("*.jpg"):
                zipped.write(path, path.relative_to(tmp_path / "in"))
            zipped.writestr("root/../../evil.jpg", b"x")
    else:
        with tarfile.open(archive, "w" if name == "pictures.tar" else "w:gz") as tar:
            tar.add(tmp_path / "in/root", "./root")
            tar.addfile(tarfile.TarInfo("root/train/ants/../../../evil.jpg"))
    origins = {item.key: item for item in Layout(archive).items() if isinstance(item, PlannedSample)}
    folder = planned(tmp_path / "in/root")
    assert set(origins) == {item.key for item in folder.values()}
    for item in folder.values():
        assert read_location(origins[item.key].location) == read_location(item.location)
        assert origins[item.key].size == item.size
    assert len(skipped(archive)) == 1


def test_the_share_held_out_is_of_each_class_and_decided_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{number}.jpg" for name in ("ants", "bees") for number in range(20)), "one/1.jpg")

    def held_out(seed: int) -> list[str]:
        items = Layout(tmp_path, SourceOptions(val_split=0.1, seed=seed)).items()
        return sorted(item.path for item in items if isinstance(item, PlannedSample) and item.split == "val")

    first = held_out(0)
    assert [path.partition("/")[0] for path in first] == ["ants", "ants", "bees", "bees"]  # and none of a single image
    assert held_out(0) == first
    assert held_out(1) != first
    write(tmp_path, "cats/1.jpg")  # another class moves none of the images
    assert held_out(0) == first


def test_a_damaged_archive_is_an_error(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in", "in")
    whole = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConsoleError, match=r"a\.tar\.gz cannot be read"):
        list(Layout(tmp_path / "a.tar.gz").items())


def tar_of(mode: str = "w", **members: bytes) -> bytes:
    """A tar of `NAME.jpg`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


WHOLE = tar_of(a=b"a" * 1000, b=b"b" * 3000)
"""Headers at bytes 0 and 1536."""


@pytest.mark.parametrize(
    ("inner", "kept", "problem"),
    [
        (WHOLE, ["a.jpg", "b.jpg"], ""),
        (WHOLE[:3000], ["a.jpg"], "cut off or damaged"),
        (WHOLE[:1700], ["a.jpg"], "cut off or damaged"),
        (WHOLE[:1536] + b"x" * 512 + WHOLE[2048:], ["a.jpg"], "cut off or damaged"),
        (tar_of("w:gz", a=b"a"), [], "unpack the outer one"),
        (b"no tar at all" * 100, [], "unpack the outer one"),
        (b"", [], "unpack the outer one"),
    ],
    ids=["whole", "data cut", "header cut", "header damaged", "gzip", "garbage", "empty"],
)
def test_what_is_lost_of_an_archive_in_an_archive_is_named(
    tmp_path: Path, inner: bytes, kept: list[str], problem: str
) -> None:
    path = tmp_path / "outer.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("train/ants.tar", inner), ("train/bees.tar", WHOLE), ("train/._bees.tar", b"of a Mac")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    samples = planned(path)
    bees = ["train/bees/a.jpg", "train/bees/b.jpg"]
    assert sorted(samples) == [*(f"train/ants/{name}" for name in kept), *bees]
    assert {read_location(item.location)[:1] for item in samples.values()} == {b"a", b"b"}
    lost = [(name, problem in item.reason) for name, item in skipped(path).items() if item.lost]
    assert lost == ([("train/ants.tar", True)] if problem else [])


def test_a_damaged_header_in_an_archive_is_an_error_and_no_end(tmp_path: Path) -> None:
    path = tmp_path / "pictures.tar"
    path.write_bytes(WHOLE[:1536] + b"x" * 512 + WHOLE[2048:])
    with pytest.raises(ConsoleError, match="byte 1536 is damaged"):
        list(Layout(path).items())


@pytest.mark.parametrize("nested", [False, True], ids=["archive", "archive in an archive"])
def test_an_archive_that_ends_between_two_files_is_told(tmp_path: Path, nested: bool) -> None:
    """Where a download was cut off there, nothing else says so."""
    path = tmp_path / "pictures.tar"
    cut = WHOLE[:1536]
    path.write_bytes(cut)
    if nested:
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("train/ants.tar")
            info.size = len(cut)
            tar.addfile(info, io.BytesIO(cut))
    layout = Layout(path)
    for _ in range(2):
        assert len(list(layout.items())) == 1
        (caution,) = [str(found) for found in layout.cautions]
        assert caution.startswith("1 archive (without an end mark")
    path.write_bytes(WHOLE)
    layout = Layout(path)
    list(layout.items())
    assert layout.cautions == ()


def archive_of_names(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))


def test_shards_of_other_programs_do_not_become_classes_in_silence(tmp_path: Path) -> None:
    for number in range(2):
        archive_of_names(tmp_path / f"train-{number:06}.tar", f"{number}.jpg", f"{number}.cls")
    for source in (tmp_path, tmp_path / "train-000000.tar"):
        with pytest.raises(ConsoleError, match=r"WebDataset samples: .*0\.cls"):
            Layout(source).describe()
    for number in range(2):
        archive_of_names(tmp_path / f"train-{number:06}.tar", f"{number}.jpg", f"{number}.txt")
    layout = Layout(tmp_path)
    list(layout.items())
    assert [str(found) for found in layout.cautions] == [
        "2 classes (named like a shard: is it one class?): train-000000, train-000001"
    ]


def damaged_zip(old: bytes, new: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        zipped.writestr("train/ä/1.jpg", b"x")
    head, mark, members = stream.getvalue().rpartition(b"PK\1\2")
    assert old in mark + members
    return head + (mark + members).replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("name.zip", damaged_zip("ä".encode(), b"\x8d\x8d")),  # in cp932, marked as UTF-8
        ("version.zip", damaged_zip(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\xff")),
        ("cut.tar.gz", gzip.compress(WHOLE)[:3]),
        ("cut.zip", damaged_zip(b"PK", b"PK")[:60]),
    ],
    ids=["name", "version", "cut", "cut zip"],
)
def test_an_archive_that_pythons_modules_do_not_expect_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConsoleError, match="cannot be read"):
        list(Layout(tmp_path / name).items())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("table.csv", "pictures/a.jpg,10\npictures/b.jpg,9,val\n\n"),
        ("table.csv", "\ufeffLabel,Path,Split\n10,pictures/a.jpg,train\n9,pictures/b.jpg,val\n"),
        ("table.csv", "./pictures/a.jpg,10\npictures//b.jpg,9,val\n"),
        ("table.csv", "path;label;split\npictures/a.jpg;10;train\npictures/b.jpg;9;val\n"),  # Excel's in Germany
        ("table.csv", "photo,species,split\npictures/a.jpg,10\npictures/b.jpg,9,val\n"),
        ("table.tsv", "path\tclass\tsubset\npictures/a.jpg\t10\ttrain\npictures/b.jpg\t9\tval\n"),
    ],
)
def test_tables_of_path_and_label(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "pictures/a.jpg", "pictures/b.jpg")
    (tmp_path / name).write_text(text, encoding="utf-8")
    layout = Layout(tmp_path / name)
    found = [item for item in layout.items() if isinstance(item, PlannedSample)]
    assert {(item.split, item.class_name, item.key) for item in found} == {
        ("train", "10", "train/10/pictures/a"),
        ("val", "9", "val/9/pictures/b"),
    }
    assert layout.label_order(["10", "9"]) == ("9", "10")
    assert all(read_location(item.location) for item in found)


def test_every_bad_line_of_a_table_is_reported_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "t.csv").write_text("a.jpg,x\na.jpg\ngone.jpg,x\na.jpg,x,test\na.jpg,\n../up.jpg,x\na.jpg,x/y\n")
    (tmp_path.parent / "up.jpg").write_bytes(b"x")
    found = skipped(tmp_path / "t.csv")
    assert set(found) == {"t.csv:2", "gone.jpg", "t.csv:4", "t.csv:5", "../up.jpg", "t.csv:7"}
    assert {name for name, item in found.items() if not item.lost} == {"t.csv:4"}  # a test split
    assert len(planned(tmp_path / "t.csv")) == 1


def test_a_table_names_what_is_no_file_and_reads_none_of_it(tmp_path: Path) -> None:
    write(tmp_path, "pictures/a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "t.csv").write_text("path,label\npictures,x\npipe.jpg,x\n/dev/zero,x\n")
    layout = Layout(tmp_path / "t.csv")
    found = {item.path: item.reason for item in layout.items() if isinstance(item, SkippedFile) and item.lost}
    assert found == {"pictures": "a folder", "pipe.jpg": "a named pipe", "/dev/zero": "a device"}
    assert "path,label" in layout.advice


def test_a_table_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00,\x00")
    with pytest.raises(ConsoleError, match=r"t\.csv cannot be read"):
        list(Layout(tmp_path / "t.csv").items())


@pytest.mark.parametrize("name", ["nowhere", "empty", "file.bin"])
def test_the_error_of_a_bad_source_names_the_valid_kinds(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(ConsoleError) as caught:
        Layout(tmp_path / name)
    assert "train/" in caught.value.remedy or "folder" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jpg", True), ("a.JPEG", True), ("a.b.Webp", True), (".jpg", False), ("jpg", False), ("a.gif", False)],
)
def test_picture_names(name: str, expected: bool) -> None:
    assert is_image_name(name) is expected


# What is not used


def unused(path: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Count and names by reason, of what the layout tells beside its files."""
    layout = Layout(path)
    list(layout.items())
    groups = (*layout.unused, *layout.cautions)
    return {f"{found.kind}: {found.reason}": (found.count, found.names) for found in groups}


def archived(folder: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in sorted(folder.rglob("*")):
                zipped.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
            tar.add(folder, ".")
    return archive


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip"])
def test_classes_that_vanish_and_label_files_of_no_use_are_reported(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    write(source, "train/ants/1.jpg", "train/gifs/1.gif", "val/ants/2.jpg", "val/wasps/3.jpg")
    (source / "train/empty").mkdir()
    (source / "ILSVRC2012_val_labels.json").write_text('{"V1.JPEG": "ants"}')
    (source / "imagenet_class_index.json").write_text('{"0":["n02","goldfish"]}')
    found = unused(source if kind == "folder" else archived(source, tmp_path / f"pictures.{kind}"))
    place = "beside the images" if kind == "folder" else "in the archive"
    expected = {
        "class folder: no usable image in it": (2, ("train/empty", "train/gifs")),
        "val class: no training images of it": (1, ("wasps",)),
        "label file: it lacks the class ants": (1, (f"imagenet_class_index.json ({place})",)),
        "label file: val/ has class folders": (1, (f"ILSVRC2012_val_labels.json ({place})",)),
    }
    assert found == expected


def pack(folder: Path, archive: Path, prefix: str) -> Path:
    """Packs the files of a folder below `prefix`, after an entry for the prefix, as `tar -c .` and `tar -P` do."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.jpg"))]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr(prefix, b"")
            for name in names:
                zipped.write(folder / name, prefix + name)
        return archive
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, prefix, recursive=False)
        for name in names:
            info = tar.gettarinfo(folder / name)
            info.name = prefix + name  # `add` removes a leading slash
            with (folder / name).open("rb") as file:
                tar.addfile(info, file)
    return archive


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("prefix", ["./", "/data/"])
def test_the_top_of_an_archive_is_not_a_class(tmp_path: Path, kind: str, prefix: str) -> None:
    write(tmp_path / "a", "pictures/ants/1.jpg", "pictures/bees/2.jpg")
    write(tmp_path / "b", "n01440764/1.jpg", "n01443537/2.jpg", "val/n01440764/3.jpg")
    for folder, count in (("a", 2), ("b", 3)):
        layout = Layout(pack(tmp_path / folder, tmp_path / f"{folder}.{kind}", prefix))
        found = {
            item.path.split("/")[-2]: item.class_name for item in layout.items() if isinstance(item, PlannedSample)
        }
        assert list(found) == list(found.values())
        assert layout.unused == ()
        assert len(list(layout.items())) == count


def test_a_folder_of_archives_without_top_folders_has_no_class_for_these(tmp_path: Path) -> None:
    write(tmp_path / "in", "train/ants/1.jpg", "val/ants/2.jpg")
    (tmp_path / "archives").mkdir()
    for split in ("train", "val"):
        pack(tmp_path / "in" / split, tmp_path / f"archives/{split}.tar", "./")
    (tmp_path / "archives/._train.tar").write_bytes(b"\0\5\x16\7 of a Mac")
    assert set(planned(tmp_path / "archives")) == {"train/ants/1.jpg", "val/ants/2.jpg"}
    assert unused(tmp_path / "archives") == {}


@pytest.mark.parametrize("folder", ["", "train"])
def test_a_link_that_cannot_be_followed_hides_none_of_its_neighbours(tmp_path: Path, folder: str) -> None:
    write(tmp_path, "train/ants/1.jpg", "train/bees/2.jpg")
    (tmp_path / folder / "loop").symlink_to("loop")
    assert set(planned(tmp_path)) == {"train/ants/1.jpg", "train/bees/2.jpg"}
    assert sum(Layout(tmp_path).counts()) == len(list(Layout(tmp_path).items()))


def test_what_is_beside_train_and_val_is_reported(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/1.jpg", "test/ants/2.jpg", "3.jpg")
    assert unused(tmp_path) == {"name: beside train/ and val/": (2, ("3.jpg", "test/"))}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_the_label_files_of_an_archive_are_used(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a", "dataset/train/n02/a.JPEG", "dataset/val/V1.JPEG")
    (tmp_path / "a/ILSVRC2012_val_labels.json").write_text('{"V1.JPEG": "n01"}')
    (tmp_path / "a/imagenet_class_index.json").write_text(
        '{"0":["n02","goldfish"],"1":["n01","tench"],"2":["n00","x"]}'
    )
    layout = Layout(archived(tmp_path / "a", tmp_path / f"a.{kind}"))
    found = {item.path: item.class_name for item in layout.items() if isinstance(item, PlannedSample)}
    assert found == {"dataset/train/n02/a.JPEG": "n02", "dataset/val/V1.JPEG": "n01"}
    assert layout.label_order(found.values()) == ("n02", "n01", "n00")
    assert [str(found) for found in layout.cautions] == ["1 val class (no training images of it): n01"]


@pytest.mark.parametrize(
    ("names", "reason", "advice"),
    [
        (["1.JPEG", "2.JPEG"], "not in a class folder", "a folder with the name of the class"),
        (["val/V1.JPEG"], "has no ILSVRC2012_val_labels.json in or beside", "put ILSVRC2012_val_labels.json"),
        (["train/stray.jpg"], "directly in train/", "train/<class>/"),
    ],
)
def test_where_no_sample_is_made_it_says_what_to_do(tmp_path: Path, names: list[str], reason: str, advice: str) -> None:
    write(tmp_path / "a", *names)
    layout = Layout(archived(tmp_path / "a", tmp_path / "a.tar"))
    items = list(layout.items())
    assert all(isinstance(item, SkippedFile) and reason in item.reason for item in items)
    assert advice in layout.advice


def test_entries_that_are_not_files_are_named_by_their_kind(tmp_path: Path) -> None:
    write(tmp_path, "train/ants/1.jpg")
    folder = tmp_path / "train/ants"
    (folder / "torn").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    (folder / "null").symlink_to("/dev/null")
    reasons = {path.rpartition("/")[2]: item.reason for path, item in skipped(tmp_path).items()}
    assert reasons == {
        "torn": "a symbolic link to nothing",
        "loop": "a symbolic link to itself",
        "folder": "a symbolic link to a folder, which is not followed",
        "pipe": "a named pipe",
        "null": "a device",
    }


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("x" * 300, "cannot be read: File name too long"),
        ("x" * 300 + ".csv", "cannot be read: File name too long"),
        ("a\0b", "does not exist"),
    ],
)
def test_a_path_that_cannot_be_one(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(ConsoleError, match=problem):
        Layout(tmp_path / name)


@pytest.mark.parametrize("names", ["klingon", "hex", "a\0b"])
def test_names_need_an_encoding_of_text(tmp_path: Path, names: str) -> None:
    with pytest.raises(SettingsError, match="is not an encoding"):
        Layout(tmp_path, SourceOptions(names=names))
