"""Free TCP ports of this machine."""

from __future__ import annotations

import random
import socket  # noqa: TID251 - finds a free port, and listens to none
from contextlib import suppress

PORTS = range(16384, 32768)
"""Below the ports that Linux gives to outgoing connections (ip_local_port_range, by default from
32768): a connection could take such a port before the server listens, which takes a while."""
PORTS_TRIED = 100


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses.

    Raises:
        OSError: if none is free.
    """
    # Not from a seed: processes with the same seed would choose the same port.
    for port in random.SystemRandom().sample(PORTS, PORTS_TRIED):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError(f"{PORTS_TRIED} ports between {PORTS[0]} and {PORTS[-1]} are in use")


def free_ports(count: int) -> list[int]:
    """That many distinct free ports."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)
