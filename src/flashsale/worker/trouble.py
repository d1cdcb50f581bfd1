"""Failures that repeat: how long to wait before the next attempt, and what to log."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import asyncpg

from flashsale.database import sqlstates
from flashsale.providers.interface import ProviderRefused, ProviderUnavailable
from flashsale.worker.mail import MailRefused

log = logging.getLogger("flashsale.worker")

RETRY_SECONDS, RETRY_MAX_SECONDS = 0.1, 1.0  # between attempts to reach the database
ERROR_LENGTH = 500


class NotDelivered(Exception):  # noqa: N818 - what has become of an event, not a fault
    """The receiver has not taken an event. The message says why, and is logged and stored."""

    def __init__(self, why: str, retry_after: str | None = None) -> None:
        """retry_after: the header of the receiver's answer, as it came."""
        super().__init__(why)
        self.retry_after = retry_after


class Trouble:
    """Tracks something that may fail repeatedly, and logs each kind of failure only once."""

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
    """An error as one line that Postgres can store.

    Of an unexpected error it has only the type, because the message may quote private data.
    """
    text = type(error).__name__
    if _is_expected(error) and str(error):
        text = f"{text}: {error}"
    return "".join(c if c.isprintable() else " " for c in text)[:ERROR_LENGTH]


def unless_expected(error: Exception) -> Exception | None:
    """The error if its traceback has to be logged, because its message does not say enough."""
    return None if _is_expected(error) else error


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleeps, but no longer than until `stop` is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0, seconds)):
            await stop.wait()


def _is_expected(error: Exception) -> bool:
    """Whether the error's message says enough, so that no traceback is needed."""
    answers = ProviderUnavailable | ProviderRefused | MailRefused | NotDelivered
    known = answers | asyncpg.PostgresError | OSError | TimeoutError
    return isinstance(error, known) or sqlstates.is_passing(error)
