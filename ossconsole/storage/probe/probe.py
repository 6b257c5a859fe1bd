"""The probe: tests both endpoints, from DNS to reading samples, and the permissions that training needs."""

from __future__ import annotations

import contextlib
import functools
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import oss2
import requests
from oss2.exceptions import OssError

from ossconsole.config.credentials import Credentials, CredentialSource, NoCredentialsError
from ossconsole.config.endpoints import EndpointKind, HostKind, classify, likely_endpoint, misuse, request_url
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.config.proxies import ca_bundle, mask_proxy, proxies_for, proxy_note, proxy_of
from ossconsole.config.text import counted
from ossconsole.storage.client import ObjectStore, tls_context
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import ObjectSummary
from ossconsole.storage.probe.report import (
    NO_CREDENTIALS,
    PERMISSION_STAGES,
    EndpointReport,
    Figures,
    OnStep,
    ProbeReport,
    ProbeResult,
    ProbeStage,
    ProbeStep,
    ProbeWarning,
    StepRunner,
    ignore_step,
    stages,
)
from ossconsole.storage.retry import NO_RETRY

PROBE_NAME = ".ossconsole-probe"
"""One name for all probes: where deleting is denied, only one object of a few bytes remains."""

_CONTENT = b"ossconsole probe\n"
_LIMIT_S = 5.0

_WHY = {
    ProbeStage.DELETE: "the connector deletes a key before it writes a checkpoint to it (oss:DeleteObject)",
    ProbeStage.LIST: "listing checkpoints (oss:ListObjects)",
    ProbeStage.PUT: "copying a checkpoint onto its stable key (oss:PutObject)",
    ProbeStage.GET: "resuming from a checkpoint (oss:GetObject)",
    ProbeStage.MULTIPART: "writing checkpoints in parts (oss:PutObject)",
}


def probe_permissions(
    store: ObjectStore, prefix: str, *, on_step: OnStep = ignore_step, limit_s: float = 20.0
) -> Sequence[ProbeStep]:
    """One step per permission. All are tested, whatever the others gave; only GET needs PUT's object."""
    steps = StepRunner(None, limit_s, on_step)
    key = f"{prefix}/{PROBE_NAME}"
    work: dict[ProbeStage, Callable[[], object]] = {
        ProbeStage.DELETE: lambda: store.delete(key),
        ProbeStage.LIST: lambda: store.list_page(f"{prefix}/", max_keys=1),
        ProbeStage.PUT: lambda: store.put(key, _CONTENT),
        ProbeStage.GET: lambda: _get(store, key),
        ProbeStage.MULTIPART: lambda: _multipart(store, key),
    }
    allowed: dict[ProbeStage, bool] = {}
    for stage in PERMISSION_STAGES:
        if stage is ProbeStage.GET and not allowed[ProbeStage.PUT]:
            steps.skip(stage, "nothing to read, as writing failed")
        else:
            allowed[stage] = steps.run(stage, _LIMIT_S, functools.partial(_try, work[stage], stage))
    if allowed[ProbeStage.PUT] or allowed[ProbeStage.MULTIPART]:
        try:
            store.delete(key)
        except StorageError as error:
            steps.warn(ProbeStage.DELETE, f"The probe's object {store.uri(key)} was not deleted.", error.remedy)
    return steps.done


def _try(work: Callable[[], object], stage: ProbeStage) -> str:
    try:
        work()
    except StorageError as error:
        if error.code == "AccessDenied":
            raise StorageError(
                error.message,
                remedy=f"Allow it in RAM; it is needed for {_WHY[stage]}.",
                status=error.status,
                code=error.code,
                ec=error.ec,
                request_id=error.request_id,
            ) from error
        raise
    return "allowed"


def _get(store: ObjectStore, key: str) -> None:
    if store.get(key) != _CONTENT:
        raise ConsoleError(
            f"{store.uri(key)} does not have the content that was written.", remedy="Run the test again."
        )


def _multipart(store: ObjectStore, key: str) -> None:
    bucket = store.sdk
    upload = store.call(f"starting an upload to {store.uri(key)}", lambda: bucket.init_multipart_upload(key)).upload_id
    part = store.call(f"uploading a part of {store.uri(key)}", lambda: bucket.upload_part(key, upload, 1, _CONTENT))
    store.call(
        f"completing {store.uri(key)}",
        lambda: bucket.complete_multipart_upload(key, upload, [oss2.models.PartInfo(1, part.etag)]),
    )


class UnreachableError(ConsoleError):
    """The host has no address, refuses connections, or has no trusted TLS certificate."""


class HostProbe:
    """Tests `<bucket>.<endpoint host>`, the host that every request goes to, below HTTP."""

    def __init__(self, bucket: str, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self.endpoint = endpoint
        self.info = classify(endpoint)
        self.host = f"{bucket}.{parts.hostname}"
        self.secure = parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        self.proxy = proxy_of(request_url(bucket, endpoint))
        proxy = urlsplit(self.proxy if "://" in self.proxy else f"http://{self.proxy}")
        self._target = (proxy.hostname or "", proxy.port or 80) if self.proxy else (self.host, self.port)
        self._address = ""

    def resolve(self) -> str:
        """Resolves the host's address. Raises UnreachableError."""
        try:
            found = socket.getaddrinfo(*self._target, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._unreachable(f"{self._target[0]} has no address: {_reason(error)}") from error
        self._address = str(found[0][4][0])
        return f"proxy {mask_proxy(self.proxy)}: {self._address}" if self.proxy else self._address

    def connect(self, timeout_s: float) -> str:
        """Opens and closes a TCP connection. Raises UnreachableError."""
        try:
            with socket.create_connection((self._address, self._target[1]), timeout=timeout_s):
                return f"{self._address} port {self._target[1]}"
        except OSError as error:
            host, port = self._target
            raise self._unreachable(f"{host} ({self._address}) port {port}: {_reason(error)}") from error

    def handshake(self, timeout_s: float) -> str:
        """Opens and closes a TLS connection with a trusted certificate; its TLS version. Raises UnreachableError."""
        if self.proxy:
            return self._handshake_through_proxy(timeout_s)
        context = tls_context()
        try:
            with (
                socket.create_connection((self._address, self.port), timeout=timeout_s) as plain,
                context.wrap_socket(plain, server_hostname=self.host) as connection,
            ):
                return connection.version() or "TLS"
        except ssl.SSLCertVerificationError as error:
            raise UnreachableError(
                f"The certificate of {self.host} is not trusted: {error.verify_message.rstrip('.')}.",
                remedy="Check the endpoint's spelling, this machine's clock, and its CA certificates.",
            ) from error
        except OSError as error:
            raise UnreachableError(
                f"{self.host} port {self.port} does not speak TLS: {_reason(error)}.",
                remedy=f"Check the endpoint: {self.endpoint}",
            ) from error

    def _handshake_through_proxy(self, timeout_s: float) -> str:
        """Any answer of the host is one through TLS."""
        url = f"https://{self.host}:{self.port}/"
        try:
            with requests.Session() as session:
                session.trust_env = False
                session.head(url, proxies=proxies_for(url), verify=ca_bundle() or True, timeout=timeout_s)
        except requests.exceptions.RequestException as error:
            # Without the cause: its text may have the proxy's password.
            trusted = "presents a certificate that is not trusted" if "certificate" in str(error) else "does not answer"
            raise self._unreachable(f"{self.host} port {self.port} {trusted} ({type(error).__name__})") from None
        return "TLS"

    def _unreachable(self, what: str) -> UnreachableError:
        if self.proxy:
            return UnreachableError(
                f"Through the proxy {mask_proxy(self.proxy)}: {what}.",
                remedy="Check HTTPS_PROXY, or add the host to NO_PROXY. A proxy's own certificate goes into "
                "REQUESTS_CA_BUNDLE.",
            )
        if self.info.inside_only:
            region = self.info.region
            message = f"{what}. This endpoint answers only inside the internal network of {region}."
            if self.info.kind is HostKind.ACCELERATOR:
                remedy = f"Run on an instance in {region}, and create an accelerator for the bucket if it has none."
            else:
                remedy = (
                    f"Run on an instance in {region}, or use the public endpoint: https://oss-{region}.aliyuncs.com"
                )
            return UnreachableError(message, remedy=remedy)
        if self.info.kind is HostKind.LOOPBACK:
            return UnreachableError(f"{what}.", remedy="Start the server: ossconsole sandbox")
        return UnreachableError(
            f"{what}.", remedy="Check the endpoint's spelling, and this machine's network and proxy."
        )


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return error.strerror or str(error)


SAMPLES = 16
SAMPLE_BYTES = 4 << 20  # read of one object at most
MANIFEST_NAME = "manifest.json"
_CONNECT_LIMIT_S = 2.5
_REQUEST_LIMIT_S = 4.0
_READ_LIMIT_S = 5.0
_READ_BUDGET_S = 2.0  # after which no further sample is read


def probe(
    profile: Profile,
    credentials: CredentialSource | None,
    *,
    on_step: OnStep = ignore_step,
    writes: bool = True,
    limit_s: float = 30.0,
) -> ProbeReport:
    """Tests both endpoints simultaneously, then the permissions (unless `writes` is False) through the standard one.

    Without credentials each endpoint is tested up to its TLS handshake. `on_step` is called from other threads as each
    step begins and ends. Failures are in the report; none is raised.
    """
    began = time.monotonic()
    reading = threading.Lock()
    seed = time.monotonic_ns()
    with ThreadPoolExecutor(len(EndpointKind), thread_name_prefix="probe") as pool:
        waiting = {
            kind: pool.submit(
                probe_endpoint, profile, credentials, kind, on_step=on_step, limit_s=limit_s, reading=reading, seed=seed
            )
            for kind in profile.endpoints
        }
        reports = {kind: future.result() for kind, future in waiting.items()}
    permissions: Sequence[ProbeStep] = ()
    if credentials is not None and writes and reports[EndpointKind.STANDARD].accepted:
        store = ObjectStore(profile, credentials, timeout_s=_REQUEST_LIMIT_S, retry=NO_RETRY)
        left_s = max(_REQUEST_LIMIT_S, limit_s - (time.monotonic() - began))
        permissions = probe_permissions(store, profile.checkpoint_prefix, on_step=on_step, limit_s=left_s)
        store.close()
    return ProbeReport(endpoints=reports, permissions=tuple(permissions))


def probe_endpoint(
    profile: Profile,
    credentials: CredentialSource | None,
    kind: EndpointKind,
    *,
    on_step: OnStep = ignore_step,
    limit_s: float = 30.0,
    reading: threading.Lock | None = None,
    seed: int = 0,
) -> EndpointReport:
    """Tests one endpoint of the profile, stage by stage, until a stage fails or `limit_s` is over.

    Samples are read while `reading` is held, so that two endpoints do not disturb each other's figures; equal seeds
    select equal samples.
    """
    return _EndpointProbe(
        profile, credentials, kind, StepRunner(kind, limit_s, on_step), reading=reading, seed=seed
    ).run()


class _EndpointProbe:
    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource | None,
        kind: EndpointKind,
        steps: StepRunner,
        *,
        reading: threading.Lock | None,
        seed: int,
    ) -> None:
        self._profile = profile
        self._kind = kind
        self._steps = steps
        self._reading = reading or threading.Lock()
        self._seed = seed
        self._unsigned = NO_CREDENTIALS if credentials is None else ""
        self._store = ObjectStore(
            profile, credentials or _no_credentials, kind, timeout_s=_REQUEST_LIMIT_S, retry=NO_RETRY
        )
        self._host = HostProbe(profile.bucket, self._store.endpoint)
        self._samples: list[ObjectSummary] = []
        self._skew_s: float | None = None

    def run(self) -> EndpointReport:
        work: dict[ProbeStage, tuple[float, Callable[[], ProbeResult]]] = {
            ProbeStage.DNS: (_CONNECT_LIMIT_S, self._host.resolve),
            ProbeStage.TCP: (_CONNECT_LIMIT_S + 0.5, lambda: self._host.connect(_CONNECT_LIMIT_S)),
            ProbeStage.TLS: (_CONNECT_LIMIT_S + 0.5, lambda: self._host.handshake(_CONNECT_LIMIT_S)),
            ProbeStage.SIGNED: (_REQUEST_LIMIT_S + 0.5, self._sign),
            ProbeStage.LIST: (_REQUEST_LIMIT_S + 0.5, self._list),
            ProbeStage.READ: (_READ_LIMIT_S, self._read),
            ProbeStage.REREAD: (_READ_LIMIT_S, self._read),
        }
        stopped = ""
        for stage in stages(self._profile, self._kind):
            limit_s, step = work[stage]
            reads = stage in {ProbeStage.READ, ProbeStage.REREAD}
            if stage is ProbeStage.SIGNED and not stopped:
                stopped = self._unsigned
            if stopped:
                self._steps.skip(stage, stopped)
            elif reads and not self._samples:
                self._steps.skip(stage, "no samples")
            else:
                # The wait for the other endpoint's reading is no part of the step and of its limit.
                with self._reading if reads else contextlib.nullcontext():
                    passed = self._steps.run(stage, limit_s, step)
                stopped = "" if passed else f"{stage} failed"
        self._store.close()
        return EndpointReport(
            kind=self._kind,
            endpoint=self._store.endpoint,
            host=self._host.info,
            steps=tuple(self._steps.done),
            skew_s=self._skew_s,
            proxy=proxy_note(request_url(self._profile.bucket, self._store.endpoint)),
        )

    def _sign(self) -> str | ProbeWarning:
        """HEAD of the manifest: a signed request that every training key may send and the accelerator accepts."""
        key = f"{self._profile.dataset_prefix}/{MANIFEST_NAME}"

        def request() -> None:
            sent = time.time()
            try:
                headers = self._store.sdk.head_object(key).headers
            except OssError as error:
                self._note_skew(error.headers, sent)
                raise
            self._note_skew(headers, sent)

        try:
            self._store.call(f"reading the metadata of {self._store.uri(key)}", request)
        except StorageError as error:
            if not error.no_such_object:
                raise
            found = "no manifest"
        else:
            found = "manifest found"
        problem = misuse(self._kind, self._profile.endpoint(self._kind) or "")
        if not problem and self._host.info.kind is HostKind.TRANSFER_ACCELERATION:
            problem = f"It is transfer acceleration: {self._host.info.note}."
        if problem:
            likely = likely_endpoint(self._kind, self._profile.region)
            return ProbeWarning(
                f"It answers, but: {problem}", remedy=f"Use the {self._kind} endpoint, such as {likely}"
            )
        return found

    def _note_skew(self, headers: Mapping[str, str], sent: float) -> None:
        text = headers.get("Date") or headers.get("date")
        if text:
            # OSS's times are whole seconds: the middle of the request is compared with the middle of that second.
            self._skew_s = (sent + time.time()) / 2 - (parsedate_to_datetime(text).timestamp() + 0.5)

    def _list(self) -> str | ProbeWarning:
        below = f"{self._profile.dataset_prefix}/"
        page = self._store.list_page(below, delimiter="")
        found = [item for item in page.objects if item.size and not item.key.endswith("/" + MANIFEST_NAME)]
        readable = [item for item in found if item.readable]
        self._samples = random.Random(self._seed).sample(readable, min(SAMPLES, len(readable)))  # noqa: S311
        if not found:
            return ProbeWarning(
                f"{self._store.uri(below)} is empty.",
                remedy="Upload a dataset: ossconsole upload SRC, or 3 in the console.",
            )
        return counted(f"{len(found)}{'+' if page.next_token else ''}", "object")

    def _read(self) -> Figures:
        times: list[float] = []
        size = 0
        began = time.perf_counter()
        for sample in self._samples:
            start = time.perf_counter()
            size += len(self._store.get_range(sample.key, 0, min(sample.size, SAMPLE_BYTES)))
            times.append(time.perf_counter() - start)
            if time.perf_counter() - began > _READ_BUDGET_S:
                break
        return _figures(times, size)


def _no_credentials() -> Credentials:
    raise NoCredentialsError([])  # never called: no signed request is made without them


def _figures(times: Sequence[float], size: int) -> Figures:
    ordered = sorted(times)
    return Figures(
        samples=len(ordered),
        bytes=size,
        p50_ms=1000 * ordered[len(ordered) // 2],
        p95_ms=1000 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        mb_per_s=size / sum(ordered) / 1e6,
    )
