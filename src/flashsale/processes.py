"""What concerns operating system processes: parents that die, signals, and free ports."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int = signal.SIGINT) -> None:
    """In a child: asks for this signal when the thread that started it ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)


def free_port() -> int:
    """A port below those that outgoing connections get: it stays free while a server restarts."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def on_termination(callback: Callable[[], None]) -> Iterator[None]:
    """Calls back on SIGTERM and SIGINT, besides what the server does then.

    A server waits for its open responses before it ends the lifespan, and a stream would wait for
    the end of the lifespan. Handlers of the event loop hear of a signal anyway; the one that we
    replace, if it is a function, is called too.
    """
    loop = asyncio.get_running_loop()
    replaced: dict[int, Callable[[int, FrameType | None], object]] = {}

    def heard(signum: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        replaced[signum](signum, frame)

    with contextlib.suppress(ValueError):  # not in the main thread, which alone gets signals
        for signum in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(signum)
            if callable(before) and before is not signal.default_int_handler:
                replaced[signum] = before
                signal.signal(signum, heard)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            if signal.getsignal(number) is heard:
                signal.signal(number, handler)
