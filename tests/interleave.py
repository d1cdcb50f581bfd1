"""Sessions whose steps run in a given order. A step that waits for a lock goes on when it can."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import psycopg

from support import Connection, blocked, connect, eventually

Step = Callable[[Connection], Any]


class SteppedSession(threading.Thread):
    """A connection with its own thread, so that a step that waits does not block the others."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.conn = connect(url)
        self.errors: list[psycopg.Error] = []
        self.waits = 0
        """How many steps had to wait for another session."""
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._left = 0
        self._idle = threading.Condition()
        self.start()

    def run(self) -> None:
        while step := self._steps.get():
            try:
                step(self.conn)
            except psycopg.Error as error:
                self.errors.append(error)
            with self._idle:
                self._left -= 1
                self._idle.notify_all()

    def submit(self, step: Step) -> None:
        with self._idle:
            self._left += 1
        self._steps.put(step)

    def idle(self, seconds: float = 0) -> bool:
        """Whether all its steps are done, now or within so many seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._left, seconds)

    def close(self) -> None:
        self._steps.put(None)
        self.conn.close()


@contextmanager
def threaded_sessions(url: str, count: int) -> Iterator[list[SteppedSession]]:
    opened = [SteppedSession(url) for _ in range(count)]
    try:
        yield opened
    finally:
        for session in opened:
            session.close()


def orders_of_steps(counts: Sequence[int]) -> list[tuple[int, ...]]:
    """All interleavings of so many steps per session: (3, 3) has 20."""
    labels = [n for n, count in enumerate(counts) for _ in range(count)]
    return sorted(set(permutations(labels)))


def interleave(
    watcher: Connection,
    sessions: Sequence[SteppedSession],
    steps: Sequence[Sequence[Step]],
    order: Sequence[int],
) -> list[psycopg.Error]:
    """Runs each session's steps in the given order of sessions; returns the errors that came.

    After each step every session is done or waits for another one. The steps of a session that
    waits queue up behind it, and run as soon as it may go on.
    """
    todo = [iter(own) for own in steps]
    for session in sessions:
        session.errors.clear()

    def quiet() -> bool:
        return all(s.idle(0.005) or blocked(watcher, s.conn) for s in sessions[: len(steps)])

    for n in order:
        sessions[n].submit(next(todo[n]))
        eventually(quiet)
        sessions[n].waits += not sessions[n].idle()
    for session in sessions[: len(steps)]:
        assert session.idle(10), "a session is stuck"
    return [error for session in sessions for error in session.errors]
