"""Secrets from the environment, and replies of servers that nobody vouches for."""

import os
from typing import Any

import httpx

from policy.errors import UserError

DIGEST = "sha256:"
"""What a token's digest in hex comes after, where it stands instead of the token."""


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
    """A reply that does not end where it should."""


def request(
    client: httpx.Client, method: str, url: str, *, max_bytes: int, **body: Any
) -> tuple[httpx.Response, bytes]:
    """A reply and its body, as sent: a compressed one could unfold to anything. Raises TooLarge for one
    of more than `max_bytes`, once these are read."""
    content = bytearray()
    headers = {"accept-encoding": "identity"}
    with client.stream(method, url, headers=headers, **body) as reply:
        for chunk in reply.iter_raw():
            content += chunk
            if len(content) > max_bytes:
                raise TooLarge(f"the reply is larger than {max_bytes} bytes")
    return reply, bytes(content)
