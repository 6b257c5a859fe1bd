"""Signature versions 4 (header and presigned URL) and 1 (likewise), checked as the service checks them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache

from ossconsole.sandbox.keys import AccessKey, KeyRing
from ossconsole.sandbox.replies import OssError, invalid_argument, iso_time
from ossconsole.sandbox.request import IncomingRequest, Resource, encode_path, encode_query, parse_time, whole_number

ALGORITHM = "OSS4-HMAC-SHA256"
MAX_SKEW_S = 900
_MAX_PRESIGN_S = 604_800
_REQUEST = "aliyun_v4_request"
_PAYLOAD = "UNSIGNED-PAYLOAD"
# The parameters that a version 1 signature covers, as oss2 2.19.1 and ali-oss sign them.
_V1_SIGNED_NAMES = """
    accessPoint accessPointPolicy acl append asyncFetch bucketArchiveDirectRead bucketInfo callback callback-var
    cleanRestoredObject cname comp continuation-token cors delete encryption endTime group httpsConfig inventory
    inventoryId lifecycle link live location logging metaQuery objectInfo objectMeta partNumber policy position
    publicAccessBlock qos qosInfo qosRequester redundancyTransition referer regionList replication replicationLocation
    replicationProgress requestPayment requesterQosInfo resourceGroup resourcePool resourcePoolBuckets resourcePoolInfo
    response-cache-control response-content-disposition response-content-encoding response-content-language
    response-content-type response-expires restore security-token sequential startTime stat status style styleName
    symlink tagging transferAcceleration uploadId uploads versionId versioning versions vod website worm wormExtend
    wormId x-oss-ac-forward-allow x-oss-ac-source-ip x-oss-ac-subnet-mask x-oss-ac-vpc-id x-oss-access-point-name
    x-oss-async-process x-oss-process x-oss-redundancy-transition-taskid x-oss-request-payer
    x-oss-target-redundancy-type x-oss-traffic-limit x-oss-write-get-object-response
"""
_V1_SIGNED = frozenset(_V1_SIGNED_NAMES.split())


@dataclass(frozen=True)
class _Claim:
    """The signature as the request states it; times in Unix seconds, `expires` None for a header signature."""

    access_key_id: str
    signature: str
    signed_at: float
    expires: float | None
    token: str
    date: str = ""
    scope: str = ""
    additional: str = ""


@dataclass(frozen=True)
class Caller:
    """The result of a check: the resource and the key that signed the request (None: anonymous)."""

    target: Resource
    key: AccessKey | None


class Verifier:
    """Checks requests against the keys and the region of one sandbox."""

    def __init__(self, keys: KeyRing, region: str) -> None:
        self._keys = keys
        self._region = region

    def check(self, request: IncomingRequest, candidates: Sequence[Resource], now: float) -> Caller:
        """The caller, and the resource that the signature confirms. Raises OssError as the service would."""
        authorization = request.headers.get("authorization", "")
        if authorization.startswith(ALGORITHM):
            return self._check_v4(request, candidates, _header_claim_v4(request, authorization), now)
        if request.query.get("x-oss-signature-version") == ALGORITHM:
            return self._check_v4(request, candidates, _presigned_claim_v4(request), now)
        if authorization.startswith("OSS "):
            return self._check_v1(request, candidates, _header_claim_v1(request, authorization), now)
        if "OSSAccessKeyId" in request.query:
            return self._check_v1(request, candidates, _presigned_claim_v1(request), now)
        if authorization:
            raise invalid_argument("The authorization header is not in a known form.", "Authorization", "")
        return Caller(candidates[0], None)

    def _check_v4(self, request: IncomingRequest, candidates: Sequence[Resource], claim: _Claim, now: float) -> Caller:
        key = self._key(claim, now)
        _check_time(claim, now)
        date, region, product, *_ = claim.scope.split("/")
        if region != self._region:
            raise invalid_argument(
                f"Invalid signing region in Authorization header: expected {self._region}.",
                "Credential",
                region,
                ec="0002-00000226",
            )
        signing_key = _signing_key(key.secret.reveal(), date, region, product)
        head, tail = request.method, _canonical_tail(request, claim.additional)
        to_sign = ""
        for target in candidates:
            canonical = f"{head}\n{encode_path(target.canonical)}\n{tail}".encode("utf-8", "surrogateescape")
            to_sign = f"{ALGORITHM}\n{claim.date}\n{claim.scope}\n{hashlib.sha256(canonical).hexdigest()}"
            found = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
            if hmac.compare_digest(found.encode(), claim.signature.encode("utf-8", "replace")):
                return Caller(target, key)
        raise _mismatch(claim, to_sign)

    def _check_v1(self, request: IncomingRequest, candidates: Sequence[Resource], claim: _Claim, now: float) -> Caller:
        key = self._key(claim, now)
        _check_time(claim, now)
        head, query = _head_v1(request, claim), _subresources_v1(request)
        to_sign = ""
        for target in candidates:
            to_sign = f"{head}{target.canonical}{query}"
            raw = to_sign.encode("utf-8", "surrogateescape")
            found = base64.b64encode(hmac.digest(key.secret.reveal().encode(), raw, "sha1"))
            if hmac.compare_digest(found, claim.signature.encode("utf-8", "replace")):
                return Caller(target, key)
        raise _mismatch(claim, to_sign)

    def _key(self, claim: _Claim, now: float) -> AccessKey:
        key = self._keys.get(claim.access_key_id)
        if key is None or (key.token is not None) != bool(claim.token):
            raise OssError("InvalidAccessKeyId", fields={"OSSAccessKeyId": claim.access_key_id})
        if key.token is not None and not hmac.compare_digest(key.token.reveal().encode(), claim.token.encode()):
            raise OssError("InvalidSecurityToken")
        if key.expires_at is not None and key.expires_at <= now:
            raise OssError("SecurityTokenExpired")
        return key


def _mismatch(claim: _Claim, to_sign: str) -> OssError:
    provided = {"OSSAccessKeyId": claim.access_key_id, "SignatureProvided": claim.signature}
    return OssError("SignatureDoesNotMatch", fields={**provided, "StringToSign": to_sign})


def _check_time(claim: _Claim, now: float) -> None:
    if claim.expires is not None:
        if now > claim.expires:
            raise OssError("AccessDenied", "Request has expired.", fields={"Expires": iso_time(claim.expires)})
        if claim.signed_at - now > MAX_SKEW_S:
            raise OssError("AccessDenied", "The request is not valid yet.")
    elif abs(now - claim.signed_at) > MAX_SKEW_S:
        fields = {
            "MaxAllowedSkewMilliseconds": str(MAX_SKEW_S * 1000),
            "RequestTime": iso_time(claim.signed_at),
            "ServerTime": iso_time(now),
        }
        raise OssError("RequestTimeTooSkewed", fields=fields)


def _header_claim_v4(request: IncomingRequest, authorization: str) -> _Claim:
    parts = (part.strip().partition("=") for part in authorization[len(ALGORITHM) :].split(","))
    fields = {name: value for name, _, value in parts}
    if "Credential" not in fields or "Signature" not in fields:
        raise invalid_argument("The authorization header lacks a field.", "Authorization", "", ec="0002-00000202")
    payload = request.headers.get("x-oss-content-sha256", _PAYLOAD)
    if payload != _PAYLOAD:
        raise invalid_argument(f"It must be {_PAYLOAD}.", "x-oss-content-sha256", payload, ec="0002-00000214")
    return _claim_v4(
        credential=fields["Credential"],
        signature=fields["Signature"],
        date=request.headers.get("x-oss-date", ""),
        additional=fields.get("AdditionalHeaders", ""),
        token=request.headers.get("x-oss-security-token", ""),
    )


def _presigned_claim_v4(request: IncomingRequest) -> _Claim:
    query = request.query
    missing = [name for name in ("credential", "signature", "date", "expires") if f"x-oss-{name}" not in query]
    if missing:
        raise invalid_argument("The URL lacks a parameter.", f"x-oss-{missing[0]}", "", ec="0002-00000202")
    seconds = query["x-oss-expires"]
    life_s = whole_number(seconds)
    if life_s is None or not 1 <= life_s <= _MAX_PRESIGN_S:
        raise invalid_argument("x-oss-expires must be 1 to 604800.", "x-oss-expires", seconds)
    return _claim_v4(
        credential=query["x-oss-credential"],
        signature=query["x-oss-signature"],
        date=query["x-oss-date"],
        additional=query.get("x-oss-additional-headers", ""),
        token=query.get("x-oss-security-token", ""),
        expires_s=life_s,
    )


def _claim_v4(
    *, credential: str, signature: str, date: str, additional: str, token: str, expires_s: int | None = None
) -> _Claim:
    access_key_id, _, scope = credential.partition("/")
    pieces = scope.split("/")
    if len(pieces) != 4 or pieces[2] != "oss" or pieces[3] != _REQUEST:
        raise invalid_argument("The credential is not valid.", "Credential", credential, ec="0002-00000213")
    try:
        signed_at = _parse_date(date)
    except ValueError as error:
        raise invalid_argument("The date is not valid.", "x-oss-date", date, ec="0002-00000212") from error
    if pieces[0] != date[:8]:
        raise invalid_argument(
            "The credential's date is not the request's.", "Credential", credential, ec="0002-00000213"
        )
    expires = None if expires_s is None else signed_at + expires_s
    return _Claim(access_key_id, signature, signed_at, expires, token, date, scope, additional)


@lru_cache(maxsize=64)
def _parse_date(date: str) -> float:
    return datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def _header_claim_v1(request: IncomingRequest, authorization: str) -> _Claim:
    access_key_id, _, signature = authorization[4:].strip().partition(":")
    date = request.headers.get("x-oss-date") or request.headers.get("date", "")
    try:
        signed_at = parse_time(date)
    except ValueError as error:
        raise OssError("AccessDenied", "OSS authentication requires a valid Date.") from error
    return _Claim(access_key_id, signature, signed_at, None, request.headers.get("x-oss-security-token", ""), date)


def _presigned_claim_v1(request: IncomingRequest) -> _Claim:
    query = request.query
    expires = query.get("Expires", "")
    end = whole_number(expires)
    if end is None or "Signature" not in query:
        raise invalid_argument("The URL lacks a parameter.", "Expires", expires, ec="0002-00000202")
    return _Claim(
        query["OSSAccessKeyId"], query["Signature"], 0.0, float(end), query.get("security-token", ""), expires
    )


def _canonical_tail(request: IncomingRequest, additional: str) -> str:
    """The part of version 4's canonical request after the URI."""
    extra = frozenset(additional.lower().split(";")) if additional else frozenset()
    signed = sorted(
        (name, value)
        for name, value in request.headers.items()
        if name.startswith("x-oss-") or name in ("content-type", "content-md5") or name in extra
    )
    lines = [f"{name}:{value.strip()}\n" for name, value in signed]
    query = {name: value for name, value in request.query.items() if name != "x-oss-signature"}
    return f"{encode_query(query)}\n{''.join(lines)}\n{';'.join(sorted(extra))}\n{_PAYLOAD}"


@lru_cache(maxsize=64)
def _signing_key(secret: str, date: str, region: str, product: str) -> bytes:
    key = f"aliyun_v4{secret}".encode()
    for step in (date, region, product, _REQUEST):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def _head_v1(request: IncomingRequest, claim: _Claim) -> str:
    headers = request.headers
    signed = sorted((name, value) for name, value in headers.items() if name.startswith("x-oss-"))
    lines = [f"{name}:{value.strip()}\n" for name, value in signed]
    md5, kind = headers.get("content-md5", ""), headers.get("content-type", "")
    return f"{request.method}\n{md5}\n{kind}\n{claim.date}\n{''.join(lines)}"


def _subresources_v1(request: IncomingRequest) -> str:
    signed = sorted((name, value) for name, value in request.query.items() if name in _V1_SIGNED)
    return ("?" + "&".join(f"{name}={value}" if value else name for name, value in signed)) if signed else ""
