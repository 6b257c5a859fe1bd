"""The validation split that is held out where a dataset has none."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.listing import manifest_from_listing
from ossconsole.dataset.manifest import Manifest, Sample, write_manifest
from ossconsole.training.data import columns_of, held_out_rows, hold_out, training_data
from tests.dataset.conftest import jpeg
from tests.sandboxed import Sandboxed

_COUNTS = {0: 200, 1: 40, 2: 4, 3: 1}


def dataset(**splits: tuple[Sample, ...]) -> Manifest:
    labels = [label for label, count in _COUNTS.items() for _ in range(count)]
    train = tuple(Sample(f"train/{label}/{n}.jpg", label, 0, 0, bytes=9) for n, label in enumerate(labels))
    return Manifest(
        format=SampleFormat.IMAGE_JPEG, size=0, classes=("a", "b", "c", "d"), splits={"train": train, **splits}
    )


def test_a_share_of_each_class_is_held_out() -> None:
    whole = dataset()
    splits, text = hold_out(columns_of(whole), 0.25, seed=3)
    train, val = list(splits["train"].keys), list(splits["val"].keys)
    assert Counter(splits["val"].labels.tolist()) == {0: 50, 1: 10, 2: 1}
    assert all(key.split("/")[1] == str(label) for key, label in zip(val, splits["val"].labels, strict=True))
    assert text == "25 % of the training images (61) are held out for validation."
    order = {sample.key: row for row, sample in enumerate(whole.splits["train"])}
    assert sorted((*train, *val), key=order.__getitem__) == [sample.key for sample in whole.splits["train"]]
    for keys in (train, val):
        rows = [order[key] for key in keys]
        assert rows == sorted(rows)
    # Not the first or the last of a class: keys often have an order that means something.
    assert 20 < np.mean([order[key] for key in val if key.startswith("train/0/")]) < 180


def test_seed_and_key_alone_decide() -> None:
    keys = [f"train/a/{number}.jpg" for number in range(100)]
    held = held_out_rows(keys, [0] * 100, 0.1, seed=0)
    assert (held_out_rows(keys, [0] * 100, 0.1, seed=0) == held).all()
    assert (held_out_rows(keys[::-1], [0] * 100, 0.1, seed=0) == held[::-1]).all()
    assert (held_out_rows([*keys, *("b/1", "b/2")], [1] * 100 + [0] * 2, 0.1, seed=0)[:100] == held).all()
    assert (held_out_rows(keys, [0] * 100, 0.1, seed=1) != held).any()
    more = held_out_rows(keys, [0] * 100, 0.2, seed=0)
    assert (more & held == held).all()
    # Fixed: a run that resumes with a later version must have the same split.
    assert np.flatnonzero(held).tolist() == [20, 26, 37, 48, 52, 76, 79, 84, 91, 97]


def test_it_leaves_a_dataset_alone_that_has_one_or_is_too_small() -> None:
    with_val = columns_of(dataset(val=(Sample("val/a/1.jpg", 0, 0, 0, bytes=9),)))
    assert hold_out(with_val, 0.1, 0) == (with_val, "")
    whole = columns_of(dataset())
    assert hold_out(whole, 0.0, 0) == (whole, "")
    few = {"train": whole["train"].where(np.arange(len(whole["train"])) >= len(whole["train"]) - 5)}
    assert hold_out(few, 0.1, 0) == (few, "")


def test_a_listed_prefix_and_its_manifest_have_the_same_split(sandboxed_bucket: Sandboxed) -> None:
    store, prefix = sandboxed_bucket.store(), "held-out"
    for number in range(40):
        store.put(f"{prefix}/train/{'ab'[number % 2]}/{number}.jpg", jpeg(number % 4))
    listed = training_data(store, prefix, val_split=0.1, seed=5)
    assert (listed.count("train"), listed.count("val"), listed.missing) == (36, 4, "")
    assert listed.notes[0].startswith("Listed 40 train images in ")
    assert listed.notes[0].endswith("To keep the list: ossconsole manifest --dataset-prefix held-out")
    assert listed.notes[1:] == ["10 % of the training images (4) are held out for validation."]
    write_manifest(store, prefix, manifest_from_listing(store, prefix)[0])
    written = training_data(store, prefix, val_split=0.1, seed=5)
    for split in ("train", "val"):
        expected = [listed.object_of(split, row) for row in range(listed.count(split))]
        assert [written.object_of(split, row) for row in range(written.count(split))] == expected
    assert written.notes == listed.notes[1:]
    assert "no validation samples" in training_data(store, prefix).missing
