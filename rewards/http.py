"""HTTP clients of untrusted servers: through the environment's proxy, except to this machine; secrets
from the environment, and replies of bounded size.
"""

import os
from ipaddress import ip_address
from typing import Any

import httpx

from policy.errors import UserError

DIGEST = "sha256:"
"""Prefix of a token's digest in hex, where it replaces the token."""


def read_secret(variable: str) -> str:
    """A token or an API key, fit for a header; "" if the environment variable is not set.

    Raises UserError, without the secret, for what no header can hold.
    """
    secret = os.environ.get(variable, "").strip()  # a file's line ends in a line feed
    if not (secret.isascii() and secret.isprintable()):
        raise UserError(
            f"the environment variable {variable} holds a character that no HTTP header can:"
            " use printable ASCII"
        )
    return secret


class TooLarge(httpx.TransportError):
    """A reply that is longer than allowed."""


def request(
    client: httpx.Client, method: str, url: str, *, max_bytes: int, **body: Any
) -> tuple[httpx.Response, bytes]:
    """A reply and its body, as sent: a compressed one could expand to any size. Raises TooLarge once
    more than `max_bytes` are read."""
    content = bytearray()
    headers = {"accept-encoding": "identity"}
    with client.stream(method, url, headers=headers, **body) as reply:
        for chunk in reply.iter_raw():
            content += chunk
            if len(content) > max_bytes:
                raise TooLarge(f"the reply is larger than {max_bytes} bytes")
    return reply, bytes(content)


def http_client(url: str, **options) -> httpx.Client:
    """Raises UserError for an invalid address, and for a proxy that cannot be used."""
    try:
        return httpx.Client(trust_env=not _is_this_machine(httpx.URL(url).host), **options)
    except httpx.InvalidURL as error:
        raise UserError(f"{url}: not an address: {error}") from None
    except (ImportError, ValueError) as error:  # SOCKS without its package, a proxy of no known kind
        raise UserError(f"{url}: the environment's proxy cannot be used: {error}") from None


def _is_this_machine(host: str) -> bool:
    name = host.rstrip(".").lower()
    try:
        address = ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified
