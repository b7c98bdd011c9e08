"""Addresses as people write them."""

from replicator.core.errors import UsageError


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. Raises `UsageError`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) < 65536:
        raise UsageError(f"{address!r} is not an address.", hint="Write it like 192.0.2.7:7421 or backup.example:7421.")
    return host.strip("[]"), int(port)
