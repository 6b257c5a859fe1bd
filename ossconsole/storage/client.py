"""ObjectStore: one bucket through one endpoint, with checksums, retries and translated errors.

Its HTTP session writes small objects straight through http.client: requests and urllib3 cost more processor time per
object than reading, resizing and checking it. Certificates are those of requests.
"""

from __future__ import annotations

import copy
import functools
import http.client
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from xml.etree.ElementTree import ParseError
from xml.parsers.expat import ExpatError

import fastcrc
import msgspec
import oss2
import requests
import urllib3
from oss2.exceptions import OssError, RequestError
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from ossconsole.config.credentials import Credentials, CredentialSource
from ossconsole.config.endpoints import EndpointKind, request_url, sdk_endpoint
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.config.proxies import ca_bundle, mask_proxy, proxies_for, proxy_of
from ossconsole.config.text import counted
from ossconsole.storage.bodies import read_whole
from ossconsole.storage.copying import copy_object
from ossconsole.storage.errors import NO_CREDENTIALS, StorageError, malformed, translate
from ossconsole.storage.objects import BucketSummary, ListPage, ObjectInfo, ObjectSummary, PutResult, read_page
from ossconsole.storage.retry import DEFAULT_RETRY, Pause, RetryPolicy, Wait, WaitNotes


class WriteSession:
    """An oss2.Session for requests whose body is bytes and whose answer is short.

    It knows no proxies: requests through one take oss2's own session.
    """

    def __init__(self) -> None:
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}

    def do_request(self, request: Any, timeout: float) -> _Answer:
        """Sends an oss2 request. Raises oss2's RequestError when there is no answer."""
        origin, target = _split(request.url)
        if request.params:
            target = f"{target}?{urlencode(request.params)}"
        headers = {name: value for name, value in request.headers.items() if value is not None}
        idle = self._idle.setdefault(origin, [])
        connection = self._take(idle) or self._connection(origin, timeout)
        try:
            connection.request(request.method, target, request.data, headers)
            response = connection.getresponse()
            answer = _Answer(response, response.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise RequestError(error) from error
        except BaseException:
            connection.close()
            raise
        idle.append(connection)
        return answer

    def close(self) -> None:
        """Closes the idle connections."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    @staticmethod
    def _take(idle: list[http.client.HTTPConnection]) -> http.client.HTTPConnection | None:
        """The connection used last that the server has not closed."""
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if connection.sock is None or not _has_data(connection.sock):
                return connection
            connection.close()

    def _connection(self, origin: str, timeout: float) -> http.client.HTTPConnection:
        scheme, _, host = origin.partition("://")
        if scheme == "https":
            return http.client.HTTPSConnection(host, timeout=timeout, context=self._certificates)
        return http.client.HTTPConnection(host, timeout=timeout)

    @functools.cached_property
    def _certificates(self) -> ssl.SSLContext:
        return tls_context()


def tls_context() -> ssl.SSLContext:
    """Trusts the certificates that requests trusts. Raises SettingsError where they cannot be read."""
    bundle = ca_bundle() or DEFAULT_CA_BUNDLE_PATH
    folder = Path(bundle).is_dir()
    try:
        return ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
    except OSError as error:
        raise SettingsError(
            f"{bundle} has no certificates that can be read: {error.strerror or error}.",
            remedy="Correct the variable that names it, or unset it.",
        ) from error


def _has_data(connection: socket.socket) -> bool:
    """Whether an idle connection can be read from: the server has closed it, or sent what nobody requested."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(0))


def _split(url: str) -> tuple[str, str]:
    """Origin and target of a URL that oss2 has encoded already."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", f"/{path}"


class _Answer:
    """Stands for oss2.http.Response; the body has been read."""

    def __init__(self, response: http.client.HTTPResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.request_id = response.headers.get("x-oss-request-id", "")
        self._body = body

    def read(self, amount: int | None = None) -> bytes:
        """The next `amount` bytes; without it the rest."""
        amount = len(self._body) if amount is None else amount
        read, self._body = self._body[:amount], self._body[amount:]
        return read

    def __iter__(self) -> Iterator[bytes]:
        yield self.read()


def bucket_for_writing(bucket: oss2.Bucket, session: WriteSession | oss2.Session) -> oss2.Bucket:
    """The same bucket through `session`, without oss2's CRC64, which builds its tables for every object."""
    return oss2.Bucket(
        bucket.auth,
        bucket.endpoint,
        bucket.bucket_name,
        session=session,
        connect_timeout=bucket.timeout,
        region=bucket.region,
        enable_crc=False,
    )


T = TypeVar("T")

# What oss2 raises for a reply that is not OSS's: bad XML, missing elements, an unknown encoding.
_MALFORMED = (ParseError, ExpatError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)
_METADATA_PREFIX = "x-oss-meta-"
LIST_PAGE_SIZE = 1000  # the limit of ListObjectsV2
DELETE_BATCH_SIZE = 1000  # the limit of DeleteMultipleObjects


class ObjectStore:
    """The objects of a profile's bucket through one endpoint; safe to use from many threads.

    Every method raises StorageError with OSS's code and request id, after the retries of `retry`. `pause` spends the
    waits between them; what it raises ends the request. The default sleeps, and `waiting` describes the wait.
    """

    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource,
        kind: EndpointKind = EndpointKind.STANDARD,
        *,
        timeout_s: float = 10.0,
        retry: RetryPolicy = DEFAULT_RETRY,
        pause: Pause | None = None,
        pool_size: int = 32,
    ) -> None:
        endpoint = profile.endpoint(kind)
        if endpoint is None:
            raise SettingsError(
                f"Profile {profile.name!r} has no {kind} endpoint.", remedy="Add one on the Setup screen."
            )
        self.profile = profile
        self.kind = kind
        self.endpoint = endpoint
        self._credentials = credentials
        self._retry = retry
        self._waits = WaitNotes()
        self._pause = pause or self._sleep
        self._session = oss2.Session(pool_size=pool_size)
        # ~/.netrc holds no OSS keys. The proxies are those of the environment, but not for hosts inside the VPC.
        self._session.session.trust_env = False
        url = request_url(profile.bucket, endpoint)
        self._session.session.proxies = proxies_for(url)
        self._proxy = proxy_of(url)
        if url.startswith("https:"):
            self._session.session.verify = ca_bundle() or True
        auth = oss2.ProviderAuthV4(_OssCredentials(credentials))
        self._sdk_endpoint = sdk_endpoint(profile.bucket, endpoint)
        self._service = functools.partial(
            oss2.Service,
            auth,
            self._sdk_endpoint,
            session=self._session,
            connect_timeout=timeout_s,
            region=profile.region,
        )
        self._bucket = oss2.Bucket(
            auth,
            self._sdk_endpoint,
            profile.bucket,
            session=self._session,
            connect_timeout=timeout_s,
            region=profile.region,
        )
        self._write_session = WriteSession()
        self._writer = bucket_for_writing(self._bucket, self._session if self._proxy else self._write_session)

    def for_bucket(self, bucket: str) -> ObjectStore:
        """Another bucket of the same account and region, reached through the same endpoint."""
        profile = msgspec.structs.replace(self.profile, bucket=bucket, standard_endpoint=self._sdk_endpoint)
        return ObjectStore(profile, self._credentials, retry=self._retry, pause=self._pause)

    @property
    def waiting(self) -> str:
        """Which request waits to be sent again, and why; "" while none does."""
        return self._waits.text

    def pausing(self, pause: Pause) -> ObjectStore:
        """This store with another `pause`, on the same connections; closing either closes both."""
        other = copy.copy(self)
        other._pause = pause  # noqa: SLF001 - of the same class
        return other

    def close(self) -> None:
        """Closes the pooled connections."""
        self._session.session.close()
        self._write_session.close()

    @property
    def sdk(self) -> oss2.Bucket:
        """oss2's own bucket, for the modules of this layer; wrap each of its requests in `call`."""
        return self._bucket

    @property
    def lean_sdk(self) -> oss2.Bucket:
        """`sdk` on the session of the writes, for small bodies: less than half the processor time per request.

        A body arrives whole and as it is stored, whatever its Content-Encoding.
        """
        return self._writer

    def uri(self, key: str = "") -> str:
        """`oss://bucket/key`, for messages."""
        return f"oss://{self.profile.bucket}/{key}"

    def url(self, key: str) -> str:
        """The object's plain URL, which works only where the object is public."""
        parts = urlsplit(self.endpoint)
        return f"{parts.scheme}://{self.profile.bucket}.{parts.netloc}/{quote(key, safe='/~')}"

    def credentials_end(self) -> datetime | None:
        """When the credentials in use expire, in UTC; None for a lasting key. May fetch them. Raises ConsoleError."""
        return self._credentials().expiration

    # Buckets

    def list_buckets(self) -> list[BucketSummary]:
        """All buckets of the account; often denied to a key made for one bucket."""

        def request() -> list[BucketSummary]:
            return [
                BucketSummary(
                    name=bucket.name,
                    region=bucket.location.removeprefix("oss-"),
                    storage_class=bucket.storage_class or "",
                    created=bucket.creation_date,
                )
                for bucket in oss2.BucketIterator(self._service(), max_retries=1)
            ]

        return self.call("listing the buckets of the account", request)

    def create_bucket(self) -> None:
        """Creates the profile's bucket."""
        self.call(f"creating {self.uri()}", self._bucket.create_bucket)

    # Listing

    def list_page(
        self,
        prefix: str,
        *,
        delimiter: str = "/",
        token: str = "",
        start_after: str = "",
        max_keys: int = LIST_PAGE_SIZE,
    ) -> ListPage:
        """One page below `prefix`; with delimiter "" every object below it, however deep."""

        parameters = {
            "list-type": "2",
            "prefix": prefix,
            "delimiter": delimiter,
            "continuation-token": token,
            "start-after": start_after,
            "max-keys": str(max_keys),
            "encoding-type": "url",
        }

        def request() -> ListPage:
            reply: Any = self._bucket._do("GET", self.profile.bucket, "", params=parameters)  # noqa: SLF001
            return read_page(reply)

        return self.call(f"listing {self.uri(prefix)}", request)

    def list_pages(self, prefix: str, *, delimiter: str = "/", start_after: str = "") -> Iterator[ListPage]:
        """The pages below `prefix`, as of `list_page`, from the first key after `start_after` on."""
        token = ""
        while True:
            page = self.list_page(prefix, delimiter=delimiter, token=token, start_after=start_after)
            yield page
            token, start_after = page.next_token, ""
            if not token:
                return

    def list_all(self, prefix: str) -> Iterator[ObjectSummary]:
        """Every object below `prefix`, page by page."""
        for page in self.list_pages(prefix, delimiter=""):
            yield from page.objects

    # Objects

    def head(self, key: str) -> ObjectInfo:
        """The object's size, time, checksum, class, type and metadata."""

        def request() -> ObjectInfo:
            result = self._bucket.head_object(key)
            headers = {name.lower(): value for name, value in result.headers.items()}
            return ObjectInfo(
                key=key,
                size=result.content_length,
                modified=result.last_modified,
                etag=result.etag,
                crc64=result.server_crc,
                storage_class=headers.get("x-oss-storage-class", "Standard"),
                content_type=headers.get("content-type", ""),
                object_type=headers.get("x-oss-object-type", ""),
                metadata={
                    name.removeprefix(_METADATA_PREFIX): value
                    for name, value in headers.items()
                    if name.startswith(_METADATA_PREFIX)
                },
                headers=headers,
            )

        return self.call(f"reading the metadata of {self.uri(key)}", request)

    def exists(self, key: str) -> bool:
        """Whether the bucket has the object."""
        return self.call(f"checking for {self.uri(key)}", lambda: bool(self._bucket.object_exists(key)))

    def get(self, key: str) -> bytes:
        """The whole object, verified by its CRC64."""

        def request() -> bytes:
            return read_whole(self._bucket.get_object(key), self.uri(key))

        return self.call(f"reading {self.uri(key)}", request)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from offset `start`; b"" when the object ends before it."""

        def request() -> bytes:
            result = self._bucket.get_object(
                key, byte_range=(start, start + length - 1), headers={"x-oss-range-behavior": "standard"}
            )
            return read_whole(result, self.uri(key))

        try:
            return self.call(f"reading {self.uri(key)}", request)
        except StorageError as error:
            if error.status == 416:
                return b""
            raise

    def put(
        self, key: str, data: bytes, *, content_type: str = "", metadata: Mapping[str, str] | None = None
    ) -> PutResult:
        """Writes the object and compares OSS's CRC64 with that of the bytes sent."""
        headers = {f"{_METADATA_PREFIX}{name}": value for name, value in (metadata or {}).items()}
        if content_type:
            headers["Content-Type"] = content_type

        def request() -> PutResult:
            result = self._writer.put_object(key, data, headers=headers)
            if result.crc is not None and result.crc != fastcrc.crc64.xz(data):
                raise oss2.exceptions.InconsistentError(
                    f"{self.uri(key)} arrived with another CRC64", result.request_id
                )
            return PutResult(etag=result.etag, crc64=result.crc, request_id=result.request_id)

        return self.call(f"writing {self.uri(key)}", request)

    def check_write(self, key: str) -> None:
        """Raises StorageError where the object cannot be written. Leaves no object: starts an upload and aborts it."""

        def request() -> None:
            begun = self._bucket.init_multipart_upload(key)
            try:
                self._bucket.upload_part(key, begun.upload_id, 1, b"?")
            finally:
                self._bucket.abort_multipart_upload(key, begun.upload_id)

        self.call(f"writing {self.uri(key)}", request)

    def copy(self, source: str, target: str) -> None:
        """Copies inside the bucket, on the server, all but the object's own ACL; an existing `target` is replaced."""
        copy_object(self, self.head(source).summary(), target, replace=True)

    def delete(self, key: str) -> None:
        """Deletes the object; as in OSS it is not an error when it does not exist."""
        self.call(f"deleting {self.uri(key)}", lambda: self._bucket.delete_object(key))

    def delete_many(self, keys: Iterable[str]) -> int:
        """Deletes the objects in batches; returns their number."""
        waiting = list(keys)
        for first in range(0, len(waiting), DELETE_BATCH_SIZE):
            batch = waiting[first : first + DELETE_BATCH_SIZE]
            self.call(
                f"deleting {counted(len(batch), 'object')} of {self.uri()}",
                functools.partial(self._bucket.batch_delete_objects, batch),
            )
        return len(waiting)

    # Errors and retries

    def call(self, action: str, request: Callable[[], T]) -> T:
        """Runs one request of oss2 with retries. `action` reads like `reading oss://bucket/key`."""

        def attempt() -> T:
            try:
                return request()
            except OssError as error:
                raise translate(error, action, self._label, proxied=bool(self._proxy)) from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                # Of a body cut short: oss2 translates only those of sending.
                raise translate(RequestError(error), action, self._label, proxied=bool(self._proxy)) from error
            except _MALFORMED as error:
                raise malformed(error, action, self._label) from error

        return self._retry.run(attempt, self._pause)

    def _sleep(self, wait: Wait) -> None:
        with self._waits.noted(wait):
            time.sleep(wait.seconds)

    @property
    def _label(self) -> str:
        through = f" through the proxy {mask_proxy(self._proxy)}" if self._proxy else ""
        return f"the {self.kind} endpoint {self.endpoint}{through}"


class _OssCredentials:
    """A credentials provider for oss2, which calls it for each request."""

    def __init__(self, source: CredentialSource) -> None:
        self._source = source

    def get_credentials(self) -> Any:
        try:
            found: Credentials = self._source()
        except ConsoleError as error:
            raise StorageError(error.message, remedy=error.remedy, code=NO_CREDENTIALS) from error
        token = found.security_token.reveal() if found.security_token else None
        return oss2.credentials.Credentials(found.access_key_id, found.access_key_secret.reveal(), token)
