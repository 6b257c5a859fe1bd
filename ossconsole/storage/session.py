"""A session for oss2 that writes small objects straight through urllib3.

requests costs more processor time per object than reading, resizing and checking it; for a hundred thousand samples
that is what the machine would be busy with. Certificates and pooling are the same as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import oss2
import urllib3
from oss2.exceptions import RequestError
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.exceptions import HTTPError


class WriteSession:
    """What oss2.Session is to a Bucket, for requests whose body is bytes and whose answer is short.

    It knows nothing of proxies and ~/.netrc: internal endpoints have none.
    """

    def __init__(self, pool_size: int) -> None:
        self._pools = urllib3.PoolManager(maxsize=pool_size, ca_certs=DEFAULT_CA_BUNDLE_PATH)

    def do_request(self, request: Any, timeout: float) -> _Answer:
        """Sends an oss2 request. Raises oss2's RequestError when no answer came."""
        origin, target = _split(request.url)
        if request.params:
            target = f"{target}?{urlencode(request.params)}"
        headers = {name: value for name, value in request.headers.items() if value is not None}
        try:
            # From the pool of the origin: the manager would parse and encode the whole address once more.
            answer = self._pools.connection_from_url(origin).urlopen(
                request.method,
                target,
                body=request.data,
                headers={"Accept-Encoding": "identity", **headers},
                timeout=timeout,
                retries=False,
                redirect=False,
            )
        except HTTPError as error:
            raise RequestError(error) from error
        return _Answer(answer)

    def close(self) -> None:
        self._pools.clear()


def _split(url: str) -> tuple[str, str]:
    """Origin and target of an address that oss2 has encoded already."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", f"/{path}"


class _Answer:
    """What oss2.http.Response is; the body has been read."""

    def __init__(self, answer: urllib3.BaseHTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.request_id = answer.headers.get("x-oss-request-id", "")
        self._body = answer.data

    def read(self, amount: int | None = None) -> bytes:
        """The next `amount` bytes, all that is left without it."""
        amount = len(self._body) if amount is None else amount
        read, self._body = self._body[:amount], self._body[amount:]
        return read

    def __iter__(self) -> Iterator[bytes]:
        yield self.read()


def bucket_for_writing(bucket: oss2.Bucket, session: WriteSession) -> oss2.Bucket:
    """The same bucket through `session`, without oss2's CRC64: its tables are built anew for every object."""
    return oss2.Bucket(
        bucket.auth,
        bucket.endpoint,
        bucket.bucket_name,
        session=session,
        connect_timeout=bucket.timeout,
        region=bucket.region,
        enable_crc=False,
    )
