"""Helpers for operating system processes: parents that die, signals, free ports and open files."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import resource
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_given_ports: list[socket.socket] = []
"""They keep their names until the process ends."""


def die_with_parent(number: int = signal.SIGINT) -> None:
    """Makes the kernel send this signal to us when the thread that started us ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)


def free_port() -> int:
    """A port that nobody uses, and that no later call gives to anybody while this process lives.

    It lies below the ports that outgoing connections get, so it stays free while a server restarts.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        # A name without a file, which the kernel gives to one socket of all processes at a time.
        # The socket of the port itself must not stay bound: the server has yet to take it.
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0flashsale-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            name.close()
        else:
            _given_ports.append(name)
            return port


def raise_open_files(needed: int) -> int:
    """Raises the soft limit of open files to this number, or as far as the hard limit allows.

    Returns the limit. A server that has no file left for accept() tries again without a pause and
    without a word, so a process has to know in advance how many connections it can have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed if soft == resource.RLIM_INFINITY else soft
    soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


@contextlib.contextmanager
def on_termination(callback: Callable[[], None]) -> Iterator[None]:
    """Calls back on SIGTERM and SIGINT, in addition to what the server does then.

    A server waits for its open responses before it ends the lifespan. An event stream that waited
    for the end of the lifespan would therefore never end, so it has to learn of the signal itself.
    A handler of the event loop is still called, and so is the function that we replace.
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
