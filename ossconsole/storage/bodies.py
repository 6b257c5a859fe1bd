"""The bodies of GetObject replies, as they are stored.

oss2 reads through requests, which decodes an object that was stored with a Content-Encoding; but its length, its ranges
and its CRC64 are those of the stored bytes.
"""

from __future__ import annotations

from typing import Any

import fastcrc


def read_stored(result: Any, amount: int | None = None) -> bytes:
    """The next `amount` bytes of a GetObjectResult, b"" at the end; without `amount` all of them.

    Raises urllib3's HTTPError when the connection breaks off.
    """
    return bytes(result.resp.response.raw.read(amount, decode_content=False))


def read_whole(result: Any, uri: str) -> bytes:
    """The body of an object or a range. Raises InconsistentError where it has another length or, whole, CRC64."""
    from oss2.exceptions import InconsistentError  # late: the console's first paint needs the other function

    data = read_stored(result)
    # Some proxies rewrite replies without a length, and a range has the CRC64 of the whole object.
    if result.content_length is not None and len(data) != result.content_length:
        raise InconsistentError(f"{len(data)} of {result.content_length} bytes of {uri} arrived", result.request_id)
    is_whole = result.status == 200
    if is_whole and result.server_crc is not None and fastcrc.crc64.xz(data) != result.server_crc:
        raise InconsistentError(f"{uri} has another CRC64", result.request_id)
    return data
