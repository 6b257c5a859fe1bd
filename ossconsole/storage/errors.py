"""What went wrong at OSS, in words: the operation, the object, OSS's code and request id, and the remedy."""

from __future__ import annotations

import email.utils
import math
import time
from typing import TYPE_CHECKING

from ossconsole.config.errors import ConsoleError

if TYPE_CHECKING:
    from oss2.exceptions import OssError

_REMEDIES = {
    "SignatureDoesNotMatch": "The AccessKey secret is wrong: check it on the Setup screen or in OSS_ACCESS_KEY_SECRET.",
    "InvalidAccessKeyId": "The AccessKey ID is not known: check it on the Setup screen or in OSS_ACCESS_KEY_ID.",
    "AccessDenied": "Give this key the permission in RAM, or use another key.",
    "RequestTimeTooSkewed": "Set this machine's clock (for example `timedatectl set-ntp true`).",
    "SecurityTokenExpired": "The temporary credentials have ended: fetch new ones.",
    "InvalidSecurityToken": "The security token does not belong to this key: fetch new temporary credentials.",
    "NoSuchBucket": "Check the bucket's name and region on the Setup screen.",
    "NoSuchKey": "Refresh the listing: the object is gone or was never there.",
    "InvalidObjectState": "The object is archived: restore it first.",
    "DataAcceleratorQuotaFrozen": "The size can be changed once an hour: wait, or change the paths alone.",
    "DataAcceleratorAvailableZoneNotSupported": "Choose a zone of the bucket's region that has accelerators.",
    "TooManyAccelerationPolicyPaths": "Name fewer paths, or accelerate the whole bucket.",
    "InvalidArgument": "Check the region on the Setup screen: requests are signed for it.",
}
_EC_REMEDIES = {
    "0003-00001403": "The bucket is in another region: correct region and endpoints on the Setup screen.",
}
_THROTTLED = "OSS is throttling: wait, or lower the parallelism."
_UNREACHABLE = (
    "Check the endpoint on the Setup screen; "
    "internal and accelerated endpoints answer only inside the region's internal network."
)
_THROTTLING = frozenset({429, 503})
_RETRY = "Try again; if it stays, give OSS support the request id."

_QOS_DELAY_HEADER = "x-oss-qos-delay-time"


class StorageError(ConsoleError):
    """A request that OSS refused or that never got an answer.

    `status` is the HTTP status (0 when there was no answer), `code` OSS's error code ("" when there was no answer),
    `ec` its finer code, `request_id` what OSS support asks for. `delay_s` is how long OSS asked to wait. `action` is
    what the request was for, such as `reading oss://bucket/key`.
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
        """Whether OSS takes the request later, without anything being wrong with it."""
        return self.status in _THROTTLING


def translate(error: OssError, action: str, endpoint: str) -> StorageError:
    """The StorageError for an exception of oss2. `action` reads like `reading oss://bucket/key`."""
    from oss2 import exceptions

    if isinstance(error, exceptions.RequestError):
        return StorageError(
            f"No answer from {endpoint} while {action}: {_cause(error.exception)}.",
            remedy=_UNREACHABLE,
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
    """The StorageError for a reply that is not what OSS sends: cut short, or from something that is not OSS."""
    return StorageError(
        f"{endpoint} gave a reply that cannot be read while {action} ({type(error).__name__}).",
        remedy="Check that the endpoint is OSS's and that no proxy stands in between; then try again.",
        retriable=True,
        action=action,
    )


def _delay_s(error: OssError) -> float:
    """The wait OSS asks for, seconds: in milliseconds in its own header, else in HTTP's Retry-After."""
    headers = {name.lower(): value for name, value in error.headers.items()}
    try:
        if _QOS_DELAY_HEADER in headers:
            delay = float(headers[_QOS_DELAY_HEADER]) / 1000
        else:
            delay = _retry_after_s(headers.get("retry-after", "0"))
    except (ValueError, OverflowError):  # nonsense
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
