"""Whatever bytes stand where the console expects its own: a value, or one of its errors; never another exception."""

from __future__ import annotations

import contextlib
import http.server
import io
import pickle
import random
import resource
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossconsole.config.alibaba_credentials import CliProfileSource
from ossconsole.config.connector import load_connector_config, save_connector_config
from ossconsole.config.credential_sources import FixedSource, read_connector_file, read_ossutil_file
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import OnHangup, Profile, Settings, load_settings, save_settings
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, encode_manifest, read_manifest
from ossconsole.dataset.source.files import PathLocation, PlannedSample
from ossconsole.dataset.upload.journal import Journal, SentSample
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.multipart import list_uploads
from ossconsole.storage.retry import NO_RETRY
from ossconsole.telemetry import events
from ossconsole.telemetry.runs import RunRecord, list_runs, read_events
from ossconsole.training.checkpoints.checkpoint import fetch_uri, pack, unpack
from ossconsole.training.checkpoints.store import RunProgress

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DEEP = 5_000
_NASTY = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\x1b[2J",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"9" * 400,
    b"-1",
    b"1e999",
    b"null",
    b"<",
)


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with some bytes cut, changed, repeated, or replaced by what parsers fear."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        data[start:end] = draw(st.sampled_from(_NASTY) | st.binary(max_size=8))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def either(original: bytes) -> st.SearchStrategy[bytes]:
    return damaged(original) | st.binary(max_size=60) | st.sampled_from(_NASTY)


# Configuration

PROFILE = Profile(
    name="one",
    region="cn-hangzhou",
    bucket="data",
    standard_endpoint="https://oss-cn-hangzhou-internal.aliyuncs.com",
    accelerated_endpoint="https://cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com",
    credentials="ossutil:work",
)
_OSSUTIL = b"[Credentials]\nlanguage=EN\naccessKeyID=one\naccessKeySecret=two\n[profile work]\nmode=AK\naccessKeyID=a\n"
_ALIYUN = (
    b'{"current":"d","profiles":[{"name":"d","mode":"StsToken","access_key_id":"a","access_key_secret":"b",'
    b'"sts_token":"c"}]}'
)
_CONNECTOR = b'{"AccessKeyId":"a","AccessKeySecret":"b","SecurityToken":"c","Expiration":"2030-01-31T08:00:00Z"}'


def saved_settings(folder: Path) -> bytes:
    save_settings(Settings(active="one", profiles={"one": PROFILE}, on_hangup=OnHangup.STOP), folder / "x")
    return (folder / "x").read_bytes()


def saved_connector(folder: Path) -> bytes:
    return save_connector_config({"datasetConfig.prefetchMB": 64, "auditPath": "/tmp/a"}, folder / "y").read_bytes()


FILES: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object], type]] = {
    "settings": (saved_settings, load_settings, Settings),
    "connector's settings": (saved_connector, load_connector_config, dict),
    "connector's credentials": (lambda _: _CONNECTOR, read_connector_file, Credentials),
    "ossutil's file": (lambda _: _OSSUTIL, lambda path: read_ossutil_file(path, "work"), Credentials),
    "aliyun's file": (lambda _: _ALIYUN, lambda path: CliProfileSource(path)(), Credentials),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    make, read, kind = FILES[name]
    path = tmp_path / "file"

    @FEW
    @given(either(make(tmp_path)))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(ConsoleError):
            found = read(path)
            assert found is None or isinstance(found, kind)

    check()


@pytest.mark.parametrize(
    "text",
    [
        "active = []",
        "active = 3",
        "on_hangup = []",
        "on_hangup = {}",
        "profiles = 1",
        "profiles = []",
        "[profiles]\na = 1",
        '[profiles."\\u001b[2J"]\nregion = "x"',
        "[profiles.a]\nregion = []",
        f"active = {'[' * DEEP}",
    ],
    ids=range(10),
)
def test_settings_of_the_wrong_kind_are_an_error_in_words(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(text)
    with pytest.raises(ConsoleError, match=r"profiles\.toml"):
        load_settings(path)


# What comes from the bucket


class Replies:
    """A server that answers everything with `body`; it speaks HTTP and nothing else."""

    def __init__(self) -> None:
        self.body, self.status, self.headers = b"", 200, dict[str, str]()
        replies = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.send_response(replies.status)
                for name, value in {"Content-Length": str(len(replies.body)), **replies.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(replies.body)

            do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815 - names of http.server

            def log_message(self, *_: object) -> None:
                """Nothing: stderr is the test's."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture(scope="module")
def replies() -> Iterator[Replies]:
    serving = Replies()
    thread = threading.Thread(target=serving.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield serving
    serving.server.shutdown()
    serving.server.server_close()


@pytest.fixture(scope="module")
def anywhere(replies: Replies) -> Iterator[ObjectStore]:
    port = replies.server.server_address[1]
    profile = msgspec.structs.replace(PROFILE, bucket="127", standard_endpoint=f"http://0.0.1:{port}")
    store = ObjectStore(profile, FixedSource(Credentials("a", Secret("b"))), retry=NO_RETRY, timeout_s=5)
    yield store
    store.close()


_LISTING = b"""<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>127</Name><Prefix>a/</Prefix>
<MaxKeys>5</MaxKeys><Delimiter>/</Delimiter><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
<KeyCount>2</KeyCount><NextContinuationToken>abc</NextContinuationToken><Contents><Key>a%2Fb</Key>
<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>"AB"</ETag><Type>Normal</Type><Size>12</Size>
<StorageClass>Standard</StorageClass><Owner><ID>1</ID><DisplayName>1</DisplayName></Owner></Contents>
<CommonPrefixes><Prefix>a%2Fc%2F</Prefix></CommonPrefixes></ListBucketResult>"""
_UPLOADS = b"""<ListMultipartUploadsResult><Bucket>127</Bucket><EncodingType>url</EncodingType>
<NextKeyMarker>b</NextKeyMarker><NextUploadIdMarker>x</NextUploadIdMarker><MaxUploads>9</MaxUploads>
<IsTruncated>false</IsTruncated><Upload><Key>a</Key><UploadId>1</UploadId>
<Initiated>2024-01-01T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>"""
_BUCKETS = b"""<ListAllMyBucketsResult><Owner><ID>1</ID><DisplayName>1</DisplayName></Owner><Buckets><Bucket>
<Name>b</Name><Location>oss-cn-hangzhou</Location><CreationDate>2024-01-01T00:00:00.000Z</CreationDate>
<StorageClass>Standard</StorageClass><ExtranetEndpoint>e</ExtranetEndpoint>
<IntranetEndpoint>i</IntranetEndpoint></Bucket></Buckets></ListAllMyBucketsResult>"""
_ERROR = (
    b"<Error><Code>NoSuchKey</Code><Message>m</Message><RequestId>1</RequestId><HostId>h</HostId><EC>1</EC></Error>"
)
_LAUGHS = (
    b"""<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">%s]><ListBucketResult><Name>&z;</Name></ListBucketResult>"""
    % (b"".join(b'<!ENTITY %c "%s">' % (n, b"&%c;" % (n - 1) * 20) for n in range(ord("b"), ord("z") + 1)))
)


def _uploads(store: ObjectStore) -> object:
    return next(list_uploads(store), None)


@pytest.mark.parametrize(
    ("original", "status", "ask"),
    [
        pytest.param(_LISTING, 200, lambda store: store.list_page("a/"), id="listing"),
        pytest.param(_UPLOADS, 200, _uploads, id="unfinished uploads"),
        pytest.param(_BUCKETS, 200, lambda store: store.list_buckets(), id="buckets"),
        pytest.param(_ERROR, 404, lambda store: store.get("a"), id="error"),
    ],
)
def test_a_damaged_reply_is_read_or_refused(
    original: bytes, status: int, ask: Callable[[ObjectStore], object], replies: Replies, anywhere: ObjectStore
) -> None:
    replies.status, replies.headers = status, {}

    @FEW
    @given(either(original))
    def check(data: bytes) -> None:
        replies.body = data
        with contextlib.suppress(ConsoleError):
            ask(anywhere)

    check()


@pytest.mark.parametrize("name", ["Content-Length", "Last-Modified", "x-oss-hash-crc64ecma", "ETag", "x-oss-err"])
@pytest.mark.parametrize("value", ["", "x", "-1", "9" * 60, "é", "Mon, 99 Foo 2024"])
def test_a_header_that_is_nonsense_is_read_or_refused(
    name: str, value: str, replies: Replies, anywhere: ObjectStore
) -> None:
    for status in (200, 404):
        replies.status, replies.body, replies.headers = status, b"", {name: value}
        with contextlib.suppress(ConsoleError):
            anywhere.head("a")


def test_an_xml_bomb_is_refused(replies: Replies, anywhere: ObjectStore) -> None:
    replies.status, replies.body, replies.headers = 200, _LAUGHS, {}
    with pytest.raises(ConsoleError, match="cannot be read"):
        anywhere.list_page("a/")


def test_a_damaged_manifest_is_read_or_refused(replies: Replies, anywhere: ObjectStore) -> None:
    samples = tuple(Sample(f"train/c{n}/{n}.u8", n, 32, 32) for n in range(2))
    manifest = Manifest(
        format=SampleFormat.IMAGE_U8, size=32, classes=("c0", "c1"), preparation={"by": "us"}, splits={"train": samples}
    )
    replies.status, replies.headers = 200, {"ETag": '"x"'}

    @FEW
    @given(either(encode_manifest(manifest, manifest.splits)))
    def check(data: bytes) -> None:
        replies.body = data
        try:
            found = read_manifest(anywhere, "data")
        except ConsoleError:
            return
        assert all(".." not in sample.key.split("/") for split in found.splits.values() for sample in split)

    check()


def test_weights_that_would_fill_the_memory_are_not_fetched(replies: Replies, anywhere: ObjectStore) -> None:
    replies.status, replies.body = 200, b""
    replies.headers = {"Content-Length": str(1 << 40), "ETag": '"x"', "Last-Modified": "Sun, 22 Nov 2026 14:46:15 GMT"}
    with pytest.raises(ConsoleError, match="too large for weights"):
        fetch_uri(anywhere, "oss://127/large.pt")


# Checkpoints


def checkpoint() -> bytes:
    progress = RunProgress(epoch=1, step=2, train_sums=[1.0], metrics={"top1": 0.5})
    return bytes(pack({"model": {"w": torch.zeros(3)}, "optimizer": {}}, progress, {"run": "r", "classes": ["a"]}))


@FEW
@given(either(checkpoint()))
def test_a_damaged_checkpoint_is_loaded_or_refused(data: bytes) -> None:
    with contextlib.suppress(ConsoleError):
        assert isinstance(unpack(data, "here"), dict)


def repacked(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The members of a checkpoint with others in place of some."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint())) as source, zipfile.ZipFile(sink, "w", compression) as target:
        for name in source.namelist():
            found = next((entries[end] for end in entries if name.endswith(end)), None)
            target.writestr(name, source.read(name) if found is None else found)
    return sink.getvalue()


class Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    with pytest.raises(ConsoleError, match=r"runs code when it is loaded|cut short"):
        unpack(repacked({"data.pkl": pickle.dumps({"format": Planted(planted)})}), "here")
    assert not planted.exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = repacked({"data/0": bytes(256 << 20)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConsoleError, match="is a compressed archive"):
        unpack(bomb, "here")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


# What a crash or a failing disk leaves of our own files


@FEW
@given(data=st.data())
def test_a_record_cut_or_damaged_anywhere_still_reads(data: st.DataObject, home: Path) -> None:
    for old in (home / "state" / "runs").glob("*"):
        old.unlink()
    path = home / "state" / "runs" / "20261122-000000-abcd.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with RunRecord(path) as record:
        record.append(events.Run(time=1.0, run="r", version="1", pid=1))
        record.append(events.InfoEvent(time=2.0, message="one"))
        record.append(events.WarningEvent(time=3.0, message="two"))
    whole = path.read_bytes()
    path.write_bytes(data.draw(either(whole)))
    with contextlib.suppress(ConsoleError):
        list(read_events(path))
        list_runs()
    cut = data.draw(st.integers(len(whole) // 2, len(whole)))
    path.write_bytes(whole[:cut])
    assert len(list(read_events(path))) in {whole[:cut].count(b"\n"), whole[:cut].count(b"\n") + 1}


def test_a_damaged_journal_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    planned = PlannedSample("train/a/1.jpg", "train", "a", "train/a/1", "train/a/1.jpg", 10, 5, PathLocation("1.jpg"))
    journal = Journal(path, source="here", recipe="r")
    key = journal.plan(planned, ".u8").key
    assert key
    journal.mark_sent(SentSample(planned.path, 10, 5, 8, 8, 192, "1", "e"))
    journal.close()
    original, chance = path.read_bytes(), random.Random(5)
    for _ in range(40):
        data = bytearray(original)
        for _ in range(chance.choice([1, 4, 400])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        for leftover in tmp_path.glob("journal.sqlite-*"):
            leftover.unlink()
        path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        with contextlib.suppress(ConsoleError):
            journal = Journal(path, source="here", recipe="r")
            try:
                journal.plan(planned, ".u8")
                list(journal.expected())
                journal.classes()
            finally:
                with contextlib.suppress(ConsoleError):
                    journal.close()
