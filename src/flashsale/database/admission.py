"""Admission: a call that would have to wait for too long is refused at once.

A queue is bounded by time and not by count: how many calls fit into it depends on how fast the
database is at the moment. docs/explanation/performance.md says what this promises.
"""

from __future__ import annotations

import asyncio
import math
import time

from flashsale.refusals import Overloaded

_SMOOTHING = 1 / 8  # weight of the latest call in the average
_TICK_SECONDS = 0.005
_FORGETTING_SECONDS = 1.0  # the average halves in this time without a call, or in its own length


class Lag:
    """How long a call has waited in the event loop before our code sees it.

    An overloaded event loop is a queue that no counter shows: its turns grow long, and a request
    that arrives during one turn is handled in the next.
    """

    def __init__(self) -> None:
        """Measures nothing until start()."""
        self._turned_at = math.inf
        self._turn_seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to measure the running event loop."""
        self._turned_at = time.monotonic()
        self._tick()

    def stop(self) -> None:
        """Ends the measuring."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def seconds(self) -> float:
        """The lag, in seconds."""
        return max(self._turn_seconds, time.monotonic() - self._turned_at) - _TICK_SECONDS

    def _tick(self) -> None:
        now = time.monotonic()
        self._turn_seconds, self._turned_at = now - self._turned_at, now
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)


class Gate:
    """Admits calls to one queue, from which `lanes` calls at a time are made.

    A call that would be made at once is always admitted, because only calls tell the gate that the
    database has become fast again. While no call ends, what the gate knows grows old, and it counts
    for less and less: the lock that made the last calls slow may have gone long ago.
    """

    def __init__(self, wait_ms: int, lanes: int, lag: Lag | None = None) -> None:
        """wait_ms: the bound. lag: the event loop's, which is added to the wait."""
        self._wait_seconds = wait_ms / 1000
        self._lanes = lanes
        self._lag = lag
        self._average_seconds = 0.0
        self._called_at = time.monotonic()

    def retry_after(self, calls_ahead: int) -> int | None:
        """The seconds until these calls are done, if that is beyond the bound; else None."""
        if calls_ahead == 0:
            return None
        expected = calls_ahead * self._call_seconds() / self._lanes
        lag = self._lag.seconds if self._lag is not None else 0.0
        if expected + lag <= self._wait_seconds:
            return None
        return max(1, math.ceil(expected))

    def enter(self, calls_ahead: int) -> None:
        """Errors: Overloaded, if the calls ahead would take longer than the bound."""
        if (seconds := self.retry_after(calls_ahead)) is not None:
            raise Overloaded(seconds)

    def called(self, seconds: float) -> None:
        """Records how long a call took."""
        known = self._call_seconds()
        self._average_seconds = known + (seconds - known) * _SMOOTHING
        self._called_at = time.monotonic()

    def _call_seconds(self) -> float:
        """How long a call takes, as far as that is still known."""
        half_life = max(_FORGETTING_SECONDS, self._average_seconds)
        age = time.monotonic() - self._called_at
        return float(self._average_seconds * 0.5 ** (age / half_life))
