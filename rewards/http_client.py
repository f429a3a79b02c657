"""A client of somebody's HTTP server: through the environment's proxy, but never to this machine."""

from ipaddress import ip_address

import httpx

from policy.errors import UserError


def http_client(url: str, **options) -> httpx.Client:
    """Raises UserError for what is no address, and for a proxy that cannot be used."""
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
