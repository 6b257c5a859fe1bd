"""Replies of the service: errors with their status, code and EC, and the building of XML documents."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from html import escape
from urllib.parse import quote

# code: (status, EC, message), from the service's published error tables. An EC is empty where none is published.
_CODES: dict[str, tuple[int, str, str]] = {
    "AccessDenied": (403, "0003-00000001", "You have no right to access this object because of bucket acl."),
    "BadRequest": (400, "", "The request is not valid HTTP for this service."),
    "BucketAlreadyExists": (409, "0015-00000104", "The requested bucket name is not available."),
    "BucketNotEmpty": (409, "0015-00000301", "The bucket you tried to delete is not empty."),
    "DataAcceleratorAvailableZoneNotSupported": (400, "", "The zone is not supported by the data accelerator."),
    "DataAcceleratorNotFound": (404, "", "The data accelerator does not exist."),
    "DataAcceleratorQuotaFrozen": (403, "", "The quota was changed within the last hour and is frozen."),
    "EntityTooLarge": (400, "", "Your proposed upload exceeds the maximum allowed size."),
    "EntityTooSmall": (400, "", "Your proposed upload is smaller than the minimum allowed size."),
    "FileImmutable": (409, "", "The object is protected by the bucket's retention policy."),
    "FileAlreadyExists": (409, "", "The object you specified already exists and can not be overwritten."),
    "InternalError": (500, "", "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "0002-00000902", "The OSS Access Key Id you provided does not exist in our records."),
    "InvalidArgument": (400, "", "Invalid argument."),
    "InvalidBucketName": (400, "0015-00000001", "The specified bucket is not valid."),
    "InvalidCachePathPolicy": (400, "", "The cache policy of an acceleration path is not valid."),
    "InvalidDigest": (400, "", "The Content-MD5 you specified was invalid."),
    "InvalidObjectName": (400, "", "The specified object is not valid."),
    "InvalidObjectState": (403, "", "The operation is not valid for the object's state."),
    "InvalidPart": (400, "", "One or more of the specified parts could not be found."),
    "InvalidPartOrder": (400, "", "The list of parts was not in ascending order."),
    "InvalidQuota": (400, "", "The quota of the data accelerator is not valid."),
    "InvalidRange": (416, "", "The requested range cannot be satisfied."),
    "InvalidTargetType": (400, "", "The target of the symbolic link is a symbolic link itself."),
    "InvalidWORMConfiguration": (400, "", "The retention policy is not in the state that the operation needs."),
    "InvalidSecurityToken": (403, "0002-00000006", "The security token you provided is invalid."),
    "MalformedXML": (400, "", "The XML you provided was not well-formed or did not validate against our schema."),
    "MethodNotAllowed": (405, "", "The specified method is not allowed against this resource."),
    "MissingArgument": (400, "", "Missing Some Required Arguments."),
    "MissingContentLength": (411, "", "You must provide the Content-Length HTTP header."),
    "NoSuchBucket": (404, "0015-00000101", "The specified bucket does not exist."),
    "NoSuchConfiguration": (404, "", "The bucket has no such configuration."),
    "NoSuchKey": (404, "0026-00000001", "The specified key does not exist."),
    "NoSuchUpload": (
        404,
        "0042-00000002",
        "The specified upload does not exist. It may have been aborted or completed.",
    ),
    "NoSuchServerSideEncryptionRule": (404, "", "The bucket has no encryption rule."),
    "NoSuchVersion": (404, "", "The specified version does not exist."),
    "NoSuchWORMConfiguration": (404, "", "The bucket has no retention policy."),
    "NotImplemented": (501, "", "A header or parameter you provided implies functionality that is not implemented."),
    "ObjectNotAppendable": (409, "", "The object is not appendable."),
    "OperationNotSupported": (400, "", "The operation is not supported for this resource."),
    "PositionNotEqualToLength": (409, "0026-00000016", "Position is not equal to file length."),
    "PreconditionFailed": (412, "", "At least one of the pre-conditions you specified did not hold."),
    "QpsLimitExceeded": (429, "", "Please reduce your request rate."),
    "RequestTimeTooSkewed": (
        403,
        "0002-00000504",
        "The difference between the request time and the current time is too large.",
    ),
    "RestoreAlreadyInProgress": (409, "", "The restore operation is in progress."),
    "SecurityTokenExpired": (403, "0002-00000007", "The security token you provided has expired."),
    "ServiceUnavailable": (503, "", "Please reduce your request rate."),
    "SignatureDoesNotMatch": (
        403,
        "0002-00000040",
        "The request signature we calculated does not match the signature you provided. Check your key and method.",
    ),
    "SymlinkTargetNotExist": (404, "", "The target of the symbolic link does not exist."),
    "TooManyAccelerationPolicyPaths": (400, "", "There are too many acceleration paths."),
    "WORMConfigurationLocked": (403, "", "The retention policy is locked."),
    "TooManyBuckets": (400, "", "You have attempted to create more buckets than allowed."),
    "TotalQpsLimitExceeded": (503, "", "Please reduce your request rate."),
}


class OssError(Exception):
    """An error reply. `fields` become further elements of the XML, `headers` further headers."""

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        status: int = 0,
        ec: str = "",
        fields: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        known_status, known_ec, known_message = _CODES.get(code, (400, "", code))
        super().__init__(code)
        self.code = code
        self.status = status or known_status
        self.ec = ec or known_ec
        self.message = message or known_message
        self.fields = fields or {}
        self._headers = headers or {}

    def xml(self, request_id: str, host: str) -> bytes:
        """The error document."""
        common = elements(Code=self.code, Message=self.message, RequestId=request_id, HostId=host)
        return document("Error", [*common, *elements(**self.fields, EC=self.ec or None)])

    def headers(self, xml: bytes, *, head: bool) -> dict[str, str]:
        """The headers of the reply; a HEAD has no body, so the XML goes into `x-oss-err`."""
        headers = dict(self._headers)
        if self.ec:
            headers["x-oss-ec"] = self.ec
        if head:
            headers["x-oss-err"] = base64.b64encode(xml).decode()
        return headers


def invalid_argument(message: str, name: str = "", value: str = "", *, ec: str = "") -> OssError:
    """InvalidArgument, naming the argument where there is one."""
    fields = {"ArgumentName": name, "ArgumentValue": value} if name else {}
    return OssError("InvalidArgument", message, ec=ec, fields=fields)


_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
# Characters that XML 1.0 cannot represent. A client with such keys must send encoding-type=url; one that does not (the
# connector) must still get a well-formed reply, because it aborts its process on any other.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def text(value: str) -> str:
    """Escaped for element content; a carriage return survives the parser's line end rules."""
    return escape(_FORBIDDEN.sub("\ufffd", value), quote=False).replace("\r", "&#13;")


def element(name: str, value: str | float | bool) -> str:
    """`<name>value</name>`, escaped; booleans in lower case."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    return f"<{name}>{text(str(value))}</{name}>"


def elements(**fields: str | float | bool | None) -> list[str]:
    """One element for each field, in their order; a field that is None is left out."""
    return [element(name, value) for name, value in fields.items() if value is not None]


def parent(name: str, children: Iterable[str]) -> str:
    """An element with child elements."""
    return f"<{name}>{''.join(children)}</{name}>"


def document(name: str, children: Iterable[str]) -> bytes:
    """A whole XML document with the root `name`."""
    return f"{_DECLARATION}{parent(name, children)}".encode("utf-8", "replace")


def url(value: str) -> str:
    """Encoded as the service does for encoding-type=url: slashes kept."""
    return quote(value, safe="/")


def iso_time(timestamp: float) -> str:
    """`2024-01-01T00:00:00.000Z`, as in listings and errors; oss2 reads no other fraction."""
    return _iso_time(int(timestamp))


def http_time(timestamp: float) -> str:
    """`Mon, 01 Jan 2024 00:00:00 GMT`, as in headers."""
    return _http_time(int(timestamp))


# Objects written together share their second, so listings and headers format the same times repeatedly.
@lru_cache(maxsize=4096)
def _iso_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


@lru_cache(maxsize=4096)
def _http_time(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
