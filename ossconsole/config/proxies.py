"""HTTP proxies: those of the environment, for hosts outside the VPC only."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from ossconsole.config.endpoints import HostKind, classify
from ossconsole.config.errors import SettingsError

METADATA_HOST = "100.100.100.200"
_INSIDE = ("-internal.aliyuncs.com", "-internal.oss-data-acc.aliyuncs.com", "-vpc.aliyuncs.com")
_CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def proxies_for(url: str) -> dict[str, str]:
    """The proxies for requests to this URL, as `requests` takes them: by scheme; {} for a direct connection.

    They are those of HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, without the hosts in NO_PROXY. Hosts that answer only
    inside the VPC (internal endpoints, accelerators), this machine and the metadata service are always reached
    directly: a proxy could not reach them.
    """
    from requests.utils import get_environ_proxies  # slow to import

    return {} if _is_inside(url) else dict(get_environ_proxies(url))


def proxy_of(url: str) -> str:
    """The proxy's URL for requests to this URL, "" for a direct connection. It may contain a password."""
    from requests.utils import select_proxy

    return select_proxy(url, proxies_for(url)) or ""


def proxy_note(url: str) -> str:
    """Whether requests to this URL take a proxy, for the screen; "" where the environment names none."""
    from urllib.request import getproxies

    from requests.utils import select_proxy

    if proxy := proxy_of(url):
        return f"through the proxy {mask_proxy(proxy)}"
    return f"directly, without the proxy {mask_proxy(other)}" if (other := select_proxy(url, getproxies())) else ""


def mask_proxy(proxy: str) -> str:
    """The proxy's URL without user and password, for the screen."""
    scheme, separator, rest = proxy.partition("://")
    host = (rest if separator else proxy).rpartition("@")[2]
    return f"{scheme}{separator}{host}" if separator else host


def ca_bundle() -> str:
    """The file or folder of trusted certificates that the environment names, "" for the default.

    A proxy that inspects TLS signs with a certificate of its own. Raises SettingsError where it does not exist.
    """
    for name in _CERTIFICATE_VARIABLES:
        if found := os.environ.get(name):
            if not Path(found).exists():
                raise SettingsError(f"{found} does not exist ({name}).", remedy=f"Correct {name}, or unset it.")
            return found
    return ""


def _is_inside(url: str) -> bool:
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if host == METADATA_HOST or host.endswith(_INSIDE) or host.startswith("sts-vpc."):
        return True
    if classify(f"{parts.scheme}://{host}").kind in {HostKind.INTERNAL, HostKind.ACCELERATOR, HostKind.LOOPBACK}:
        return True
    # The bucket comes before the endpoint's host.
    return classify(f"{parts.scheme}://{host.partition('.')[2]}").kind in {HostKind.INTERNAL, HostKind.ACCELERATOR}
