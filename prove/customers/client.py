"""An HTTP client whose few kept-alive connections are shared by all customers, as in a gateway.

It speaks only as much HTTP/1.1 as answers with a Content-Length need. It takes a tenth of the CPU
time of the common clients, which leaves more of the two cores to the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit


class Unanswered(Exception):  # noqa: N818 - what happened, not what failed
    """The connection broke, or time was up: the request may have had its effect."""


class NotSent(Unanswered):
    """The connection was refused: the request was never sent."""


class SharedConnections:
    """Requests to one server, at most `connections` at once."""

    def __init__(self, url: str, connections: int = 128, timeout_seconds: float = 15.0) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._timeout_seconds = timeout_seconds
        self._room = asyncio.Semaphore(connections)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        hang_up: bool = False,
    ) -> tuple[int, dict[str, Any], Any]:
        """Status, headers (lower case) and decoded body. hang_up: disconnects without reading.

        Errors: Unanswered; NotSent, if it was not even sent.
        """
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        lines += [f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if data:
            lines.append("Content-Type: application/json")
        request = "\r\n".join(lines).encode() + b"\r\n\r\n" + data
        async with self._connection() as (reader, writer):
            writer.write(request)
            if hang_up:
                raise Unanswered("hung up")
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            text = await reader.readexactly(int(fields.get("content-length", 0)))
            is_json = "json" in fields.get("content-type", "")
            return int(head[0].split()[1]), fields, json.loads(text) if is_json else text

    @contextlib.asynccontextmanager
    async def _connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A free connection. It is closed if the request on it fails."""
        async with self._room:
            writer = None
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    if self._idle:
                        reader, writer = self._idle.pop()
                    else:
                        reader, writer = await asyncio.open_connection(self._host, self._port)
                    yield reader, writer
                self._idle.append((reader, writer))
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
                if writer:
                    writer.close()
                kind = NotSent if isinstance(error, ConnectionRefusedError) else Unanswered
                raise kind(repr(error)) from error
            except BaseException:
                if writer:
                    writer.close()
                raise


UNREPEATED = {("restock", 503), ("withdraw", 503)}
"""What a gateway may let through: the checker reckons with both, done or not."""


class Gateway:
    """What stands before the replicas: gives each request to one that is ready, in turn.

    urls: tells the replicas that there are. When a replica refuses the connection, breaks it, or
    answers 503, another one is asked. Only a PATCH may not be repeated, unless it was not let in.
    repeated: why requests were repeated, and how often. unresolved: those that still had no answer
    after PATIENCE_SECONDS.
    """

    PATIENCE_SECONDS = 30.0

    def __init__(self, urls: Callable[[], Sequence[str]]) -> None:
        self.repeated: Counter[str] = Counter()
        self.unresolved: list[str] = []
        self._urls = urls
        self._turn = 0
        self._replicas: dict[str, SharedConnections] = {}

    def close(self) -> None:
        for replica in self._replicas.values():
            replica.close()

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        hang_up: bool = False,
    ) -> tuple[int, dict[str, Any], Any]:
        """As of SharedConnections."""
        deadline = time.monotonic() + self.PATIENCE_SECONDS
        while True:
            answer, gap = None, Unanswered("")
            try:
                answer = await self._next().request(method, path, headers, body, hang_up=hang_up)
                if answer[0] != 503:
                    return answer
                why = f"503 {answer[2].get('code') if isinstance(answer[2], dict) else ''}".strip()
            except Unanswered as error:
                if hang_up:
                    raise
                gap, why = error, "refused" if isinstance(error, NotSent) else "broken off"
            may_repeat = method != "PATCH" or why in ("refused", "503 overloaded")
            if not may_repeat or time.monotonic() > deadline:
                if may_repeat:
                    self.unresolved.append(f"{method} {path}: {why}")
                if answer:
                    return answer
                raise gap
            self.repeated[why] += 1
            await asyncio.sleep(0.05)

    def _next(self) -> SharedConnections:
        urls = self._urls()
        if not urls:
            raise NotSent("there is no replica")
        self._turn += 1
        url = urls[self._turn % len(urls)]
        if url not in self._replicas:
            self._replicas[url] = SharedConnections(url)
        return self._replicas[url]
