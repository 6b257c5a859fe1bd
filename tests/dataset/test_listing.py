"""The manifest from a listing: image files or the tutorial's objects, what is not used, and how a listing ends."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset import listing
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.labels import CLASS_INDEX_NAME, KAGGLE_LABELS_NAME, VAL_LABELS_NAME, LabelFiles
from ossconsole.dataset.listing import NO_VAL_LABELS, manifest_from_listing
from ossconsole.dataset.manifest import (
    Manifest,
    ManifestMissingError,
    Sample,
    Unused,
    check_manifest,
    encode_manifest,
    read_manifest,
    write_manifest,
)
from ossconsole.sandbox.faults import Error, FaultPlan, Rule
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import ListPage, ObjectSummary
from ossconsole.training.data import training_data
from tests.sandboxed import Sandboxed

_TENSOR = bytes(3 * 4 * 8 * 8)  # a .pt sample of 8 x 8 px
_IMAGE = b"not looked at: a listing reads no object"


def put(store: ObjectStore, profile: Profile, *keys: str, data: bytes = _IMAGE) -> None:
    for key in keys:
        store.put(f"{profile.dataset_prefix}/{key}", data)


def listed(store: ObjectStore, profile: Profile) -> tuple[Manifest, list[str]]:
    """The manifest and the lines about what is not used."""
    manifest, unused = manifest_from_listing(store, profile.dataset_prefix)
    check_manifest(manifest, "somewhere")
    return manifest, [str(group) for group in unused]


def sample(key: str, label: int, data: bytes = _IMAGE) -> Sample:
    return Sample(key, label, 0, 0, 0, len(data), md5(data))


def tensor(key: str, label: int) -> Sample:
    return Sample(key, label, 8, 8, md5=md5(_TENSOR))


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


# Images


def test_image_files_become_a_manifest_that_can_be_written(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/b/2.PNG", "train/a-b/3.webp", "train/a/deep/er/1.JPEG", "val/a/x.tif", "val/only/y.gif")
    manifest, unused = listed(store, profile)
    assert (manifest.format, manifest.size, unused) == (SampleFormat.IMAGE_JPEG, 0, [])
    assert manifest.classes == ("a", "a-b", "b", "only")
    # In the order of the keys, where "a-b/" comes before "a/".
    assert manifest.splits["train"] == (
        sample("train/a-b/3.webp", 1),
        sample("train/a/deep/er/1.JPEG", 0),
        sample("train/b/2.PNG", 2),
    )
    assert manifest.splits["val"] == (sample("val/a/x.tif", 0), sample("val/only/y.gif", 3))
    write_manifest(store, profile.dataset_prefix, manifest)
    assert read_manifest(store, profile.dataset_prefix) == manifest


def test_objects_that_are_not_samples_are_grouped_by_reason(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, *(f"train/a/{number}.jpg" for number in range(3)), "train/stray.jpg", "train/a/notes.txt")
    put(store, profile, "train/", "train/a/", "train/a/sub/", "train/empty/", data=b"")
    put(store, profile, "train/a/.DS_Store", "train/a/._1.jpg", "train/a/Thumbs.db", "train/.trash/9.jpg")
    put(store, profile, "train/a/void.jpg", "train/c/void.jpg", data=b"")
    put(store, profile, "train/a//5.jpg", "test/a/6.jpg", "7.jpg")
    manifest, unused = listed(store, profile)
    assert manifest.classes == ("a",)
    assert [each.key for each in manifest.splits["train"]] == [f"train/a/{number}.jpg" for number in range(3)]
    assert sorted(unused) == [
        "1 object (a key with control characters or an empty part): train/a//5.jpg",
        "1 object (directly in train/, not in a class folder): train/stray.jpg",
        "1 object (neither an image nor a .pt sample): train/a/notes.txt",
        "2 class folders (no training samples in it): train/c, train/empty",
        "2 objects (an empty object): train/a/void.jpg, train/c/void.jpg",
        "4 objects (a folder marker): train/a/, train/a/sub/, train/empty/ and 1 more",
        "4 objects (a hidden file): train/.trash/9.jpg, train/a/.DS_Store, train/a/._1.jpg and 1 more",
    ]


def test_archived_objects_are_used_once_they_are_restored(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile
) -> None:
    put(store, profile, "train/a/1.jpg")
    for name, storage_class in (("cold", "ColdArchive"), ("restored", "Archive"), ("ia", "IA")):
        key = f"{profile.dataset_prefix}/train/a/{name}.jpg"
        store.sdk.put_object(key, _IMAGE, headers={"x-oss-storage-class": storage_class})
    store.sdk.restore_object(f"{profile.dataset_prefix}/train/a/restored.jpg")
    sandboxed_bucket.control.finish_restores()
    manifest, unused = listed(store, profile)
    assert [each.key for each in manifest.splits["train"]] == [
        "train/a/1.jpg",
        "train/a/ia.jpg",
        "train/a/restored.jpg",
    ]
    assert unused == ["1 object (archived (ColdArchive): restore it to use it): train/a/cold.jpg"]


def test_only_the_etag_of_one_put_is_an_md5(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/a/put.jpg")
    prefix = f"{profile.dataset_prefix}/train/a"
    store.sdk.append_object(f"{prefix}/appended.jpg", 0, _IMAGE)
    upload = store.sdk.init_multipart_upload(f"{prefix}/parts.jpg").upload_id
    store.sdk.upload_part(f"{prefix}/parts.jpg", upload, 1, _IMAGE)
    store.sdk.complete_multipart_upload(f"{prefix}/parts.jpg", upload, None, headers={"x-oss-complete-all": "yes"})
    manifest, _ = listed(store, profile)
    assert {each.key: each.md5 for each in manifest.splits["train"]} == {
        "train/a/appended.jpg": "",
        "train/a/parts.jpg": "",
        "train/a/put.jpg": md5(_IMAGE),
    }


@pytest.mark.parametrize(
    ("etag", "kind", "expected"),
    [
        ("0123456789ABCDEF" * 2, "Normal", "0123456789abcdef" * 2),
        ("0123456789ABCDEF" * 2, "Appendable", ""),
        ("0123456789ABCDEF" * 2 + "-12", "Normal", ""),
        ("0123456789ABCDEG" * 2, "Normal", ""),
        ("", "Normal", ""),
    ],
)
def test_forms_of_an_etag(etag: str, kind: str, expected: str) -> None:
    assert ObjectSummary("key", 1, 0, "Standard", etag, kind).md5 == expected


def test_the_labels_file_gives_the_classes_of_a_flat_val(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/n02/a.JPEG", "train/n01/b.JPEG", "val/V1.JPEG", "val/V2.JPEG", "val/n02/W.JPEG")
    put(store, profile, VAL_LABELS_NAME, data=b'{"V1.JPEG": "n02", "other.JPEG": "n09"}')
    manifest, unused = listed(store, profile)
    assert manifest.classes == ("n01", "n02")
    assert manifest.splits["val"] == (sample("val/V1.JPEG", 1), sample("val/n02/W.JPEG", 1))
    assert unused == [f"1 object (not in a class folder, and not in {VAL_LABELS_NAME} (dataset prefix)): val/V2.JPEG"]


def test_the_kind_that_train_has_more_of_is_used(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")
    put(store, profile, "train/a/1.pt", "train/c/4.pt", "val/b/5.pt", data=_TENSOR)
    put(store, profile, "train/b/6.png")
    manifest, unused = listed(store, profile)
    assert manifest.format is SampleFormat.IMAGE_JPEG
    assert manifest.classes == ("a", "b")
    assert unused == [
        "3 objects (a .pt sample; train/ has more images): train/a/1.pt, train/c/4.pt, val/b/5.pt",
        "1 class folder (no training samples in it): train/c",
    ]
    put(store, profile, "train/a/7.pt", "train/b/8.pt", data=_TENSOR)
    manifest, unused = listed(store, profile)
    assert manifest.format is SampleFormat.TENSOR_F32
    assert unused == [
        "4 objects (an image; train/ has more .pt samples): train/a/1.jpg, train/b/2.jpg, train/b/6.png and 1 more"
    ]


# What the tutorial's own script uploaded


def test_the_tutorials_objects_become_a_manifest(store: ObjectStore, profile: Profile) -> None:
    keys = ("train/n02/a.pt", "train/n01/b.pt", "train/n01/notes.txt", "val/V1.pt", "val/V2.pt")
    put(store, profile, *keys, data=_TENSOR)
    put(store, profile, VAL_LABELS_NAME, data=b'{"V1.JPEG": "n02", "other.JPEG": "n01"}')
    manifest, unused = listed(store, profile)
    assert manifest.format is SampleFormat.TENSOR_F32
    assert manifest.size == 8
    assert manifest.classes == ("n01", "n02")
    assert manifest.splits["train"] == (tensor("train/n01/b.pt", 0), tensor("train/n02/a.pt", 1))
    assert manifest.splits["val"] == (tensor("val/V1.pt", 1),)
    assert unused == [
        "1 object (neither an image nor a .pt sample): train/n01/notes.txt",
        "1 object (not in a class folder, and not in ILSVRC2012_val_labels.json (dataset prefix)): val/V2.pt",
    ]


def test_without_labels_there_is_no_val_split(store: ObjectStore, profile: Profile) -> None:
    flat = [f"val/V{number}.pt" for number in range(5)]
    three = ", ".join(flat[:3])
    put(store, profile, "train/n02/a.pt", "train/stray.pt", *flat, data=_TENSOR)
    manifest, unused = listed(store, profile)
    assert list(manifest.splits) == ["train"]
    assert unused == [
        "1 object (directly in train/, not in a class folder): train/stray.pt",
        f"5 objects ({NO_VAL_LABELS}): {three} and 2 more",
    ]


def test_objects_of_different_sizes_are_named(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/n02/a.pt", data=_TENSOR)
    put(store, profile, "train/n02/b.pt", data=bytes(100))
    with pytest.raises(ConsoleError, match=r"a\.pt has 768 bytes, train/n02/b\.pt has 100"):
        listed(store, profile)


def test_objects_that_are_no_square_are_refused(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/n02/a.pt", data=bytes(100))
    with pytest.raises(ConsoleError, match="not a square"):
        listed(store, profile)


# Label files

_WORDNET = ("n04487081", "n10148035")


def tutorials_bucket(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, *(f"train/{name}/{name}_{number}.pt" for name in _WORDNET for number in (1, 2)), data=_TENSOR)
    put(store, profile, "val/ILSVRC2012_val_00000001.pt", "val/ILSVRC2012_val_00000002.pt", data=_TENSOR)


@pytest.mark.parametrize("place", ["prefix", "folder", "file", "uri"])
def test_the_tutorials_bucket_is_found_whole_wherever_its_labels_are(
    store: ObjectStore, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tutorials_bucket(store, profile)
    text = b'{"ILSVRC2012_val_00000001.JPEG": "n10148035", "ILSVRC2012_val_00000002.JPEG": "n04487081"}'
    given, where = LabelFiles(), f"{VAL_LABELS_NAME} (dataset prefix)"
    if place == "prefix":
        put(store, profile, VAL_LABELS_NAME, data=text)
    elif place == "folder":
        (tmp_path / VAL_LABELS_NAME).write_bytes(text)
        where = f"{VAL_LABELS_NAME} (working directory)"
    elif place == "file":
        (tmp_path / "mine.json").write_bytes(text)
        given, where = LabelFiles(val_labels="mine.json"), "mine.json"
    else:
        put(store, profile, "labels.json", data=text)
        where = store.uri(f"{profile.dataset_prefix}/labels.json")
        given = LabelFiles(val_labels=where)
    manifest, unused = manifest_from_listing(store, profile.dataset_prefix, labels=given)
    assert unused == ()
    assert len(manifest.classes) == 1000
    assert [each.label for each in manifest.splits["train"]] == [874, 874, 982, 982]
    assert [each.label for each in manifest.splits["val"]] == [982, 874]
    assert manifest.preparation["labels"] == f"val labels from {where}, class order from their WordNet IDs"


def test_kaggles_labels_and_another_name_of_val(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/n04487081/1.JPEG", "validation/ILSVRC2012_val_00000001.JPEG", "Validation/2.JPEG")
    text = b"ImageId,PredictionString\nILSVRC2012_val_00000001,n04487081 1 2 3 4 n10148035 5 6 7 8\n"
    put(store, profile, KAGGLE_LABELS_NAME, data=text)
    manifest, _ = listed(store, profile)
    assert manifest.splits["val"] == (sample("validation/ILSVRC2012_val_00000001.JPEG", 874),)


def test_the_order_of_the_classes(store: ObjectStore, profile: Profile) -> None:
    tutorials_bucket(store, profile)
    prefix = profile.dataset_prefix
    assert len(manifest_from_listing(store, prefix)[0].classes) == 1000
    found_only, _ = manifest_from_listing(store, prefix, labels=LabelFiles(class_index="none"))
    assert found_only.classes == _WORDNET
    put(store, profile, CLASS_INDEX_NAME, data=b'{"0": ["n10148035", "groom"], "1": ["n04487081", "trolleybus"]}')
    indexed, _ = listed(store, profile)
    assert indexed.classes == ("n10148035", "n04487081")
    assert [each.label for each in indexed.splits["train"]] == [1, 1, 0, 0]
    put(store, profile, "train/other/1.pt", data=_TENSOR)
    assert listed(store, profile)[0].classes == (*_WORDNET, "other")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[1]", "is not a file of validation labels"),
        (b"a.jpg\n", "a line has no label"),
        (b"\xff", "is not a file of validation labels"),
    ],
)
def test_a_malformed_label_file_is_named(store: ObjectStore, profile: Profile, text: bytes, problem: str) -> None:
    tutorials_bucket(store, profile)
    put(store, profile, VAL_LABELS_NAME, data=text)
    with pytest.raises(ConsoleError, match=problem):
        listed(store, profile)


@pytest.mark.parametrize("given", ["nowhere.json", "oss://another/labels.json"])
def test_a_label_file_that_does_not_exist_is_an_error(store: ObjectStore, profile: Profile, given: str) -> None:
    tutorials_bucket(store, profile)
    with pytest.raises(ConsoleError, match=r"does not exist|not in the bucket"):
        manifest_from_listing(store, profile.dataset_prefix, labels=LabelFiles(val_labels=given))


# Nothing to use


def test_a_dataset_further_down_is_named(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "ILSVRC/Annotations/CLS-LOC/train/n01/1.xml", "ILSVRC/Data/CLS-LOC/train/n01/1.JPEG")
    with pytest.raises(ManifestMissingError) as caught:
        listed(store, profile)
    wanted = f"{profile.dataset_prefix}/ILSVRC/Data/CLS-LOC"
    assert caught.value.remedy == f"Give the prefix that holds train/: --dataset-prefix {wanted}"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ((), r"has neither a manifest nor images or \.pt samples in train/<class>/\.$"),
        (("cats/1.jpg", "readme.md"), r"It holds cats/, readme\.md\.$"),
        (("cats/1.jpg", "logs/2.txt", "readme.md"), r"It holds cats/, logs/, readme\.md\.$"),
        (("train/1.jpg", "train/a/b.txt"), r"1 object \(neither an image.*1 object \(directly in train/"),
        (("val/a/1.jpg",), r"It holds val/\.$"),
    ],
)
def test_a_prefix_without_samples_says_what_it_holds(
    store: ObjectStore, profile: Profile, keys: tuple[str, ...], problem: str
) -> None:
    put(store, profile, *keys)
    with pytest.raises(ManifestMissingError) as caught:
        manifest_from_listing(store, profile.dataset_prefix)
    assert re.search(problem, caught.value.message)
    assert "Put images into train/<class>/ below the prefix" in caught.value.remedy


def test_class_folders_alone_are_the_training_samples(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "cats/1.jpg", "cats/deep/2.jpg", "dogs/3.png", "readme.md", "4.jpg", ".trash/5.jpg")
    put(store, profile, "empty/", data=b"")
    manifest, unused = listed(store, profile)
    assert manifest.classes == ("cats", "dogs")
    assert {split: [(each.key, each.label) for each in samples] for split, samples in manifest.splits.items()} == {
        "train": [("cats/1.jpg", 0), ("cats/deep/2.jpg", 0), ("dogs/3.png", 1)]
    }
    assert sorted(unused) == [
        "1 class folder (no training samples in it): empty",
        "1 object (a folder marker): empty/",
        "1 object (a hidden file): .trash/5.jpg",
        "1 object (beside the class folders): 4.jpg",
    ]
    data = training_data(store, profile.dataset_prefix, val_split=0.5)
    assert (data.count("train"), data.count("val")) == (2, 1)
    write_manifest(store, profile.dataset_prefix, manifest)
    assert read_manifest(store, profile.dataset_prefix) == manifest


def test_class_folders_in_validation_are_the_val_split(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/a/1.jpg", "train/b/2.jpg", "validation/a/3.jpg", "validation/b/4.jpg")
    manifest, unused = listed(store, profile)
    assert [each.key for each in manifest.splits["val"]] == ["validation/a/3.jpg", "validation/b/4.jpg"]
    assert unused == []


def test_the_prefix_of_a_split_is_recognised(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/a/1.jpg", "train/b/1.jpg")
    with pytest.raises(ManifestMissingError, match="It holds a/, b/") as caught:
        manifest_from_listing(store, f"{profile.dataset_prefix}/train")
    assert caught.value.remedy == f"Give the prefix above it: --dataset-prefix {profile.dataset_prefix}"


# Many pages and many threads


class PagedStore:
    """The part of ObjectStore that a listing needs, over keys in memory, `page` at a time."""

    list_pages = ObjectStore.list_pages

    def __init__(self, keys: Iterable[str], page: int) -> None:
        self.keys = sorted(keys)
        self.page = page
        self.requests = 0

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        self.requests += 1
        after = token or start_after
        rows: dict[str, bool] = {}
        for key in self.keys:
            if key.startswith(prefix):
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                row = key if cut < 0 else key[: cut + 1]
                if row > after:
                    rows[row] = cut < 0
        page = list(itertools.islice(rows.items(), self.page))
        objects = [ObjectSummary(key, 1, 0) for key, is_object in page if is_object]
        more = len(rows) > len(page)
        return ListPage(objects, [key for key, is_object in page if not is_object], page[-1][0] if more else "")

    def head(self, key: str) -> NoReturn:
        self.requests += 1
        raise StorageError(f"{key} does not exist", status=404, code="NoSuchKey")

    def uri(self, key: str = "") -> str:
        return key


_NAMES = st.lists(st.sampled_from(["a", "a.", "a.b", "a-b", "b", "b/c", "é", ".h"]), min_size=1, unique=True)


@given(
    st.lists(st.tuples(_NAMES, st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_runs_of_folders_find_each_object_once(folders: list[tuple[list[str], int]], page: int, runs: int) -> None:
    expected = {
        f"p/train/{name}/{number}.jpg" for names, count in folders for name in names for number in range(count)
    } | {"p/train/zz/0.jpg"}
    keys = [*expected, "p/train/a.jpg", "p/train/a/", "p/train/b/", "p/train/a./", "p/val/a/1.jpg", "q/train/a/1.jpg"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(listing, "_RUNS", runs)
        manifest, unused = manifest_from_listing(PagedStore(keys, page), "p")  # type: ignore[arg-type]
    assert [f"p/{each.key}" for each in manifest.splits["train"]] == sorted(
        key for key in expected if not key.startswith("p/train/.h")
    )
    counts = {group.reason: group.count for group in unused}
    assert counts["a folder marker"] == 3
    assert counts["directly in train/, not in a class folder"] == 1
    assert counts.get("a hidden file", 0) == sum(key.startswith("p/train/.h") for key in expected)
    assert {each.key: manifest.classes[each.label] for each in manifest.splits["train"]} == {
        each.key: each.key.split("/")[1] for each in manifest.splits["train"]
    }


def test_many_classes_take_few_requests_more_than_pages() -> None:
    store = PagedStore((f"p/train/{name:05}/{number}.jpg" for name in range(2000) for number in range(3)), 1000)
    manifest, _ = manifest_from_listing(store, "p")  # type: ignore[arg-type]
    assert len(manifest.splits["train"]) == 6000
    assert len(manifest.classes) == 2000
    assert store.requests < 2 + 6 + 2 * 128 + 2


def test_eight_requests_of_a_listing_are_in_flight_together() -> None:
    class Together(PagedStore):
        """Answers what is listed of class folders when eight requests for it have come."""

        eight = threading.Barrier(8, timeout=60)

        def list_page(self, prefix: str, **options: object) -> ListPage:
            if not options["delimiter"]:
                self.eight.wait()
            return super().list_page(prefix, **options)  # type: ignore[arg-type]

    store = Together([f"p/train/{name}/1.jpg" for name in range(40)], 1000)
    manifest, _ = manifest_from_listing(store, "p")  # type: ignore[arg-type]
    assert len(manifest.splits["train"]) == 40


def test_progress_is_reported_and_may_end_the_listing() -> None:
    class Blocking(PagedStore):
        """Its second level is listed when `gate` opens."""

        gate = threading.Event()

        def list_page(self, prefix: str, **options: object) -> ListPage:
            if not options["delimiter"]:
                self.gate.wait()
            return super().list_page(prefix, **options)  # type: ignore[arg-type]

    seen: list[int] = []

    def stop_at_the_fourth(count: int) -> None:
        seen.append(count)
        if len(seen) == 4:
            raise ConsoleError("stopped")

    store = Blocking([f"p/train/{name}/1.jpg" for name in range(40)], 1000)
    with pytest.raises(ConsoleError, match="stopped"):
        manifest_from_listing(store, "p", stop_at_the_fourth)  # type: ignore[arg-type]
    assert seen == [0, 0, 0, 0]
    Blocking.gate.set()
    manifest_from_listing(store, "p", seen.append)  # type: ignore[arg-type]
    assert seen[-1] == 40


def test_a_request_that_fails_ends_the_listing(
    store: ObjectStore, profile: Profile, sandboxed_bucket: Sandboxed
) -> None:
    put(store, profile, *(f"train/{name}/1.jpg" for name in range(20)))
    refuse = Rule(action=Error(code="AccessDenied"), operation="ListObjects", skip=3)
    with sandboxed_bucket.faults(FaultPlan(rules=[refuse])), pytest.raises(StorageError, match="AccessDenied"):
        listed(store, profile)


def test_groups_of_unused_objects_keep_their_first_names(store: ObjectStore, profile: Profile) -> None:
    put(store, profile, "train/a/1.jpg", *(f"train/{name}/{number}.txt" for name in "ab" for number in range(7)))
    _, (group, empty) = manifest_from_listing(store, profile.dataset_prefix)
    assert group == Unused(
        "object",
        14,
        "neither an image nor a .pt sample",
        (*(f"train/a/{number}.txt" for number in range(7)), *(f"train/b/{number}.txt" for number in range(3))),
    )
    assert empty.names == ("train/b",)


def test_the_written_form_keeps_the_checksum() -> None:
    head = Manifest(format=SampleFormat.IMAGE_JPEG, size=0, classes=("a",), splits={})
    text = encode_manifest(head, {"train": [sample("train/a/1.jpg", 0)]})
    assert md5(_IMAGE).encode() in text
