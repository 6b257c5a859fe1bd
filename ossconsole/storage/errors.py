"""StorageError: a failed request to OSS, with the operation, the object, OSS's code and request id, and a remedy."""

from __future__ import annotations

import email.utils
import math
import time
from typing import TYPE_CHECKING

from ossconsole.config.errors import ConsoleError

if TYPE_CHECKING:
    from oss2.exceptions import OssError

ALREADY_EXISTS = (
    "Use another name, or delete the object first: the request, or an overwrite rule of the bucket, keeps what exists."
)
NO_CREDENTIALS = "NoCredentials"
"""The code of a request that was not sent, because its source had no credentials for it."""

_REMEDIES = {
    "SignatureDoesNotMatch": "The AccessKey secret is wrong: check it on the Setup screen or in OSS_ACCESS_KEY_SECRET.",
    "InvalidAccessKeyId": "The AccessKey ID does not exist: check it on the Setup screen or in OSS_ACCESS_KEY_ID.",
    "AccessDenied": "Give this key the permission in RAM, or use another key.",
    "RequestTimeTooSkewed": "Set this machine's clock (for example `timedatectl set-ntp true`).",
    "SecurityTokenExpired": "The temporary credentials have expired: fetch new ones.",
    "InvalidSecurityToken": "The security token does not belong to this key: fetch new temporary credentials.",
    "NoSuchBucket": "Check the bucket's name and region on the Setup screen.",
    "NoSuchKey": "Refresh the listing: the object does not exist.",
    "InvalidObjectState": "The object is archived: restore it first (R on Browse), which takes a minute to two days.",
    "FileAlreadyExists": ALREADY_EXISTS,
    "FileImmutable": "A retention policy (WORM) of the bucket protects the object: it can be changed after its period.",
    "RestoreAlreadyInProgress": "Wait for the restore, or request one of a higher priority.",
    "SymlinkTargetNotExist": "The symbolic link names an object that does not exist: upload it, or delete the link.",
    "InvalidTargetType": "The symbolic link names another symbolic link, which OSS does not follow.",
    "DataAcceleratorQuotaFrozen": "The size can be changed once an hour: wait, or change only the paths.",
    "DataAcceleratorAvailableZoneNotSupported": "Select a zone of the bucket's region that has accelerators.",
    "TooManyAccelerationPolicyPaths": "Enter fewer paths, or accelerate the whole bucket.",
    "DataAcceleratorNotFound": "Create an accelerator on the Setup screen.",
    "NoSuchConfiguration": "Read the state again: the bucket does not have this configuration.",
    "InvalidCachePathPolicy": "Use write-back (cached on read) or sync-warmup (cached on write, too).",
    "InvalidQuota": "Enter another size: documented are 50 GB to 204,800 GB, in some regions less.",
    "InvalidArgument": "Check the region on the Setup screen: requests are signed for it.",
}
_EC_REMEDIES = {
    # https://www.alibabacloud.com/help/en/oss/support/0003-00000702
    "0003-00000702": "In this bucket the requester pays, which ossconsole never agrees to: use a key of its owner.",
    "0003-00001403": "The bucket is in another region: correct region and endpoints on the Setup screen.",
    "0024-00000801": "The size is beyond the largest that this region supports: enter a smaller one.",
}
_THROTTLED = "OSS is throttling: wait, or lower the parallelism."
_UNREACHABLE = (
    "Check the endpoint on the Setup screen; "
    "internal and accelerated endpoints answer only inside the region's internal network."
)
_PROXY_UNREACHABLE = "Check HTTPS_PROXY, or add the host to NO_PROXY."
_NOT_OSS = "Check the endpoint's spelling, and this machine's proxy and firewall: OSS's answers have a request ID."
_THROTTLING = frozenset({429, 503})
_RETRY = "Try again; if the problem persists, send the request ID to OSS support."

_QOS_DELAY_HEADER = "x-oss-qos-delay-time"


class StorageError(ConsoleError):
    """A request that OSS refused or did not answer.

    `status` is the HTTP status (0 without an answer), `code` OSS's error code ("" without an answer), `ec` its finer
    code, `request_id` the ID that OSS support needs. `delay_s` is the wait that OSS requested. `action` describes the
    request, such as `reading oss://bucket/key`.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        status: int = 0,
        code: str = "",
        ec: str = "",
        request_id: str = "",
        retriable: bool = False,
        delay_s: float = 0.0,
        action: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.code = code
        self.ec = ec
        self.request_id = request_id
        self.retriable = retriable
        self.delay_s = delay_s
        self.action = action

    @property
    def throttled(self) -> bool:
        """Whether OSS will accept the same request later."""
        return self.status in _THROTTLING

    @property
    def no_such_object(self) -> bool:
        """Whether the bucket exists, and the object does not."""
        return self.status == 404 and self.code != "NoSuchBucket"


def translate(error: OssError, action: str, endpoint: str, *, proxied: bool = False) -> StorageError:
    """The StorageError for an exception of oss2. `action` reads like `reading oss://bucket/key`."""
    from oss2 import exceptions

    if isinstance(error, exceptions.RequestError):
        return StorageError(
            f"No answer from {endpoint} while {action}: {_cause(error.exception)}.",
            remedy=_PROXY_UNREACHABLE if proxied else _UNREACHABLE,
            retriable=True,
            action=action,
        )
    if isinstance(error, exceptions.InconsistentError):
        return StorageError(
            f"The bytes differ from their checksum while {action} at {endpoint}: {error.body}.",
            remedy=_RETRY,
            request_id=error.request_id or "",
            retriable=True,
            action=action,
        )
    if isinstance(error, exceptions.ClientError):
        return StorageError(f"The request could not be made while {action} at {endpoint}: {error.body}.")
    code = error.code or ""
    if not code and not error.request_id:  # OSS sends both
        return StorageError(
            f"Another server than OSS answered HTTP {error.status} while {action} at {endpoint}.",
            remedy=_NOT_OSS,
            status=error.status,
            retriable=error.status in _THROTTLING or error.status >= 500,
            delay_s=_delay_s(error),
            action=action,
        )
    throttled = error.status in _THROTTLING
    text = error.message or "no message"
    details = ", ".join(
        part
        for part in (
            f"HTTP {error.status}",
            f"EC {error.ec}" if error.ec else "",
            f"request id {error.request_id}" if error.request_id else "",
        )
        if part
    )
    return StorageError(
        f"{code or 'An error'} while {action} at {endpoint}: {text.rstrip('.')} ({details}).",
        remedy=_THROTTLED if throttled else _EC_REMEDIES.get(error.ec or "", _REMEDIES.get(code, _RETRY)),
        status=error.status,
        code=code,
        ec=error.ec or "",
        request_id=error.request_id or "",
        retriable=throttled or (error.status >= 500 and error.status != 501),
        delay_s=_delay_s(error),
        action=action,
    )


def malformed(error: Exception, action: str, endpoint: str) -> StorageError:
    """The StorageError for a reply that OSS does not send: cut short, or from another server."""
    return StorageError(
        f"{endpoint} sent a reply that cannot be read while {action} ({type(error).__name__}).",
        remedy="Check that the endpoint is OSS's and that no proxy changes its replies; then try again.",
        retriable=True,
        action=action,
    )


def _delay_s(error: OssError) -> float:
    """The wait OSS requests, seconds: in milliseconds in its own header, else in HTTP's Retry-After."""
    headers = {name.lower(): value for name, value in error.headers.items()}
    try:
        if _QOS_DELAY_HEADER in headers:
            delay = float(headers[_QOS_DELAY_HEADER]) / 1000
        else:
            delay = _retry_after_s(headers.get("retry-after", "0"))
    except (ValueError, OverflowError):  # not a number
        return 0.0
    return delay if 0 <= delay < math.inf else 0.0


def _retry_after_s(text: str) -> float:
    """Seconds, or a date. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        return email.utils.parsedate_to_datetime(text).timestamp() - time.time()


def _cause(error: BaseException) -> str:
    """The innermost reason of a requests or urllib3 exception, without their nested object dumps."""
    from oss2.exceptions import OssError

    while True:
        reason = getattr(error, "reason", None)
        inner = reason if isinstance(reason, BaseException) else (error.__cause__ or error.__context__)
        # OSS's own refusal is of another request, which was being handled when this one was made.
        if inner is None or isinstance(inner, OssError | ConsoleError):
            break
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("object at 0x")[0].rstrip(". <") or type(error).__name__
