"""Times beyond Python's years: a row that has one is read like any other.

Postgres knows years that Python's datetime does not: 4713 BC to 294276. asyncpg's own decoder
raises an error for them, and with it goes the whole answer of a call, although the call is
committed: 100 customers of a batch would hear of an error because of one row. So a time is read as
the nearest one that Python knows, as asyncpg does with infinity.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


async def read_all_times(connection: Any) -> None:
    """Has an asyncpg connection read times of any year. It needs no round trip."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=_encode, decoder=_decode, format="tuple"
    )


def _encode(time: datetime) -> tuple[int]:
    return ((time - _EPOCH) // _MICROSECOND,)


def _decode(microseconds: tuple[int]) -> datetime:
    try:
        return _EPOCH + timedelta(0, 0, microseconds[0])
    except OverflowError:
        return _LAST if microseconds[0] > 0 else _FIRST
