"""What would have to wait too long is refused at once, while refusing is still cheap.

A queue is bounded by time, not by count: how many calls fit into it depends on how fast the
database is just now. What the bound promises is in docs/operations.md.
"""

from __future__ import annotations

import math

from flashsale.errors import Overloaded

_SMOOTHING = 1 / 8  # weight of the latest call in the average


class Gate:
    """The way into one queue, which `lanes` calls at a time serve.

    Whoever is next is always let in: their call is how the gate learns that the database is fast
    again.
    """

    def __init__(self, wait_ms: int, lanes: int) -> None:
        self._wait_seconds = wait_ms / 1000
        self._lanes = lanes
        self._call_seconds = 0.0

    def enter(self, calls_ahead: int) -> None:
        """Errors: Overloaded, if the calls ahead would take longer than the bound."""
        expected = calls_ahead * self._call_seconds / self._lanes
        if expected > self._wait_seconds:
            raise Overloaded(retry_seconds=math.ceil(expected))

    def called(self, seconds: float) -> None:
        """Takes note of how long a call took."""
        self._call_seconds += (seconds - self._call_seconds) * _SMOOTHING
