"""A TCP proxy between two parts, with latency, silence, resets and lost replies on demand."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

CHUNK_BYTES = 65_536


class Proxy:
    """Forwards bytes to a port of this machine, with faults. Use as a context manager.

    latency_seconds: for each chunk, in each direction. lose_replies: when the server's next chunk
    contains one of these words, that reply is dropped, the connection is cut, and `lost` counts it.
    target_port: where new connections go; it may be changed.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.latency_seconds = 0.0
        self.lose_replies: tuple[bytes, ...] = ()
        self.lost = 0
        self.held_bytes = 0
        """What came since hold() and has not been passed on."""
        self.target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._writers: set[asyncio.StreamWriter] = set()
        self._held = {"requests": False, "replies": False}
        self._moved: asyncio.Event

    def __enter__(self) -> Proxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hold(self, *, requests: bool = False, replies: bool = False) -> None:
        """Holds back the bytes of requests, of replies, or of both; with neither, forwards all."""
        self._held = {"requests": requests, "replies": replies}
        self.held_bytes = 0
        self._loop.call_soon_threadsafe(lambda: self._moved.set())

    def reset(self) -> None:
        """Breaks every connection, like a firewall that has lost its state."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _listen(self) -> None:
        self._moved = asyncio.Event()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump("requests", reader, back))
                ways.create_task(self._pump("replies", there, writer))
        except* (OSError, EOFError):
            pass
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if self.latency_seconds:
                await asyncio.sleep(self.latency_seconds)
            if way == "replies" and any(word in chunk for word in self.lose_replies):
                self.lost += 1
                raise EOFError("lost on purpose")
            if self._held[way]:
                self.held_bytes += len(chunk)
                while self._held[way]:
                    self._moved.clear()
                    await self._moved.wait()
            writer.write(chunk)
            await writer.drain()
        raise EOFError("hung up")


@contextlib.contextmanager
def silence(*proxies: Proxy) -> Iterator[None]:
    """Holds back all bytes while the context lasts."""
    for proxy in proxies:
        proxy.hold(requests=True, replies=True)
    try:
        yield
    finally:
        for proxy in proxies:
            proxy.hold()
