"""What keeps failing: how long to wait before the next attempt, and what to say about it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import asyncpg

from flashsale.database import sqlstates
from flashsale.worker.provider import ProviderRefused, ProviderUnavailable

log = logging.getLogger("flashsale.worker")

RETRY_SECONDS, RETRY_MAX_SECONDS = 0.1, 1.0  # between attempts to reach the database
ERROR_LENGTH = 500


class Trouble:
    """Something that keeps failing: each kind of failure is logged once, until it works again."""

    def __init__(self, what: str) -> None:
        """what: the thing that may fail, as the log calls it."""
        self.what = what
        self._known: set[str] = set()
        self._delay = RETRY_SECONDS

    def hit(self, error: Exception) -> float:
        """Notes a failure; returns the seconds to wait before the next attempt."""
        kind = sqlstates.kind(error)
        if kind not in self._known:
            self._known.add(kind)
            log.warning(
                "%s failed, will keep trying: error=%r",
                self.what,
                in_short(error),
                exc_info=unless_expected(error),
            )
        delay, self._delay = self._delay, min(2 * self._delay, RETRY_MAX_SECONDS)
        return delay

    def over(self) -> None:
        """Notes a success."""
        if self._known:
            log.info("%s works again", self.what)
            self._known.clear()
            self._delay = RETRY_SECONDS


def in_short(error: Exception) -> str:
    """One line that Postgres can store; of unexpected errors the kind only, as they may quote."""
    text = type(error).__name__
    if _is_expected(error) and str(error):
        text = f"{text}: {error}"
    return "".join(c if c.isprintable() else " " for c in text)[:ERROR_LENGTH]


def unless_expected(error: Exception) -> Exception | None:
    """The error, if its traceback has to be logged: its message does not say enough."""
    return None if _is_expected(error) else error


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleeps, but not past the stop."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0, seconds)):
            await stop.wait()


def _is_expected(error: Exception) -> bool:
    """Whether its message says enough: it has a meaning to others, not only in our code."""
    known = ProviderUnavailable | ProviderRefused | asyncpg.PostgresError | OSError | TimeoutError
    return isinstance(error, known) or sqlstates.is_passing(error)
