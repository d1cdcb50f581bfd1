"""Cursors of the feed over HTTP: an event's number, with a check that finds mistyped ones.

They are opaque, so that a later version can put more into them.
"""

from __future__ import annotations

import re
from zlib import crc32

_FORM = re.compile(r"evt_([0-9a-f]{1,16})_[0-9a-f]{8}", re.ASCII)
_MAX_BIGINT = 2**63 - 1


def cursor_of(event_id: int) -> str:
    """The cursor that stands after an event, which is also the event's id; 0: before the first."""
    number = f"{event_id:x}"
    return f"evt_{number}_{crc32(number.encode()):08x}"


def event_of(cursor: str) -> int | None:
    """The number of the event that a cursor stands after; None if this is no cursor of ours."""
    found = _FORM.fullmatch(cursor)
    if not found:
        return None
    event_id = int(found[1], 16)
    return event_id if event_id <= _MAX_BIGINT and cursor_of(event_id) == cursor else None
