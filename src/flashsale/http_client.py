"""A small HTTP/1.1 client with kept-alive connections, for POSTs between provider and service.

Each order costs at least two such calls. httpx takes 2 to 4 ms of CPU per call (measured with 20
calls at once), which is more than all the rest of the order together. This client takes 0.1 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

MAX_ANSWER_BYTES = 1_048_576

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NoAnswer(Exception):  # noqa: N818 - the effect of the call is unknown
    """The answer broke off, took too long, or was not HTTP: the call may have had its effect."""


class NobodyListens(NoAnswer):
    """No connection could be made, so the call had no effect."""


class HttpAnswer(NamedTuple):
    """The status of a response and its body, read to the end."""

    status: int
    body: bytes
    retry_after: str | None = None
    """The header Retry-After, as it came."""


class HttpClient:
    """Posts to one server, on as many connections as there are calls at once.

    Use it only for calls that are safe to repeat. That the server has closed an idle connection may
    show only when it is used next, and then the call is sent again on another connection.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        """url: http or https; a path in it comes before those of the calls. Errors: ValueError."""
        parts = urlsplit(url)
        printable = all("!" <= c <= "~" for c in url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not printable:
            raise ValueError(f"{url!r} is not an http or https URL")
        self._tls = True if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> HttpAnswer:
        """The answer, whatever its status; redirects are not followed. Errors: NoAnswer."""
        fields = {
            "Host": self._authority,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        } | dict(headers)
        lines = [
            f"POST {self._path + path or '/'} HTTP/1.1",
            *(f"{k}: {v}" for k, v in fields.items()),
        ]
        if any(c < " " or c > "~" for line in lines for c in line):
            raise ValueError("a path or header is not printable ASCII")
        request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._send(request)
        except TimeoutError:
            raise NoAnswer(f"no answer in {self._timeout_seconds:g} seconds") from None

    def close(self) -> None:
        """Closes idle connections; a call under way closes its own when it is cancelled."""
        while self._idle:
            self._idle.pop()[1].close()

    async def _send(self, request: bytes) -> HttpAnswer:
        while self._idle:
            connection = self._idle.pop()
            if connection[0].at_eof():
                connection[1].close()
                continue
            with contextlib.suppress(_ClosedWhileIdle):
                return await self._exchange(connection, request)
        try:
            connection = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except OSError as error:
            raise NobodyListens(str(error)) from error
        try:
            return await self._exchange(connection, request)
        except _ClosedWhileIdle as error:
            raise NoAnswer("the connection was closed without an answer") from error

    async def _exchange(self, connection: _Connection, request: bytes) -> HttpAnswer:
        reader, writer = connection
        reusable = False
        try:
            writer.write(request)
            answer, reusable = await _read(reader)
        except asyncio.IncompleteReadError as error:
            raise NoAnswer("the answer broke off") from error
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            raise NoAnswer(f"not an answer: {error}") from error
        finally:
            if reusable:
                self._idle.append(connection)
            else:
                writer.close()
        return answer


class _ClosedWhileIdle(Exception):  # noqa: N818 - the words are clear
    """The connection ended before any byte of an answer came back."""


async def _read(reader: asyncio.StreamReader) -> tuple[HttpAnswer, bool]:
    """An answer, and whether its connection can be used for another call."""
    try:
        first = await reader.readexactly(1)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise _ClosedWhileIdle from error
    status = 100
    while 100 <= status < 200:  # interim responses: the final one is still to come
        head = first + await reader.readuntil(b"\r\n\r\n")
        first = b""
        start, *lines = head.decode("latin-1").split("\r\n")[:-2]
        version, code = start.split(" ")[:2]
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise ValueError(f"it begins with {version[:20]!r}")
        status = int(code)
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    keeps = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if status in (204, 304):
        body = b""
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(_within_limit(int(headers["content-length"])))
    else:
        body = await reader.read(MAX_ANSWER_BYTES)
        keeps = False
    return HttpAnswer(status, body, headers.get("retry-after")), keeps


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        _within_limit(len(body) + size)
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return body


def _within_limit(size: int) -> int:
    if not 0 <= size <= MAX_ANSWER_BYTES:
        raise ValueError(f"it has {size} bytes")
    return size
