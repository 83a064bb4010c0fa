"""Fetches media by URL, with protection against server-side request forgery (SSRF).

It is off unless the server names the domains. One parser reads a URL, and what it read is what is
requested. The host is resolved once, every IP address found must be a public one, and the
connection goes to the address that was checked (DNS pinning). Redirects are followed by hand, and
each is checked like the first.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

from mmdiff.errors import require_extra
from mmdiff.serve.errors import ApiError

SECONDS = 5.0  # for all hops together
HOPS = 3
HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")
UNSAFE = re.compile(r"[^\x21-\x7e]|\\")  # in a URL
PORTS = {"http": 80, "https": 443}
TRANSLATED = tuple(
    map(
        ipaddress.ip_network,
        ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "100.64.0.0/10"),
    )
)


async def fetch(url: str, param: str, name: str, most: int, domains: Sequence[str]) -> bytes:
    """The bytes behind an address.

    Raises:
        ApiError: it is not allowed, cannot be had, or is larger than `most` bytes.
    """
    try:
        async with asyncio.timeout(SECONDS):
            for _ in range(HOPS + 1):
                host, port, path, scheme = _allowed(url, param, name, domains)
                address = await _resolved(host, port, param, name)
                found = await _get(scheme, host, address, port, path, most, param, name)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found)
            raise ApiError(422, "media_fetch_failed", f"{name}: more than {HOPS} redirects", param)
    except TimeoutError:
        raise ApiError(
            504, "media_fetch_failed", f"{name}: no answer within {SECONDS:g} seconds", param
        ) from None


def _allowed(url: str, param: str, name: str, domains: Sequence[str]) -> tuple[str, int, str, str]:
    """Host, port, path and scheme of a URL that may be fetched."""
    scheme = url[:8].partition(":")[0].lower()
    if scheme not in PORTS:
        code = "media_url_not_allowed"
        if scheme == "file" or "://" not in url[:32]:
            code = "local_media_not_allowed"
        raise ApiError(
            400, code, f"{name} must be a data URL: send the file itself, in base64", param
        )
    if not domains:
        raise ApiError(
            400,
            "media_url_not_allowed",
            f"{name} is a URL, and this server fetches none: send the file as a data URL",
            param,
        )
    refused = ApiError(
        400,
        "media_url_not_allowed",
        f"the URL of {name} is not among the domains that this server fetches from",
        param,
    )
    if len(url) > 4096 or UNSAFE.search(url):
        raise refused
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or ""), parts.port or PORTS[scheme]
    except ValueError:
        raise refused from None
    is_name = HOST.fullmatch(host) and not host.rpartition(".")[2].isdigit()
    if not is_name or "@" in parts.netloc or port != PORTS[scheme]:
        raise refused
    if not any(host == domain or host.endswith(f".{domain}") for domain in domains):
        raise refused
    path = parts.path or "/"
    if parts.query:
        path += f"?{parts.query}"
    return host, port, path, scheme


async def _resolved(host: str, port: int, param: str, name: str) -> str:
    """An IP address of the host, all of which must be public."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise ApiError(502, "media_fetch_failed", f"{name}: its host is not found", param) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ApiError(
            400, "media_url_not_allowed", f"the host of {name} is not in the public network", param
        )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether nothing private, local or translated is behind an IP address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        return is_public(str(mapped))
    inside = any(ip in network for network in TRANSLATED)
    return ip.is_global and not (
        inside or ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_loopback
    )


async def _get(
    scheme: str, host: str, address: str, port: int, path: str, most: int, param: str, name: str
) -> bytes | str:
    """The body, or where a redirect leads. The address is connected to; the name is for TLS and the
    Host header."""
    httpx: Any = require_extra("httpx", "serve", "fetching media")
    netloc = f"[{address}]" if ":" in address else address
    try:
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS) as client,
            client.stream(
                "GET",
                f"{scheme}://{netloc}:{port}{path}",
                extensions={"sni_hostname": host},
                headers={"Host": host, "Accept-Encoding": "identity", "User-Agent": "mmdiff"},
            ) as response,
        ):
            status = int(response.status_code)
            if status in (301, 302, 303, 307, 308) and "location" in response.headers:
                return str(response.headers["location"])
            if status != 200:
                kind = 502 if status >= 500 or status in (408, 429) else 422
                raise ApiError(
                    kind, "media_fetch_failed", f"{name}: its host answered {status}", param
                )
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > most:
                    raise ApiError(
                        413,
                        "media_too_large",
                        f"{name} has more than the {most:,} bytes allowed",
                        param,
                    )
            return bytes(body)
    except httpx.HTTPError:
        raise ApiError(
            502, "media_fetch_failed", f"{name}: its host does not answer as it should", param
        ) from None
