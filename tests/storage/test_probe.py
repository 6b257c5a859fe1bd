"""The probe through a real server: it comes through, and each thing that can be wrong ends it at its own stage."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ossconsole.config.checks import CheckStatus
from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.endpoints import EndpointKind, classify
from ossconsole.config.profiles import Profile
from ossconsole.sandbox.faults import FaultPlan
from ossconsole.storage.errors import StorageError
from ossconsole.storage.probe.probe import PROBE_NAME, HostProbe, UnreachableError, probe, probe_endpoint
from ossconsole.storage.probe.report import (
    PERMISSION_STAGES,
    EndpointReport,
    ProbeReport,
    ProbeStage,
    ProbeStep,
    StepRunner,
    StepStatus,
    ignore_step,
    probe_checks,
    stages,
)
from tests.sandboxed import Sandboxed, sandboxed

STANDARD, ACCELERATED = EndpointKind.STANDARD, EndpointKind.ACCELERATED


@pytest.fixture
def profile(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest) -> Profile:
    """Twenty samples and a manifest below prefixes of the test's own."""
    found = sandboxed_bucket.profile(request.node.name)
    store = sandboxed_bucket.store()
    for number in range(20):
        store.put(f"{found.dataset_prefix}/train/a/{number:02d}.u8", bytes(1000))
    store.put(f"{found.dataset_prefix}/manifest.json", b"{}")
    return found


@contextmanager
def closed_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def by_name(profile: Profile, report: ProbeReport) -> dict[str, CheckStatus]:
    return {check.name: check.status for check in probe_checks(profile, report)}


def failing(profile: Profile, report: ProbeReport) -> set[str]:
    return {name for name, status in by_name(profile, report).items() if status is CheckStatus.FAIL}


def detail(profile: Profile, report: ProbeReport, name: str) -> str:
    return next(check.detail for check in probe_checks(profile, report) if check.name == name)


def test_all_is_well(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    report = probe(profile, sandboxed_bucket.owner)
    assert set(by_name(profile, report).values()) == {CheckStatus.OK}
    for kind, endpoint in report.endpoints.items():
        assert tuple(step.stage for step in endpoint.steps) == stages(profile, kind)
        first = endpoint.figures(ProbeStage.READ)
        assert first is not None
        assert (first.samples, first.bytes) == (16, 16000)
        assert 0 < first.p50_ms <= first.p95_ms
        assert endpoint.skew_s is not None
        assert abs(endpoint.skew_s) < 2
    assert report.endpoints[STANDARD].figures(ProbeStage.REREAD) is None
    assert report.endpoints[ACCELERATED].figures(ProbeStage.REREAD) is not None
    assert tuple(step.stage for step in report.permissions) == PERMISSION_STAGES


def test_the_probes_object_is_cleaned_up(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    probe(profile, sandboxed_bucket.owner)
    assert not list(sandboxed_bucket.store().list_all(profile.checkpoint_prefix))


def test_without_writes_nothing_is_written(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    report = probe(profile, sandboxed_bucket.keys["read-only"], writes=False)
    assert report.permissions == ()
    assert not failing(profile, report)
    assert by_name(profile, report)["permissions"] is CheckStatus.OK  # --readonly is no fault: it says "Not tried"


def test_each_step_is_reported_as_it_begins_and_ends(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    reported: list[ProbeStep] = []
    lock = threading.Lock()

    def on_step(step: ProbeStep) -> None:
        with lock:
            reported.append(step)

    probe(profile, sandboxed_bucket.owner, on_step=on_step)
    for kind in EndpointKind:
        seen = [(step.stage, step.status) for step in reported if step.kind is kind]
        expected = [
            (stage, status) for stage in stages(profile, kind) for status in (StepStatus.RUNNING, StepStatus.OK)
        ]
        assert seen == expected


def test_both_endpoints_read_the_same_samples(tmp_path: Path) -> None:
    from tests.sandboxed import read_log

    with sandboxed(tmp_path / "sandbox") as running:
        profile = running.profile("data")
        store = running.store()
        for number in range(40):
            store.put(f"{profile.dataset_prefix}/{number:02d}", b"x")
        probe(profile, running.owner, writes=False)
        reads = [record for record in read_log(running.process.log_path) if record.operation == "GetObject"]
    keys = {kind: [record.key for record in reads if record.endpoint == kind.value] for kind in (STANDARD, ACCELERATED)}
    assert keys[ACCELERATED] == 2 * keys[STANDARD]
    assert len(set(keys[STANDARD])) == 16


def test_archived_samples_are_not_read(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    store = sandboxed_bucket.store()
    for number in range(19):
        key = f"{profile.dataset_prefix}/train/a/{number:02d}.u8"
        store.sdk.put_object(key, bytes(1000), headers={"x-oss-storage-class": "Archive"})
    report = probe(profile, sandboxed_bucket.owner, writes=False)
    assert not failing(profile, report)
    figures = report.endpoints[STANDARD].figures(ProbeStage.READ)
    assert figures is not None
    assert figures.samples == 1


def test_the_wait_for_the_other_endpoint_is_not_part_of_a_reading(
    sandboxed_bucket: Sandboxed, profile: Profile
) -> None:
    """A stalled endpoint would take the time limit of the other one, too."""
    listed, reading, other = threading.Event(), threading.Event(), threading.Lock()

    def on_step(step: ProbeStep) -> None:
        if step.stage is ProbeStage.LIST and step.passed:
            listed.set()
        if step.stage is ProbeStage.READ:
            reading.set()

    with ThreadPoolExecutor(1) as pool:
        with other:
            probed = pool.submit(
                probe_endpoint, profile, sandboxed_bucket.owner, STANDARD, on_step=on_step, reading=other
            )
            assert listed.wait(30)
            assert not reading.wait(0.1)
        assert probed.result().failed is None
    assert reading.is_set()


def test_the_cache_shows_in_the_second_reading(tmp_path: Path) -> None:
    miss_ms = 300  # a hit does not take as long, on a busy machine either
    shaping = ("--standard-first-byte-ms", str(miss_ms), "--accelerated-first-byte-ms", "0")
    with sandboxed(tmp_path / "sandbox", unshaped=False, arguments=shaping) as running:
        profile = running.profile("data")
        for number in range(4):
            running.store().put(f"{profile.dataset_prefix}/{number}", b"x")
        report = probe_endpoint(profile, running.owner, ACCELERATED)
    first, again = report.figures(ProbeStage.READ), report.figures(ProbeStage.REREAD)
    assert first is not None
    assert again is not None
    assert first.p50_ms >= miss_ms > again.p50_ms


@pytest.mark.parametrize(
    ("key", "check", "code"),
    [
        ("wrong secret", "credentials accepted", "SignatureDoesNotMatch"),
        ("expired", "credentials accepted", "SecurityTokenExpired"),
        ("read-only", "permissions", "AccessDenied"),
        ("no-delete", "permissions", "AccessDenied"),
    ],
)
def test_a_refused_key_fails_its_own_check_alone(
    sandboxed_bucket: Sandboxed, profile: Profile, key: str, check: str, code: str
) -> None:
    credentials = sandboxed_bucket.wrong_secret if key == "wrong secret" else sandboxed_bucket.keys[key]
    report = probe(profile, credentials)
    assert failing(profile, report) == {check}
    text = detail(profile, report, check)
    assert code in text
    assert "request id" in text


def test_a_temporary_key_comes_through(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    assert not failing(profile, probe(profile, sandboxed_bucket.keys["temporary"]))


def test_a_wrong_region_is_reported(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    elsewhere = msgspec.structs.replace(profile, region="cn-elsewhere")
    report = probe(elsewhere, sandboxed_bucket.owner)
    assert failing(elsewhere, report) == {"region"}
    assert "0002-00000226" in detail(elsewhere, report, "region")
    assert "request id" in detail(elsewhere, report, "region")


@pytest.mark.parametrize(("skew_s", "words"), [(1200, "behind"), (-1200, "ahead of")])
def test_a_clock_that_oss_refuses_is_reported_with_its_code(
    sandboxed_bucket: Sandboxed, profile: Profile, skew_s: float, words: str
) -> None:
    with sandboxed_bucket.faults(FaultPlan(clock_skew_s=skew_s)):
        report = probe(profile, sandboxed_bucket.owner)
    assert failing(profile, report) == {"clock"}
    text = detail(profile, report, "clock")
    assert f"{words} OSS" in text
    assert "1200 s" in text
    assert "RequestTimeTooSkewed" in text
    assert "request id" in text


def test_the_endpoint_of_another_region_is_distinguished_from_a_denied_permission(profile: Profile) -> None:
    refusal = StorageError(
        "AccessDenied: The bucket you are attempting to access must be addressed using the specified endpoint.",
        code="AccessDenied",
        ec="0003-00001403",
        request_id="R" * 24,
    )
    steps = StepRunner(STANDARD, 5, ignore_step)

    def refuse() -> str:
        raise refusal

    steps.run(ProbeStage.SIGNED, 5, refuse)
    endpoint = EndpointReport(
        kind=STANDARD,
        endpoint=profile.standard_endpoint,
        host=classify(profile.standard_endpoint),
        steps=tuple(steps.done),
    )
    report = ProbeReport(endpoints={STANDARD: endpoint})
    assert failing(profile, report) == {"region"}


def test_where_deleting_is_denied_the_object_left_is_named(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    report = probe(profile, sandboxed_bucket.keys["no-delete"])
    denied = [step for step in report.permissions if step.status is StepStatus.FAIL]
    assert [step.stage for step in denied] == [ProbeStage.DELETE]
    assert "oss:DeleteObject" in denied[0].remedy
    left = [step for step in report.permissions if step.status is StepStatus.WARN]
    assert PROBE_NAME in left[0].detail
    assert sandboxed_bucket.store().exists(f"{profile.checkpoint_prefix}/{PROBE_NAME}")


def test_a_missing_bucket_is_reported(tmp_path: Path) -> None:
    with sandboxed(tmp_path / "sandbox") as running:
        running.store().sdk.delete_bucket()
        profile = running.profile("data")
        report = probe(profile, running.owner)
    assert failing(profile, report) == {"bucket"}
    assert "NoSuchBucket" in detail(profile, report, "bucket")
    assert "request id" in detail(profile, report, "bucket")


def test_a_dead_port_fails_its_endpoint_alone(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    with closed_port() as port:
        half = msgspec.structs.replace(profile, accelerated_endpoint=f"http://0.0.1:{port}")
        report = probe(half, sandboxed_bucket.owner)
    assert failing(half, report) == {"endpoint accelerated"}
    assert "TCP" in detail(half, report, "endpoint accelerated")
    skipped = [step.stage for step in report.endpoints[ACCELERATED].steps if step.status is StepStatus.SKIPPED]
    assert skipped == [ProbeStage.SIGNED, ProbeStage.LIST, ProbeStage.READ, ProbeStage.REREAD]


def test_an_empty_prefix_is_a_warning(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    empty = msgspec.structs.replace(profile, dataset_prefix="nothing-here")
    report = probe(empty, sandboxed_bucket.owner)
    steps = {step.stage: step for step in report.endpoints[STANDARD].steps}
    assert steps[ProbeStage.LIST].status is StepStatus.WARN
    assert "ossconsole upload" in steps[ProbeStage.LIST].remedy
    assert steps[ProbeStage.READ].status is StepStatus.SKIPPED
    assert not failing(empty, report)


def test_an_endpoint_that_never_answers_is_given_up(sandboxed_bucket: Sandboxed, profile: Profile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = msgspec.structs.replace(profile, standard_endpoint=f"http://0.0.1:{silent.getsockname()[1]}")
        report = probe_endpoint(mute, sandboxed_bucket.owner, STANDARD, limit_s=0.5)
    failed = report.failed
    assert failed is not None
    assert failed.stage is ProbeStage.SIGNED
    assert "longer than" in failed.detail


class _Server(BaseHTTPRequestHandler):
    """A server whose clock is `ahead` of this machine's, and that refuses nothing."""

    ahead = timedelta(0)

    def do_HEAD(self) -> None:
        self.send_response_only(404)
        self.send_header("Date", f"{datetime.now(timezone.utc) + self.ahead:%a, %d %b %Y %H:%M:%S GMT}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def serve(certificate: Path | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("ahead", "status", "words"),
    [
        (timedelta(minutes=20), CheckStatus.FAIL, "behind"),
        (timedelta(minutes=-20), CheckStatus.FAIL, "ahead of"),
        (timedelta(minutes=5), CheckStatus.WARN, "300 s behind"),
        (timedelta(0), CheckStatus.OK, ""),
    ],
)
def test_the_clocks_are_compared(
    monkeypatch: pytest.MonkeyPatch, ahead: timedelta, status: CheckStatus, words: str
) -> None:
    monkeypatch.setattr(_Server, "ahead", ahead)
    with serve() as port:
        there = Profile(name="a", region="r", bucket="127", standard_endpoint=f"http://0.0.1:{port}")
        report = probe(there, FixedSource(Credentials("a", Secret("s"))))
    assert by_name(there, report)["clock"] is status
    assert words in detail(there, report, "clock")


def unreachable(reach: HostProbe) -> UnreachableError:
    def walk() -> None:
        reach.resolve()
        reach.connect(1)
        reach.handshake(1)

    with pytest.raises(UnreachableError) as caught:
        walk()
    return caught.value


def self_signed(folder: Path, *, names: list[str]) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(n)) for n in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_tls_with_a_trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    certificate = self_signed(tmp_path, names=["127.0.0.1"])
    monkeypatch.setenv(variable, str(certificate))
    with serve(certificate) as port:
        reach = HostProbe("127", f"https://0.0.1:{port}")
        reach.resolve()
        assert reach.handshake(2).startswith("TLS")


def test_tls_with_a_foreign_certificate(tmp_path: Path) -> None:
    with serve(self_signed(tmp_path, names=["127.0.0.1"])) as port:
        error = unreachable(HostProbe("127", f"https://0.0.1:{port}"))
    assert "is not trusted" in error.message


def test_tls_for_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path, names=["127.0.0.9"])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serve(certificate) as port:
        error = unreachable(HostProbe("127", f"https://0.0.1:{port}"))
    assert "is not trusted" in error.message


def test_a_plain_port_does_not_speak_tls() -> None:
    with serve() as port:
        error = unreachable(HostProbe("127", f"https://0.0.1:{port}"))
    assert "does not speak TLS" in error.message


def fail_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("https://oss-cn-hangzhou-internal.aliyuncs.com", "public endpoint: https://oss-cn-hangzhou.aliyuncs.com"),
        ("https://cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com", "create an accelerator"),
    ],
)
def test_inside_endpoints_say_where_they_answer(endpoint: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_lookups(monkeypatch)
    error = unreachable(HostProbe("abc", endpoint))
    assert "only inside the internal network of cn-hangzhou" in error.message
    assert words in error.remedy


def test_a_public_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_lookups(monkeypatch)
    error = unreachable(HostProbe("abc", "https://data.example.com"))
    assert "abc.data.example.com has no address" in error.message
    assert "spelling" in error.remedy
