"""The HTTP client between provider and service, against correct and faulty servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from flashsale.http_client import HttpAnswer, HttpClient, NoAnswer, NobodyListens
from flashsale.processes import free_port
from simulator_support import until

Turn = Callable[[int, bytes], bytes | None]


class Server:
    """Answers the n-th request with what `turn(n, request)` returns; None closes the connection."""

    def __init__(self, turn: Turn) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[bytes] = []
        self.connections: list[asyncio.StreamWriter] = []
        self._turn = turn

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                said = self._turn(len(self.requests), self.requests[-1])
                if said is None:
                    return
                writer.write(said)
                if b"content-length" not in said.lower() and b"chunked" not in said:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    turn: Turn | bytes, timeout_seconds: float = 5
) -> AsyncIterator[tuple[Server, HttpClient]]:
    server = Server(turn if callable(turn) else lambda n, request: turn)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", server.port)
    client = HttpClient(server.url + "/base/", timeout_seconds=timeout_seconds)
    try:
        yield server, client
    finally:
        client.close()
        listener.close()
        for writer in server.connections:
            writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def test_a_request_has_the_right_line_headers_and_body() -> None:
    async with serving(OK) as (server, client):
        assert await client.post("/x", b"{}", {"Key": "k"}) == HttpAnswer(200, b"hi")
    assert server.requests == [
        b"POST /base/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nKey: k\r\n\r\n{}" % server.port
    ]


async def test_connection_is_used_again() -> None:
    async with serving(OK) as (server, client):
        for _ in range(3):
            await client.post("/x", b"", {})
    assert len(server.connections) == 1


async def test_calls_at_once_have_a_connection_each() -> None:
    async with serving(OK) as (server, client):
        answers = await asyncio.gather(*(client.post("/x", b"", {}) for _ in range(20)))
    assert answers == [HttpAnswer(200, b"hi")] * 20
    assert len(server.connections) == 20


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length:0\r\n\r\n", HttpAnswer(404, b"")),
        (b"HTTP/1.1 307 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", HttpAnswer(307, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", HttpAnswer(204, b"")),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", HttpAnswer(200, b"hi")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, HttpAnswer(200, b"hi")),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", HttpAnswer(200, b"until the end")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1;x=y\r\nh\r\n1\r\ni\r\n0\r\nTrailer: x\r\n\r\n",
            HttpAnswer(200, b"hi"),
        ),
    ],
)
async def test_answer_is_understood(said: bytes, answer: HttpAnswer) -> None:
    async with serving(said) as (_, client):
        for _ in range(2):  # what is left of the first would be read by the second
            assert await client.post("/x", b"", {}) == answer


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"H",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 two OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"220 mail.example ESMTP\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nh",
    ],
)
async def test_bytes_that_are_not_http_are_no_answer(said: bytes) -> None:
    async with serving(said, timeout_seconds=0.3) as (_, client):
        with pytest.raises(NoAnswer):
            await client.post("/x", b"", {})


async def test_silence_until_the_timeout_is_no_answer() -> None:
    async with serving(b"content-length: 0", timeout_seconds=0.1) as (_, client):
        with pytest.raises(NoAnswer, match=r"in 0\.1 seconds"):
            await client.post("/x", b"", {})


async def test_connection_closed_while_idle_is_replaced() -> None:
    # given a server that closes at the second request of a connection, without a word
    async with serving(lambda n, request: None if n == 2 else OK) as (server, client):
        await client.post("/x", b"", {})
        # when it is used again, then the call goes out on a new one
        assert await client.post("/x", b"2", {}) == HttpAnswer(200, b"hi")
    assert [r[-1:] for r in server.requests[1:]] == [b"2", b"2"]
    assert len(server.connections) == 2


async def test_a_new_connection_closed_without_a_byte_is_no_answer() -> None:
    async with serving(lambda n, request: None) as (server, client):
        with pytest.raises(NoAnswer):
            await client.post("/x", b"", {})
    assert len(server.requests) == 1


async def test_cancelled_call_leaves_no_connection_behind() -> None:
    async with serving(lambda n, request: b"content-length" if n == 1 else OK) as (server, client):
        call = asyncio.create_task(client.post("/x", b"", {}))
        await until(lambda: server.requests)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await client.post("/x", b"", {}) == HttpAnswer(200, b"hi")
    assert len(server.connections) == 2


async def test_a_refused_connection_is_told_apart_from_a_lost_answer() -> None:
    client = HttpClient(f"http://127.0.0.1:{free_port()}", timeout_seconds=5)
    with pytest.raises(NobodyListens):
        await client.post("/x", b"", {})


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://localhost", "http://", "http://h:x", "http://h/é"]
)
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        HttpClient(url, timeout_seconds=1)


@pytest.mark.parametrize("path", ["/x\r\nEvil: 1", "/é", "/x\n"])
async def test_path_can_smuggle_no_header(path: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        await HttpClient("http://localhost", timeout_seconds=1).post(path, b"", {})
