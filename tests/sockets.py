"""What servers answer to bytes that no HTTP library would send."""

from __future__ import annotations

import socket
from contextlib import suppress


def all_answered(
    client: socket.socket, request: bytes, silence: float | None = None, first: float | None = None
) -> bytes:
    """All bytes until the server disconnects, or until it is silent for so many seconds.

    first: for how long to wait for the first byte; None: as long as the socket does. A server may
    disconnect before it has read everything. What it answered is there all the same.
    """
    received = b""
    with suppress(ConnectionError):
        client.sendall(request)
    client.settimeout(first or client.gettimeout())
    with suppress(ConnectionError, TimeoutError) if silence else suppress(ConnectionError):
        while chunk := client.recv(65536):
            received += chunk
            client.settimeout(silence or client.gettimeout())
    return received
