"""The sockets of hostile clients: what a server answers is seen, whenever it disconnects."""

from __future__ import annotations

import socket
from threading import Thread, Timer

import pytest

from sockets import all_answered

REFUSED = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n"


@pytest.mark.parametrize("read", [0, 1, 100_000])
def test_an_answer_before_the_end_of_a_request_is_seen(read: int) -> None:
    """The server closes with bytes unread, so the client may be reset while it is still sending."""
    client, server = socket.socketpair()

    def refuse() -> None:
        with server:
            if read:
                server.recv(read)
            server.sendall(REFUSED)

    refusing = Thread(target=refuse)
    with client:
        client.settimeout(10)
        refusing.start()
        assert all_answered(client, b"x" * 10_000_000) == REFUSED
    refusing.join()


def test_a_silent_server_is_not_waited_for() -> None:
    client, server = socket.socketpair()
    with client, server:
        server.sendall(b"half")
        assert all_answered(client, b"x", silence=0.01) == b"half"
        assert all_answered(client, b"x", silence=0.01, first=0.01) == b""


def test_a_slow_server_is_waited_for() -> None:
    """The silence counts from its first byte on."""
    client, server = socket.socketpair()
    slow = Timer(0.3, server.sendall, [REFUSED])
    with client, server:
        client.settimeout(10)
        slow.start()
        assert all_answered(client, b"x", silence=0.01) == REFUSED
        slow.join()
