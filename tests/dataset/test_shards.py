"""Shards: what the connector's own tools write and read, the same bytes every time, and nothing sent twice."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.config.profile import Profile
from ossconsole.dataset.manifest import SHARDS_NAME
from ossconsole.dataset.prefix import PrefixTakenError
from ossconsole.dataset.settings import UploadSettings
from ossconsole.dataset.shards import ShardList, ShardUpload
from ossconsole.dataset.tar_index import BLOCK, encode_index, member_header, padding
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.job import JobState
from tests.dataset.conftest import jpeg, make_pictures
from tests.dataset.uploads import WAIT_S, bucket, settings_for, upload, wanted
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


def test_the_index_is_the_connectors_byte_for_byte(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path
) -> None:
    blocks = []
    with (tmp_path / "a.tar").open("wb") as file:
        for name, size in (("train/a/1.u8", 100), ("train/b/" + "long" * 40, 512), ("c", 0), ("d", 100_000)):
            header = member_header(name, size)
            file.write(header + bytes(size) + padding(size))
            blocks.append((len(header) + size + len(padding(size))) // BLOCK)
        file.write(bytes(2 * BLOCK))
    run_connector(
        sandboxed_bucket, profile, tmp_path, do="index", tar=str(tmp_path / "a.tar"), index=str(tmp_path / "a.idx")
    )
    assert (tmp_path / "a.idx").read_bytes() == encode_index(blocks)


# Uploads


def upload_shards(sandboxed: Sandboxed, profile: Profile, settings: UploadSettings, per_shard: int = 4) -> ShardUpload:
    job = ShardUpload(ObjectStore(profile, sandboxed.owner), settings, per_shard)
    job.start()
    assert job.wait(WAIT_S)
    if job.error:
        raise job.error
    return job


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_shards_hold_every_sample_once_and_the_connector_reads_them(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source", train=10, val=3)
    settings = settings_for(source, workers=2)
    job = upload_shards(sandboxed_bucket, profile, settings)
    assert (job.state, job.samples) == (JobState.DONE, 13)
    objects = bucket(store, profile.dataset_prefix)
    listed = msgspec.json.decode(objects[SHARDS_NAME], type=ShardList)
    assert [(shard.tar, shard.samples) for shard in listed.shards] == [
        *(("train/shard-00000.tar", 4), ("train/shard-00001.tar", 4), ("train/shard-00002.tar", 2)),
        ("val/shard-00000.tar", 3),
    ]
    assert listed.classes == ("ants", "bees")
    found: dict[str, bytes] = {}
    for shard in listed.shards:
        found |= members(objects[shard.tar])
    assert found == wanted(source, settings.recipe)
    shard, out = listed.shards[0], tmp_path / "out.json"
    uri = f"oss://{profile.bucket}/{profile.dataset_prefix}"
    run_connector(
        sandboxed_bucket,
        profile,
        tmp_path,
        do="read",
        tar=f"{uri}/{shard.tar}",
        index=f"{uri}/{shard.index}",
        out=str(out),
    )
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in members(objects[shard.tar]).items()}
    assert json.loads(out.read_text()) == expected


def test_the_same_source_gives_the_same_shards_and_sends_none_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source", train=10, val=2)
    settings = settings_for(source)
    upload_shards(sandboxed_bucket, profile, settings)
    first = bucket(store, profile.dataset_prefix)
    again = upload_shards(sandboxed_bucket, profile, settings)
    assert (again.samples, again.unchanged) == (0, 12)
    other = msgspec.structs.replace(profile, dataset_prefix=f"{profile.dataset_prefix}-other")
    upload_shards(sandboxed_bucket, other, settings_for(source, workers=3))
    second = bucket(store, other.dataset_prefix)
    assert {key: data for key, data in first.items() if key != SHARDS_NAME} == {
        key: data for key, data in second.items() if key != SHARDS_NAME
    }
    (source / "val/ants/0.jpg").write_bytes(jpeg(99))
    changed = upload_shards(sandboxed_bucket, profile, settings)
    assert (changed.samples, changed.unchanged) == (2, 10)


def test_a_shard_that_vanished_is_sent_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    settings = settings_for(make_pictures(tmp_path / "source", train=8, val=0))
    upload_shards(sandboxed_bucket, profile, settings)
    store.delete(f"{profile.dataset_prefix}/train/shard-00001.idx")
    assert upload_shards(sandboxed_bucket, profile, settings).samples == 4


def test_broken_pictures_are_left_out_and_named(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source", train=6, val=0)
    (source / "train/ants/broken.jpg").write_bytes(b"no")
    (source / "train/ants/x.gif").write_bytes(b"no")
    job = upload_shards(sandboxed_bucket, profile, settings_for(source))
    assert (job.samples, job.ignored, [failure.key for failure in job.failures]) == (6, 1, ["train/ants/broken.jpg"])
    assert job.state is JobState.FAILED
    listed = msgspec.json.decode(store.get(f"{profile.dataset_prefix}/{SHARDS_NAME}"), type=ShardList)
    assert sum(shard.samples for shard in listed.shards) == 6


def test_a_prefix_holds_either_shards_or_single_samples(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "source")
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    with pytest.raises(PrefixTakenError, match="single samples"):
        upload_shards(sandboxed_bucket, profile, settings_for(source))
    other = msgspec.structs.replace(profile, dataset_prefix=f"{profile.dataset_prefix}-shards")
    upload_shards(sandboxed_bucket, other, settings_for(source))
    with pytest.raises(PrefixTakenError, match="at 16 px"):
        upload_shards(sandboxed_bucket, other, settings_for(source, size=20))
    with pytest.raises(PrefixTakenError, match="of shards"):
        upload(other, sandboxed_bucket.owner, settings_for(source))
