"""Raw signed requests, with a signer of its own: what the server accepts is not checked by its own code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from ossconsole.sandbox.process import SandboxInfo

TIMEOUT_S = 20


@dataclass(frozen=True)
class Answer:
    """A reply; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error code, from the body or, of a HEAD, from its header."""
        document = self.body or base64.b64decode(self.headers.get("x-oss-err", ""))
        return ET.fromstring(document).findtext("Code", "") if document else ""


@dataclass(frozen=True)
class Signer:
    """Signs for one key pair; `skew_s` shifts its clock."""

    access_key_id: str
    secret: str
    region: str
    token: str = ""
    skew_s: float = 0.0

    @classmethod
    def of(cls, info: SandboxInfo) -> Signer:
        return cls(info.access_key_id, info.access_key_secret.reveal(), info.region)

    def headers(
        self, method: str, resource: str, query: Mapping[str, str], headers: Mapping[str, str], additional: str = ""
    ) -> dict[str, str]:
        """The headers with a V4 signature added; `resource` is `/bucket/key`."""
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + self.skew_s))
        signed = {**headers, "x-oss-date": date, "x-oss-content-sha256": "UNSIGNED-PAYLOAD"}
        if self.token:
            signed["x-oss-security-token"] = self.token
        scope = f"{date[:8]}/{self.region}/oss/aliyun_v4_request"
        signature = self._sign(method, resource, query, signed, additional, date, scope)
        parts = [f"Credential={self.access_key_id}/{scope}", f"Signature={signature}"]
        if additional:
            parts.append(f"AdditionalHeaders={additional}")
        return {**signed, "Authorization": f"OSS4-HMAC-SHA256 {', '.join(parts)}"}

    def presigned(self, method: str, resource: str, expires_s: int, headers: Mapping[str, str] | None = None) -> str:
        """The query of a presigned URL."""
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + self.skew_s))
        scope = f"{date[:8]}/{self.region}/oss/aliyun_v4_request"
        query = {
            "x-oss-signature-version": "OSS4-HMAC-SHA256",
            "x-oss-credential": f"{self.access_key_id}/{scope}",
            "x-oss-date": date,
            "x-oss-expires": str(expires_s),
        }
        signature = self._sign(method, resource, query, headers or {}, "", date, scope)
        return urlencode({**query, "x-oss-signature": signature})

    def _sign(  # noqa: PLR0917
        self,
        method: str,
        resource: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        additional: str,
        date: str,
        scope: str,
    ) -> str:
        pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in query.items())
        canonical_query = "&".join(f"{name}={value}" if value else name for name, value in pairs)
        wanted = {"content-type", "content-md5", *additional.split(";")}
        lower = {name.lower(): value for name, value in headers.items()}
        kept = sorted((name, value) for name, value in lower.items() if name.startswith("x-oss-") or name in wanted)
        canonical = "\n".join(
            [
                method,
                quote(resource, safe="/"),
                canonical_query,
                "".join(f"{name}:{value}\n" for name, value in kept),
                additional,
                "UNSIGNED-PAYLOAD",
            ]
        )
        to_sign = f"OSS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"aliyun_v4{self.secret}".encode()
        for step in (date[:8], self.region, "oss", "aliyun_v4_request"):
            key = hmac.digest(key, step.encode(), "sha256")
        return hmac.digest(key, to_sign.encode(), "sha256").hex()


def send(
    url: str, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """One request as it is, to scheme and host of `url`; `path` carries the query."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
    finally:
        connection.close()


def digest(body: bytes) -> dict[str, str]:
    """The Content-MD5 of a body, which DeleteMultipleObjects requires."""
    return {"Content-MD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}


def call(
    info: SandboxInfo,
    method: str,
    key: str = "",
    *,
    bucket: str = "",
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    signer: Signer | None = None,
    accelerated: bool = False,
) -> Answer:
    """A signed path-style request about `key`, or about the bucket when there is none."""
    bucket = bucket or info.bucket
    url = info.path_style_endpoint.replace("127.0.0.1", "127.0.0.2") if accelerated else info.path_style_endpoint
    query = query or {}
    signed = (signer or Signer.of(info)).headers(method, f"/{bucket}/{key}", query, headers or {})
    path = quote(f"/{bucket}/{key}") + (f"?{urlencode(query)}" if query else "")
    return send(url, method, path, headers=signed, body=body)
