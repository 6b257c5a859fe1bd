"""The manifest: through a bucket and back, and everything hostile or broken refused by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossconsole.config.profiles import Profile
from ossconsole.dataset import manifest as manifests
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import (
    Manifest,
    ManifestError,
    ManifestMissingError,
    Sample,
    check_manifest,
    encode_manifest,
    key_problem,
    manifest_key,
    read_manifest,
    read_manifest_in_parts,
    write_manifest,
)
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.retry import NO_RETRY
from tests.sandboxed import Sandboxed

_GOOD = Manifest(
    format=SampleFormat.IMAGE_U8,
    size=8,
    classes=("ants", "bees"),
    splits={"train": (Sample("train/ants/1.u8", 0, 8, 8), Sample("train/bees/[é] 2.u8", 1, 8, 9))},
)


def changed(**changes: Any) -> Manifest:
    return msgspec.structs.replace(_GOOD, **changes)


def with_sample(key: str = "train/a.u8", label: int = 0, height: int = 8, width: int = 8) -> Manifest:
    return changed(splits={"val": (Sample(key, label, height, width),)})


def test_a_manifest_of_unknown_sizes_is_one_of_encoded_images_alone() -> None:
    sample = Sample("train/a.jpg", 0, 0, 0, bytes=9, md5="0" * 32)
    listed = changed(format=SampleFormat.IMAGE_JPEG, size=0, splits={"train": (sample,)})
    check_manifest(listed, "somewhere")
    assert msgspec.json.decode(msgspec.json.encode(listed), type=Manifest) == listed


def encoded(size: int = 0, **sample: Any) -> Manifest:
    """Of one image file, which may have any sides."""
    image = msgspec.structs.replace(Sample("val/a/1.PNG", 0, 0, 0, bytes=99), **sample)
    splits = {"val": (image,)}
    return changed(format=SampleFormat.IMAGE_JPEG, size=size, splits=splits)


@pytest.mark.parametrize("manifest", [encoded(), encoded(256), encoded(height=60_000, width=3)])
def test_encoded_samples_have_their_own_bytes_and_any_sides(manifest: Manifest) -> None:
    check_manifest(manifest, "somewhere")
    assert manifest.sample_bytes(manifest.splits["val"][0]) == 99


def test_it_comes_back_as_it_went(store: ObjectStore, profile: Profile) -> None:
    write_manifest(store, profile.dataset_prefix, _GOOD)
    read = read_manifest(store, profile.dataset_prefix)
    assert read == _GOOD
    assert read.sample_bytes(read.splits["train"][1]) == 3 * 8 * 9


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from(["train", "val"]), st.lists(st.text(min_size=1), min_size=1, unique=True), min_size=1
    )
)
def test_streaming_gives_the_same_json_as_encoding_whole(keys: dict[str, list[str]]) -> None:
    splits = {split: tuple(Sample(key, 0, 1, 1) for key in names) for split, names in keys.items()}
    whole = changed(splits=splits)
    assert encode_manifest(_GOOD, {split: iter(samples) for split, samples in splits.items()}) == msgspec.json.encode(
        whole
    )


@pytest.mark.parametrize(
    ("manifest", "what"),
    [
        (changed(version=2), "version 2"),
        (changed(size=0), "size 0"),
        (changed(classes=()), "no classes"),
        (changed(classes=("ants", "ants")), "named twice"),
        (changed(classes=("ants", "\x1b[2J")), "control characters"),
        (changed(splits={}), "not train, val"),
        (changed(splits={"test": _GOOD.splits["train"]}), "not train, val"),
        (changed(splits={"train": ()}), "is empty"),
        (changed(splits={"train": _GOOD.splits["train"] * 2}), "listed twice"),
        (with_sample(label=2), "label 2"),
        (with_sample(label=-1), "label -1"),
        (with_sample(height=0), "0 x 8"),
        (with_sample(width=100_000), "100000"),
        (with_sample(key="../secret"), "leaves the dataset prefix"),
        (changed(splits={"val": (Sample("a.u8", 0, 8, 8, bytes=192),)}), "192 bytes are not a valid size for image-u8"),
        (encoded(bytes=0), "0 bytes are not a valid size for image-jpeg"),
        (encoded(bytes=1 << 63), "9223372036854775808 bytes are not a valid size"),
        (encoded(crc64=-5), "-5 is not a CRC64"),
        (encoded(crc64=1 << 64), "18446744073709551616 is not a CRC64"),
        (encoded(md5="abcd"), "'abcd' is not an MD5"),
        (encoded(md5="z" * 32), "is not an MD5"),
        (encoded(size=-1), "size -1"),
        (encoded(height=70_000), "70000"),
    ],
)
def test_what_is_wrong_is_named(manifest: Manifest, what: str) -> None:
    with pytest.raises(ManifestError, match=what) as caught:
        check_manifest(manifest, "somewhere")
    assert caught.value.remedy


@pytest.mark.parametrize(
    "key",
    ["", "/a", "\\a", "a//b", "a/../b", "./a", "..", "a\nb", "a\x00b", "a\x9bb", "\ud800", "é" * 600],
)
def test_hostile_keys_are_refused(key: str) -> None:
    assert key_problem(key)


@pytest.mark.parametrize("key", ["a", "train/a b/é[1]…u8", "a..b", ".a", "日本/猫.u8"])
def test_honest_keys_pass(key: str) -> None:
    assert key_problem(key) == ""


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"version":1}', b'{"format":"jpeg"}', b"\xff\xfe", b"0" * 100])
def test_a_malformed_manifest_says_where(store: ObjectStore, profile: Profile, text: bytes) -> None:
    key = manifest_key(profile.dataset_prefix)
    store.put(key, text)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        read_manifest(store, profile.dataset_prefix)


@given(st.binary(max_size=200) | st.from_regex(rb'\{"version":1,"format":"image-u8","size":.{0,40}\}', fullmatch=True))
def test_no_bytes_crash_the_parser(text: bytes) -> None:
    try:
        check_manifest(msgspec.json.decode(text, type=Manifest), "somewhere")
    except (ManifestError, msgspec.DecodeError):
        return


def test_an_empty_prefix_and_a_missing_manifest_are_distinguished(store: ObjectStore, profile: Profile) -> None:
    prefix = profile.dataset_prefix
    with pytest.raises(ManifestMissingError, match="is empty") as caught:
        read_manifest(store, prefix)
    assert caught.value.empty
    store.put(f"{prefix}/train/ants/1.u8", b"x")
    with pytest.raises(ManifestMissingError, match="does not exist") as caught:
        read_manifest(store, prefix)
    assert not caught.value.empty


def test_a_refusal_of_oss_stays_one(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    store = ObjectStore(profile, sandboxed_bucket.wrong_secret, retry=NO_RETRY)
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        read_manifest(store, profile.dataset_prefix)
    store.close()


@pytest.mark.parametrize("part_bytes", [1, 100, 1 << 20])
def test_a_manifest_is_read_in_parts(
    store: ObjectStore, profile: Profile, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(manifests, "_PART_BYTES", part_bytes)
    names = ["a", 'b"],["c', "],[", '\\"],[', *(f"{number}],[" * 3 for number in range(30)), *map(str, range(50))]
    samples = tuple(Sample(f"train/x/{name}.jpg", 0, 0, 0, number, number + 1) for number, name in enumerate(names))
    whole = Manifest(format=SampleFormat.IMAGE_JPEG, size=0, classes=("x",), splits={"train": samples})
    write_manifest(store, profile.dataset_prefix, whole)
    head, parts = read_manifest_in_parts(store, profile.dataset_prefix)
    found = list(parts)
    assert head == msgspec.structs.replace(whole, splits={})
    assert {split for split, _ in found} == {"train"}
    assert tuple(sample for _, part in found for sample in part) == samples
    assert (len(found) > 50) == (part_bytes == 1)


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        ('[["train/x/1.jpg",0,0,0,0,1],["train/x/1.jpg",0,0,0,0,1]]', "a key is listed twice"),
        ('[["train/x/1.jpg",0,0,0,0,1],["train/x/2.jpg",7,0,0,0,1]]', r"train\[1\]: the label 7"),
        ("[]", "the split 'train' is empty"),
        ('[["train/x/1.jpg",0,0,0,0,1],[1]]', "is not a manifest"),
        ('[["../x",0,0,0,0,1]]', "leaves the dataset prefix"),
    ],
)
def test_parts_are_checked_like_the_whole(store: ObjectStore, profile: Profile, samples: str, problem: str) -> None:
    text = f'{{"version":1,"format":"image-jpeg","size":0,"classes":["x"],"splits":{{"train":{samples}}}}}'
    store.put(f"{profile.dataset_prefix}/manifest.json", text.encode())
    for read in (
        lambda: read_manifest(store, profile.dataset_prefix),
        lambda: list(read_manifest_in_parts(store, profile.dataset_prefix)[1]),
    ):
        with pytest.raises(ManifestError, match=problem):
            read()
