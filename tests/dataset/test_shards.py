"""Shards: what the connector's own tools write and read, the same bytes every time, and nothing sent twice."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import weakref
from pathlib import Path
from typing import Any

import fastcrc
import hypothesis
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import SHARDS_NAME, ManifestError
from ossconsole.dataset.shards.build import (
    Built,
    ShardBuilder,
    ShardPlan,
    ShardUploadState,
    append_resume_log,
    read_resume_log,
)
from ossconsole.dataset.shards.index import BLOCK, PackedShard, ShardSample, encode_index, member_header, padding
from ossconsole.dataset.shards.upload import ShardUpload
from ossconsole.dataset.upload.job import PrefixTakenError, UploadSettings
from ossconsole.dataset.upload.journal import JournalError, journal_path
from ossconsole.dataset.upload.plan import create_upload, plan_upload
from ossconsole.dataset.upload.progress import Counts
from ossconsole.sandbox.faults import Error, FaultPlan, Rule
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.threads import Cancelled
from tests.dataset.conftest import jpeg, make_pictures, picture
from tests.dataset.uploads import WAIT_S, bucket, read_shard_list, settings_for, upload, wanted
from tests.sandboxed import Sandboxed


def run_connector(sandboxed: Sandboxed, profile: Profile, folder: Path, **task: Any) -> None:
    """Has the connector do the task in a process of its own."""
    config = folder / "connector.json"
    config.write_text(json.dumps({"logLevel": 1, "logPath": str(folder / "log"), "datasetConfig": {}}))
    owner = sandboxed.owner()
    task |= {"config": str(config), "region": profile.region, "endpoint": profile.standard_endpoint}
    task |= {"id": owner.access_key_id, "secret": owner.access_key_secret.reveal()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.dataset.connector_child"],
        input=json.dumps(task),
        text=True,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_line_of_the_resume_log_that_a_kill_cut_spoils_no_other(tmp_path: Path) -> None:
    def shard(number: int) -> PackedShard:
        name, samples = f"train/shard-{number:05}", msgspec.Raw(b"[]")
        fields = {"split": "train", "tar": f"{name}.tar", "index": f"{name}.idx", "bytes": 1, "samples": samples}
        return PackedShard(**fields, digest="d", etag="e", crc64="1", index_etag="f", index_crc64="2")  # type: ignore[arg-type]

    path = tmp_path / "sent.jsonl"
    for number in range(2):
        append_resume_log(path, shard(number))
    with path.open("r+b") as log:
        log.truncate(path.stat().st_size - 10)
    append_resume_log(path, shard(2))
    assert [found.tar for found in read_resume_log(path)] == ["train/shard-00000.tar", "train/shard-00002.tar"]


@hypothesis.settings(max_examples=40)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1), st.binary())))
def test_headers_and_padding_make_a_tar(members: list[tuple[str, bytes]]) -> None:
    stream, blocks = bytearray(), []
    for name, data in members:
        header = member_header(name, len(data))
        stream += header + data + padding(len(data))
        blocks.append((len(header) + len(data) + len(padding(len(data)))) // BLOCK)
    assert sum(blocks) * BLOCK == len(stream)
    with tarfile.open(fileobj=io.BytesIO(bytes(stream + bytes(2 * BLOCK)))) as tar:
        found = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert [data for _, data in found] == [data for _, data in members]


def write_odd_tar(path: Path) -> list[int]:
    """A tar of members of odd lengths; gives the blocks of each."""
    blocks = []
    with path.open("wb") as file:
        for name, size in (("train/a/1.u8", 100), ("train/b/" + "long" * 40, 512), ("c", 0), ("d", 100_000)):
            header = member_header(name, size)
            file.write(header + bytes(size) + padding(size))
            blocks.append((len(header) + size + len(padding(size))) // BLOCK)
        file.write(bytes(2 * BLOCK))
    return blocks


# Uploads


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def sharded(source: Path, fmt: SampleFormat = SampleFormat.IMAGE_U8, **changes: object) -> UploadSettings:
    return settings_for(source, fmt, **{"per_shard": 4, **changes})


def tars(store: ObjectStore, profile: Profile) -> dict[str, bytes]:
    """All below the prefix but the list."""
    found = bucket(store, profile.dataset_prefix)
    return {key: data for key, data in found.items() if key != SHARDS_NAME}


def check_list_is_the_bucket(store: ObjectStore, profile: Profile) -> dict[str, bytes]:
    """Every sample is where the list says, and nothing else is below the prefix; gives them by their keys."""
    listed, objects = read_shard_list(store, profile.dataset_prefix), tars(store, profile)
    assert set(objects) == {key for shard in listed.shards for key in (shard.tar, shard.index)}
    found = {}
    for shard in listed.shards:
        assert len(objects[shard.tar]) == shard.bytes
        assert [sample.key for sample in shard.samples] == list(members(objects[shard.tar]))
        for sample in shard.samples:
            end = sample.offset + sample.size(listed.format)
            found[sample.key] = objects[shard.tar][sample.offset : end]
            assert sample.crc64 == fastcrc.crc64.xz(found[sample.key])
    return found


def labels(store: ObjectStore, profile: Profile) -> dict[str, str]:
    listed = read_shard_list(store, profile.dataset_prefix)
    return {sample.key: listed.classes[sample.label] for shard in listed.shards for sample in shard.samples}


def test_shards_hold_every_sample_once_and_the_connector_reads_and_indexes_them_alike(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source", train=10, val=3)
    settings = sharded(source, workers=2)
    summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.skipped, summary.failed) == (13, 0, 0)
    assert check_list_is_the_bucket(store, profile) == wanted(source, settings.preprocessing)
    listed, objects = read_shard_list(store, profile.dataset_prefix), tars(store, profile)
    assert [(shard.tar, len(shard.samples)) for shard in listed.shards] == [
        *(("train/shard-00000.tar", 4), ("train/shard-00001.tar", 4), ("train/shard-00002.tar", 2)),
        ("val/shard-00000.tar", 3),
    ]
    assert summary.bytes == sum(shard.bytes for shard in listed.shards)
    assert summary.manifest.endswith(SHARDS_NAME)
    shard, out = listed.shards[0], tmp_path / "out.json"
    uri = f"oss://{profile.bucket}/{profile.dataset_prefix}"
    remote = {"tar": f"{uri}/{shard.tar}", "index": f"{uri}/{shard.index}", "out": str(out)}
    blocks = write_odd_tar(tmp_path / "odd.tar")
    local = {"local_tar": str(tmp_path / "odd.tar"), "local_index": str(tmp_path / "odd.idx")}
    run_connector(sandboxed_bucket, profile, tmp_path, **remote, **local)
    expected = [[name, hashlib.sha256(data).hexdigest()] for name, data in members(objects[shard.tar]).items()]
    found = json.loads(out.read_text())
    assert found["by number"] == expected
    assert sorted(found["in passing"]) == sorted(expected)  # they come as they arrive
    assert (tmp_path / "odd.idx").read_bytes() == encode_index(blocks)  # the connector's own index of another tar


@pytest.mark.parametrize("originals", [False, True])
def test_shards_of_encoded_images_list_the_bytes_of_each(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path, originals: bool
) -> None:
    source = make_pictures(tmp_path / "source", train=5, val=2)
    picture(9, (60, 50)).save(source / "train/ants/large.png")
    size = {"size": 0, "originals": True} if originals else {"size": 32}
    settings = sharded(source, SampleFormat.IMAGE_JPEG, **size)
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.failed) == (8, 0)
    found = check_list_is_the_bucket(store, profile)
    listed = read_shard_list(store, profile.dataset_prefix)
    assert (listed.format, listed.size) == (SampleFormat.IMAGE_JPEG, settings.size)
    assert {sample.key: sample.bytes for shard in listed.shards for sample in shard.samples} == {
        key: len(data) for key, data in found.items()
    }
    if originals:
        files = (path for path in source.rglob("*") if path.is_file())
        assert found == {str(path.relative_to(source)): path.read_bytes() for path in files}
    else:
        assert found.items() > wanted(source, settings.preprocessing).items()
        assert "train/ants/large.png.jpg" in found
    assert plan.stored_bytes == pytest.approx(summary.bytes, rel=0.3)  # the tars' ends and long headers are not planned
    again = upload(profile, sandboxed_bucket.owner, settings)
    assert (again.uploaded, again.unchanged) == (0, 8)
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert (plan.to_send, plan.unchanged, plan.bytes_to_send) == (0, 8, 0)


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (["a.u8", "0", 8, 8, 512], "not a list of shards"),
        (["a.u8", 1, 8, 8, 512], "s.tar: the label 1 is not within 0..0"),
        (["a.u8", 0, 8, 8, 0], "s.tar: a.u8 begins within the sample before it"),
        (["a.u8", 0, 8, 8, 512, 0, -5], "s.tar: -5 is not a CRC64"),
        (["a.u8", 0, 80, 80, 512], "s.tar: it has no samples, or they are longer than the tar"),
    ],
)
def test_a_shard_that_is_not_valid_is_named(
    store: ObjectStore, profile: Profile, sample: list[Any], problem: str
) -> None:
    shard = {"split": "train", "tar": "s.tar", "index": "s.idx", "bytes": 2048, "digest": "", "samples": [sample]}
    listed = {"format": "image-u8", "size": 8, "recipe": "", "classes": ["one"], "shards": [shard], "version": 1}
    store.put(f"{profile.dataset_prefix}/{SHARDS_NAME}", json.dumps(listed).encode())
    with pytest.raises(ManifestError, match=re.escape(problem)):
        read_shard_list(store, profile.dataset_prefix)


def test_labels_and_shapes_are_listed_where_the_key_does_not_have_them(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "dataset", train=2, val=0)
    (source / "val").mkdir()
    (source / "val/V1.JPEG").write_bytes(jpeg(1, (32, 64)))
    (tmp_path / "ILSVRC2012_val_labels.json").write_text('{"V1.JPEG": "bees"}')
    (source / "train/ants/deep").mkdir()
    (source / "train/ants/0.jpg").rename(source / "train/ants/deep/0.jpg")
    for _ in range(2):  # as they are sent, and as they are in the bucket
        job = create_upload(profile, sandboxed_bucket.owner, sharded(source, keep_ratio=True))
        job.start()
        job.result(WAIT_S)
        assert job.progress().classes == (("ants", 1), ("bees", 2))
    assert labels(store, profile) == {"train/ants/deep/0.u8": "ants", "train/bees/1.u8": "bees", "val/V1.u8": "bees"}
    shapes = {
        sample.key: (sample.height, sample.width)
        for shard in read_shard_list(store, profile.dataset_prefix).shards
        for sample in shard.samples
    }
    assert shapes["val/V1.u8"] == (32, 16)
    (tmp_path / "ILSVRC2012_val_labels.json").write_text('{"V1.JPEG": "aardvark"}')
    again = upload(profile, sandboxed_bucket.owner, sharded(source, keep_ratio=True))
    assert (again.uploaded, again.unchanged) == (0, 3)  # the tars are the same, all labels are others
    assert labels(store, profile) == {
        "train/ants/deep/0.u8": "ants",
        "train/bees/1.u8": "bees",
        "val/V1.u8": "aardvark",
    }


def test_the_same_source_gives_the_same_shards_and_sends_none_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source", train=10, val=2)
    upload(profile, sandboxed_bucket.owner, sharded(source))
    again = upload(profile, sandboxed_bucket.owner, sharded(source))
    assert (again.uploaded, again.unchanged, again.bytes) == (0, 12, 0)
    other = msgspec.structs.replace(profile, dataset_prefix=f"{profile.dataset_prefix}-other")
    upload(other, sandboxed_bucket.owner, sharded(source, workers=3))
    assert tars(store, profile) == tars(store, other)
    (source / "val/ants/0.jpg").write_bytes(jpeg(99))
    plan = plan_upload(profile, sandboxed_bucket.owner, sharded(source))
    assert (plan.to_send, plan.unchanged) == (2, 10)
    changed = upload(profile, sandboxed_bucket.owner, sharded(source))
    assert (changed.uploaded, changed.unchanged) == (2, 10)
    fewer = upload(profile, sandboxed_bucket.owner, sharded(source, per_shard=100, prune=True))
    assert (fewer.uploaded, len(fewer.removed), fewer.pruned) == (10, 4, True)
    assert check_list_is_the_bucket(store, profile) == wanted(source, settings_for(source).preprocessing)


def test_a_shard_that_vanished_is_sent_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    settings = sharded(make_pictures(tmp_path / "source", train=8, val=0))
    upload(profile, sandboxed_bucket.owner, settings)
    store.delete(f"{profile.dataset_prefix}/train/shard-00001.tar")
    again = upload(profile, sandboxed_bucket.owner, settings)
    assert (again.uploaded, again.unchanged) == (4, 4)


def test_a_shard_that_was_sent_before_a_kill_is_not_sent_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sharded(make_pictures(tmp_path / "source", train=12, val=0))
    landed = []

    def finish(engine: ShardUpload, state: ShardUploadState) -> None:
        landed.append(state)
        if len(landed) == 3:  # its tar is in the bucket, and nothing is written down about it
            raise Cancelled
        finishing(engine, state)

    finishing = ShardUpload._finish_shard
    with monkeypatch.context() as patch:
        patch.setattr(ShardUpload, "_finish_shard", finish)
        assert upload(profile, sandboxed_bucket.owner, settings).cancelled
    resume_log = next(journal_path(profile, profile.dataset_prefix).parent.glob("*.shards/sent.jsonl"))
    with resume_log.open("ab") as file:
        file.write(b'{"split":"tr')  # a line that a kill cut off
    assert not store.exists(f"{profile.dataset_prefix}/{SHARDS_NAME}")
    rest = upload(profile, sandboxed_bucket.owner, settings)
    assert (rest.uploaded, rest.unchanged, rest.bytes) == (0, 12, 0)
    assert check_list_is_the_bucket(store, profile) == wanted(settings.source, settings.preprocessing)


def test_broken_pictures_are_left_out_and_named_until_they_can_be_read(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source", train=6, val=0)
    (source / "train/ants/broken.jpg").write_bytes(b"no")
    (source / "train/ants/x.gif").write_bytes(b"no")
    for uploaded in (6, 0):
        summary = upload(profile, sandboxed_bucket.owner, sharded(source))
        assert (summary.uploaded, summary.unchanged, summary.ignored, summary.failed) == (uploaded, 6 - uploaded, 1, 1)
        assert [failure.path for failure in summary.failures] == ["train/ants/broken.jpg"]
    (source / "train/ants/broken.jpg").write_bytes(jpeg(50))
    assert upload(profile, sandboxed_bucket.owner, sharded(source)).failed == 0
    assert check_list_is_the_bucket(store, profile) == wanted(source, settings_for(source).preprocessing)


def test_a_tar_that_oss_refuses_costs_its_samples_alone(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    settings = sharded(make_pictures(tmp_path / "source", train=8, val=0))
    denied = Rule(action=Error(code="AccessDenied"), method="PUT", key="*/train/shard-00001.tar")
    busy = Rule(action=Error(code="ServiceUnavailable"), method="PUT", key="*/train/shard-00000.*", times=2)
    with sandboxed_bucket.faults(FaultPlan(rules=[denied, busy])):
        summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.failed, summary.retries) == (4, 4, 2)
    assert summary.failures[0].code == "AccessDenied"
    assert "shard-00001.tar (4 samples)" in summary.failures[0].path
    again = upload(profile, sandboxed_bucket.owner, settings)
    assert (again.uploaded, again.unchanged, again.failed) == (4, 4, 0)
    assert check_list_is_the_bucket(store, profile) == wanted(settings.source, settings.preprocessing)


class PartsOfTen:
    """The upload of a tar in two parts, as the state of it sees one."""

    numbers = range(1, 3)

    def send(self, _number: int) -> int:
        return 10

    def claim(self) -> bool:
        return True

    def complete(self) -> None:
        """Nothing."""

    close = complete


def two_parts(samples: int) -> ShardUploadState:
    rows = [ShardSample(f"train/a/{number}.u8", 0, 8, 8, 512) for number in range(samples)]
    shard_plan = ShardPlan("train", "train/shard-00000.tar", "", [])
    return ShardUploadState(shard_plan, Built(Path(), 20, 0, rows, b""), PartsOfTen())  # type: ignore[arg-type]


def test_a_thread_may_count_its_part_after_another_has_finished_the_tar() -> None:
    state = two_parts(samples=4)
    sizes = [state.send(number) for number in state.numbers]
    first = state.part_sent(sizes[0])
    assert state.claim()  # both parts are in the bucket
    state.complete()
    state.close()
    assert first + state.part_sent(sizes[1]) == Counts(uploaded=4, bytes=20)


def test_a_part_that_arrives_after_its_tar_has_failed_counts_no_samples() -> None:
    state = two_parts(samples=4)
    sent = state.part_sent(10)
    change = state.fail()
    assert change is not None
    assert sent + change + state.part_sent(10) == Counts(failed=4, bytes=20)


def test_rows_of_tars_that_are_in_the_bucket_are_freed(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: weakref.WeakSet[ShardUploadState] = weakref.WeakSet()
    kept = []

    def finish(engine: ShardUpload, state: ShardUploadState) -> None:
        finished.add(state)
        kept.append(len(finished))
        finishing(engine, state)

    finishing = ShardUpload._finish_shard
    monkeypatch.setattr(ShardUpload, "_finish_shard", finish)
    settings = sharded(make_pictures(tmp_path / "source", train=8, val=0), per_shard=1, parallelism=1)
    assert upload(profile, sandboxed_bucket.owner, settings).uploaded == 8
    assert max(kept) < 4


def test_a_full_disk_under_the_tars_is_an_error(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardBuilder, "build", lambda *_: Path("/dev/full").write_bytes(b"x"))
    with pytest.raises(JournalError, match="No space left") as caught:
        upload(profile, sandboxed_bucket.owner, sharded(make_pictures(tmp_path / "source")))
    assert "Free space" in caught.value.remedy


def test_a_prefix_holds_either_shards_or_single_samples(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source")
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    with pytest.raises(PrefixTakenError, match="single samples"):
        upload(profile, sandboxed_bucket.owner, sharded(source))
    other = msgspec.structs.replace(profile, dataset_prefix=f"{profile.dataset_prefix}-shards")
    upload(other, sandboxed_bucket.owner, sharded(source))
    with pytest.raises(PrefixTakenError, match="at 16 px"):
        upload(other, sandboxed_bucket.owner, sharded(source, size=20))
    with pytest.raises(PrefixTakenError, match="of shards"):
        upload(other, sandboxed_bucket.owner, settings_for(source))
