"""ObjectStore against a real server: what it stores comes back, and every refusal arrives in words."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fastcrc
import msgspec
import oss2
import pytest
import tenacity
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.sandbox.faults import (
    Action,
    Corrupt,
    Error,
    FaultPlan,
    MalformedListing,
    Reset,
    Rule,
    Stall,
    Truncate,
    WrongCrc,
)
from ossconsole.storage import client, retry
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.multipart import list_uploads
from ossconsole.storage.retry import NO_RETRY, RetryPolicy
from tests.sandboxed import Sandboxed
from tests.storage.test_probe import self_signed

NASTY = st.text(st.sampled_from("./\\%~\x00\x1b\r\n\t[\u202e\u200b\ufeff\ufffe +&?#"), min_size=1, max_size=20)


@pytest.fixture
def store(sandboxed_bucket: Sandboxed) -> Iterator[ObjectStore]:
    found = sandboxed_bucket.store()
    yield found
    found.close()


def failure(work: Callable[[], object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        work()
    return caught.value


def test_an_object_is_read_as_it_was_written(store: ObjectStore) -> None:
    result = store.put("client/a", b"some bytes", content_type="text/plain", metadata={"run": "r1"})
    assert result.crc64 == fastcrc.crc64.xz(b"some bytes")
    info = store.head("client/a")
    assert (info.size, info.content_type, info.metadata) == (10, "text/plain", {"run": "r1"})
    assert info.crc64 == result.crc64
    assert store.get("client/a") == b"some bytes"
    assert store.exists("client/a")


def test_the_crc_is_the_services() -> None:
    theirs = oss2.utils.Crc64()
    theirs.update(b"123456789")
    assert fastcrc.crc64.xz(b"123456789") == 0x995DC9BBDF1939FA == theirs.crc


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.text(min_size=1, max_size=40), NASTY), data=st.binary(max_size=300))
@example(name="../../up/./x//", data=b"")
@example(name="\x1b[31m\r\n\x00\x7f\u202e\ufeff", data=b"1")
def test_any_key_and_any_bytes_come_back(store: ObjectStore, name: str, data: bytes) -> None:
    key = f"client/any/{name}"
    store.put(key, data)
    assert store.get(key) == data
    assert [found.key for found in store.list_page(key, delimiter="").objects] == [key]
    assert store.head(key).size == len(data)
    store.delete(key)
    assert not store.exists(key)


def test_ranges_end_with_the_object(store: ObjectStore) -> None:
    store.put("client/range", b"0123456789")
    assert store.get_range("client/range", 2, 3) == b"234"
    assert store.get_range("client/range", 8, 100) == b"89"
    assert store.get_range("client/range", 10, 5) == b""


def test_listing_goes_through_all_pages(store: ObjectStore) -> None:
    names = [f"client/list/{number:02d}" for number in range(7)]
    for name in names:
        store.put(name, b"x")
    page = store.list_page("client/list/", max_keys=3)
    assert [item.key for item in page.objects] == names[:3]
    second = store.list_page("client/list/", max_keys=3, token=page.next_token)
    assert [item.key for item in second.objects] == names[3:6]
    assert [item.key for item in store.list_all("client/list/")] == names
    assert [item.key for item in store.list_page("client/list/", start_after=names[4]).objects] == names[5:]


def test_a_delimiter_gives_folders(store: ObjectStore) -> None:
    for name in ("client/tree/a/1", "client/tree/b/1", "client/tree/c"):
        store.put(name, b"x")
    page = store.list_page("client/tree/")
    assert page.prefixes == ["client/tree/a/", "client/tree/b/"]
    assert [item.key for item in page.objects] == ["client/tree/c"]
    assert page.next_token == ""


def test_copy_and_delete(store: ObjectStore) -> None:
    store.put("client/source", b"bytes")
    store.copy("client/source", "client/target")
    assert store.get("client/target") == b"bytes"
    assert store.delete_many(["client/source", "client/target", "client/never"]) == 3
    assert not store.exists("client/source")
    store.delete("client/never")


def test_the_buckets_are_listed_with_their_regions(store: ObjectStore, sandboxed_bucket: Sandboxed) -> None:
    info = sandboxed_bucket.process.info
    assert (info.bucket, info.region) in [(found.name, found.region) for found in store.list_buckets()]


def test_both_endpoints_show_the_same_objects(store: ObjectStore, sandboxed_bucket: Sandboxed) -> None:
    store.put("client/both", b"1")
    accelerated = sandboxed_bucket.store(EndpointKind.ACCELERATED)
    assert accelerated.get("client/both") == b"1"
    store.put("client/both", b"22")
    assert accelerated.get("client/both") == b"22"


def test_a_missing_object_says_which(store: ObjectStore) -> None:
    error = failure(lambda: store.get("client/none"))
    assert (error.status, error.code) == (404, "NoSuchKey")
    assert "oss://127/client/none" in error.message
    assert error.request_id in error.message
    assert failure(lambda: store.head("client/none")).status == 404


def test_a_wrong_secret_names_code_request_and_remedy(sandboxed_bucket: Sandboxed) -> None:
    store = ObjectStore(sandboxed_bucket.process.profile(), sandboxed_bucket.wrong_secret)
    error = failure(lambda: store.get("client/a"))
    assert error.code == "SignatureDoesNotMatch"
    assert len(error.request_id) == 24
    assert "secret" in error.remedy
    assert not error.retriable


def test_a_wrong_region_is_an_error_of_arguments(sandboxed_bucket: Sandboxed) -> None:
    profile = msgspec.structs.replace(sandboxed_bucket.process.profile(), region="cn-elsewhere")
    error = failure(lambda: ObjectStore(profile, sandboxed_bucket.owner).get("client/a"))
    assert error.code == "InvalidArgument"
    assert error.ec == "0002-00000226"
    assert "region" in error.remedy


@pytest.mark.parametrize(
    ("key", "refused"), [("read-only", ("put", "delete")), ("no-delete", ("delete",)), ("temporary", ())]
)
def test_each_key_may_do_what_its_role_allows(
    sandboxed_bucket: Sandboxed, store: ObjectStore, key: str, refused: tuple[str, ...]
) -> None:
    name = f"client/{key}"
    store.put(name, b"x")
    limited = sandboxed_bucket.store(key=key)
    operations: dict[str, Callable[[], object]] = {
        "get": lambda: limited.get(name),
        "put": lambda: limited.put(name, b"y"),
        "delete": lambda: limited.delete(name),
    }
    for operation, work in operations.items():
        if operation in refused:
            assert failure(work).code == "AccessDenied"
        else:
            work()


def test_an_expired_token_has_an_error_of_its_own(sandboxed_bucket: Sandboxed) -> None:
    error = failure(lambda: sandboxed_bucket.store(key="expired").get("client/a"))
    assert error.code == "SecurityTokenExpired"
    assert "fetch new" in error.remedy


def test_a_dead_port_is_no_answer(sandboxed_bucket: Sandboxed) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    profile = msgspec.structs.replace(sandboxed_bucket.process.profile(), standard_endpoint=f"http://0.0.1:{port}")
    error = failure(lambda: ObjectStore(profile, sandboxed_bucket.owner, retry=TWICE, timeout_s=1).get("a"))
    assert (error.status, error.code, error.retriable) == (0, "", True)
    assert "refused" in error.message
    assert "internal network" in error.remedy


def test_a_profile_without_the_endpoint_is_refused(sandboxed_bucket: Sandboxed) -> None:
    profile = msgspec.structs.replace(sandboxed_bucket.process.profile(), accelerated_endpoint=None)
    with pytest.raises(SettingsError, match="no accelerated endpoint"):
        ObjectStore(profile, sandboxed_bucket.owner, EndpointKind.ACCELERATED)


def test_nothing_leaves_this_machine(sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: tuple[str, int]) -> None:
        called.append(address[0])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    for kind in EndpointKind:
        store = sandboxed_bucket.store(kind)
        store.put("client/local", b"x")
        store.head("client/local")
        store.list_page("client/")
    assert set(called) == {"127.0.0.1", "127.0.0.2"}


class _Damaging(BaseHTTPRequestHandler):
    """Answers every GET with bytes that are not those of the checksum it sends; the third time it is right."""

    answers = 0

    def do_GET(self) -> None:
        type(self).answers += 1
        body = b"right" if self.answers == 3 else b"wrong"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-oss-hash-crc64ecma", str(fastcrc.crc64.xz(b"right")))
        self.send_header("x-oss-request-id", "R" * 24)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_damaged_bytes_are_asked_for_again(quick_retries: None, sandboxed_bucket: Sandboxed) -> None:
    _Damaging.answers = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Damaging)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile = Profile(name="a", region="r", bucket="127", standard_endpoint=f"http://0.0.1:{server.server_address[1]}")
    try:
        assert "checksum" in failure(lambda: ObjectStore(profile, sandboxed_bucket.owner, retry=TWICE).get("a")).message
        assert ObjectStore(profile, sandboxed_bucket.owner, retry=TWICE).get("a") == b"right"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the growing waits; what OSS asks to wait is waited all the same."""
    monkeypatch.setattr(retry, "backoff", lambda _policy: tenacity.wait_none())


TWICE = RetryPolicy(attempts=2)
THROTTLED = Error(code="QpsLimitExceeded", qos_delay_ms=50)


@pytest.mark.parametrize(
    "action",
    [
        THROTTLED,
        Error(code="InternalError"),
        Error(code="ServiceUnavailable", qos_delay_ms=50),
        Reset(),
        Reset(after_bytes=3),
        Truncate(after_bytes=3),
        Corrupt(),
        WrongCrc(),
    ],
    ids=lambda action: type(action).__name__ + getattr(action, "code", "") + str(getattr(action, "after_bytes", "")),
)
def test_what_may_pass_is_retried(quick_retries: None, sandboxed_bucket: Sandboxed, action: Action) -> None:
    policy = RetryPolicy(attempts=3, patience_s=0.1)  # two waits of 50 ms
    store = ObjectStore(sandboxed_bucket.process.profile(), sandboxed_bucket.owner, timeout_s=5, retry=policy)
    store.put("client/faults", b"some bytes")
    with sandboxed_bucket.faults(FaultPlan(rules=(Rule(action=action, method="GET", times=2),))):
        assert store.get("client/faults") == b"some bytes"
    with sandboxed_bucket.faults(FaultPlan(rules=(Rule(action=action, method="GET", times=3),))):
        assert failure(lambda: store.get("client/faults")).retriable


def test_what_is_refused_is_not_tried_again(sandboxed_bucket: Sandboxed) -> None:
    store = ObjectStore(sandboxed_bucket.process.profile(), sandboxed_bucket.owner, timeout_s=5)
    with sandboxed_bucket.faults(FaultPlan(rules=(Rule(action=Error(code="AccessDenied"), method="GET"),))):
        assert failure(lambda: store.get("client/faults")).code == "AccessDenied"
        assert sandboxed_bucket.control.status().fault_hits == [1]


def test_throttling_is_waited_out_as_long_as_oss_asks(sandboxed_bucket: Sandboxed) -> None:
    plan = FaultPlan(rules=(Rule(action=Error(code="QpsLimitExceeded", qos_delay_ms=700), times=1),))
    store = ObjectStore(sandboxed_bucket.process.profile(), sandboxed_bucket.owner, retry=NO_RETRY)
    with sandboxed_bucket.faults(plan):
        error = failure(lambda: store.put("client/throttled", b"x"))
    assert error.delay_s == 0.7
    assert "throttling" in error.remedy


def test_a_silent_server_is_given_up(sandboxed_bucket: Sandboxed) -> None:
    store = ObjectStore(sandboxed_bucket.process.profile(), sandboxed_bucket.owner, timeout_s=0.3, retry=NO_RETRY)
    with sandboxed_bucket.faults(FaultPlan(rules=(Rule(action=Stall(seconds=20)),))):
        error = failure(lambda: store.head("client/faults"))
    assert (error.status, error.retriable) == (0, True)


def test_a_listing_that_breaks_off_is_an_error(sandboxed_bucket: Sandboxed) -> None:
    store = sandboxed_bucket.store()
    with sandboxed_bucket.faults(FaultPlan(rules=(Rule(action=MalformedListing()),))):
        error = failure(lambda: store.list_page("client/"))
    assert "listing oss://127/client/" in error.message


def test_the_cause_of_no_answer_is_never_the_refusal_of_another_request(sandboxed_bucket: Sandboxed) -> None:
    profile = msgspec.structs.replace(sandboxed_bucket.process.profile(), standard_endpoint="http://0.0.1:9")
    try:
        sandboxed_bucket.store().get("no/such/key")
    except StorageError:
        with pytest.raises(StorageError, match="Connection refused") as caught:
            ObjectStore(profile, sandboxed_bucket.owner, retry=NO_RETRY).list_page("x/")
    assert "NoSuchKey" not in caught.value.message


def test_whether_a_key_may_be_written_is_known_without_writing(sandboxed_bucket: Sandboxed) -> None:
    store = sandboxed_bucket.store()
    store.check_write("check-write/x")
    assert not store.exists("check-write/x")
    assert not list(list_uploads(store, "check-write/"))
    with pytest.raises(StorageError, match="AccessDenied"):
        sandboxed_bucket.store(key="read-only").check_write("check-write/x")


class _Writable(BaseHTTPRequestHandler):
    """Takes any object, and closes the connection after one whose name ends in `last`."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[set[int]] = set()

    def do_PUT(self) -> None:
        self.connections.add(self.client_address[1])
        self.rfile.read(int(self.headers["Content-Length"]))
        self.close_connection = self.path.endswith("last")
        self.send_response_only(200)
        self.send_header("ETag", '"A"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def writable(certificate: Path | None = None) -> Iterator[ObjectStore]:
    """A store at a server of the test's own, which is trusted where it has a certificate."""
    _Writable.connections.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Writable)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"{scheme}://0.0.1:{server.server_address[1]}"
    there = Profile(name="a", region="r", bucket="127", standard_endpoint=endpoint)
    store = ObjectStore(there, FixedSource(Credentials("a", Secret("s"))), retry=NO_RETRY)
    try:
        yield store
    finally:
        store.close()
        server.shutdown()
        server.server_close()


def test_objects_are_written_over_tls_to_a_server_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path, names=["127.0.0.1"])
    with writable(certificate) as store:
        assert "certificate verify failed" in failure(lambda: store.put("a", b"x")).message
    monkeypatch.setattr(client, "DEFAULT_CA_BUNDLE_PATH", str(certificate))
    with writable(certificate) as store:
        assert store.put("a", b"x").etag == "A"
        assert store.put("b", b"y").etag == "A"
    assert len(_Writable.connections) == 1


def test_a_connection_for_writing_is_used_again_unless_the_server_has_closed_it() -> None:
    with writable() as store:
        for key in ("a", "b", "b/last"):
            store.put(key, b"x")
        ((idle,),) = store._write_session._idle.values()
        assert select.select([idle.sock], [], [], 10)[0]  # the server's end has arrived
        for key in ("c", "d"):
            store.put(key, b"x")
    assert len(_Writable.connections) == 2


def test_copy_of_an_object_above_the_limit_goes_in_parts(
    store: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint of several gigabytes becomes the latest one; an earlier object is replaced."""
    monkeypatch.setattr("ossconsole.storage.copying.COPY_WHOLE_BELOW", 200_000)
    monkeypatch.setattr("ossconsole.storage.copying.COPY_PART_SIZE", 110_000)
    data = bytes(range(256)) * 1000
    store.put(f"{prefix}new", data, content_type="text/x-test", metadata={"epoch": "3"})
    store.put(f"{prefix}latest", b"before")
    store.copy(f"{prefix}new", f"{prefix}latest")
    info = store.head(f"{prefix}latest")
    assert (info.object_type, info.content_type, info.metadata) == ("Multipart", "text/x-test", {"epoch": "3"})
    assert store.get(f"{prefix}latest") == data
