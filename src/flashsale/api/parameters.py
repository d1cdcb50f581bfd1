"""The parameters of paths, headers and queries, with their bounds."""

from __future__ import annotations

from typing import Annotated

from litestar.params import HeaderParameter, PathParameter, QueryParameter

from flashsale.models import OrderStatus

_MAX_INT = 2**31 - 1
# Headers are ASCII only, because servers on the way may decode other bytes in different ways, and
# without spaces at the ends, which they remove. SQL has the same rule (flashsale.is_id).
_HEADER = r"^[!-~](?:[ -~]*[!-~])?$(?!\n)"

ItemId = Annotated[int, PathParameter(ge=1, le=_MAX_INT, description="As in Item")]
OrderId = Annotated[str, PathParameter(max_length=64, description="As in Order; opaque")]
CustomerId = Annotated[
    str,
    HeaderParameter(
        name="X-Customer-Id",
        min_length=1,
        max_length=128,
        pattern=_HEADER,
        description="Who asks, as the gateway has authenticated them; printable ASCII",
    ),
]
StaffId = Annotated[
    str | None,
    HeaderParameter(
        name="X-Staff-Id",
        min_length=1,
        max_length=128,
        pattern=_HEADER,
        description="Who of the staff asks, for the history; printable ASCII",
    ),
]
RequestKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=_HEADER,
        description="The same call with the same key has its effect once; printable ASCII",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=_HEADER,
        description="The same customer, item and key always get the same order; printable ASCII",
    ),
]
IfNoneMatch = Annotated[
    str | None,
    HeaderParameter(name="If-None-Match", description="ETags; if one is current, 304"),
]
LastEventId = Annotated[
    str | None,
    HeaderParameter(name="Last-Event-ID", description="The last event heard; if final, 204"),
]
Limit = Annotated[int, QueryParameter(name="limit", ge=1, le=1000, description="So many at most")]
After = Annotated[
    int, QueryParameter(name="after", ge=0, le=_MAX_INT, description="item_id, exclusive")
]
AfterEntry = Annotated[
    str | None, QueryParameter(name="after", max_length=64, description="entry_id, exclusive")
]
EntryLimit = Annotated[
    int, QueryParameter(name="limit", ge=1, le=10_000, description="So many at most")
]
SkuFilter = Annotated[
    str | None,
    QueryParameter(name="sku", min_length=1, max_length=64, description="Only the item with it"),
]
Status = Annotated[
    OrderStatus | None, QueryParameter(name="status", description="Only orders that are shown so")
]
AfterOrder = Annotated[
    str | None, QueryParameter(name="after", max_length=64, description="order_id, exclusive")
]
Before = Annotated[
    str | None, QueryParameter(name="before", max_length=64, description="order_id, exclusive")
]
EventCursor = Annotated[
    str | None,
    QueryParameter(
        name="after", max_length=64, description="next of the last answer; absent: the beginning"
    ),
]
