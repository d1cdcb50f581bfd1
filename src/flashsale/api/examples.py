"""The examples in the OpenAPI document: one sale, as each of its calls shows it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from flashsale.cursors import cursor_of
from flashsale.models import (
    Check,
    Draw,
    DrawEntry,
    Event,
    Events,
    Extended,
    Forecast,
    Health,
    Item,
    Order,
    Payment,
)

_NOON = datetime(2030, 11, 29, 12, tzinfo=UTC)

NEW_ITEM = {
    "sku": "sneaker-42",
    "name": "Sneaker, size 42",
    "price": 12900,
    "currency": "EUR",
    "stock": 500,
    "opens_at": "2030-11-29T12:00:00Z",
    "hold_seconds": 300,
    "refund_seconds": 1209600,
    "max_per_order": 2,
    "product": "sneaker",
    "draw": True,
}
UNIT_REQUEST = {"wait": True, "quantity": 2, "min_quantity": 1}
CHANGES = {"add_stock": 50, "closes_at": "2030-11-29T18:00:00Z"}
ITEM = Item(
    item_id=1,
    sku="sneaker-42",
    name="Sneaker, size 42",
    price=12900,
    currency="EUR",
    stock=500,
    opens_at=_NOON,
    closes_at=None,
    hold_seconds=300,
    max_waiting=None,
    late_payment="refund",
    paused=False,
    state="open",
    now_serving=500,
    issued=17,
    available=483,
    reserved=14,
    paid=3,
    waiting=0,
    withdrawing=0,
    created_at=_NOON - timedelta(days=7),
    as_of=_NOON + timedelta(seconds=2),
    settle_seconds=2,
    refund_seconds=1209600,
    max_per_order=2,
    max_per_customer=2,
    product="sneaker",
    draw=True,
)
DRAW = Draw(
    item_id=1,
    state="entering",
    entries=48210,
    units=None,
    commitment="b9bb0fd1b9ec77f4a1bcf6a9d34e1a34f3fd3be6f5a0cda2b4cf6bd2d4fcb0e3",
    list_hash=None,
    secret=None,
    opens_at=_NOON,
    listed_at=None,
    drawn_at=None,
)
DRAW_ENTRY = DrawEntry(entry_id="6294967297", quantity=1, ticket=17)
EXTENSION = {"seconds": 600, "reason": "The payment provider was slow"}
EXTENDED = Extended(14)
RESERVED = Order(
    order_id="4294967313",
    item_id=1,
    customer_id="ann",
    status="reserved",
    ticket=17,
    position=None,
    forecast=None,
    created_at=_NOON,
    reserved_at=_NOON,
    expires_at=_NOON + timedelta(seconds=300),
    paid_at=None,
    ended_at=None,
    payment=Payment(
        "4294967313", "open", 12900, "EUR", "http://127.0.0.1:8001/sessions/s_17", None
    ),
    late_order_id=None,
    quantity=1,
    units=1,
)
JOINED = msgspec.structs.replace(
    RESERVED,
    order_id="4294967813",
    status="waiting",
    ticket=517,
    position=17,
    reserved_at=None,
    expires_at=None,
    payment=None,
    quantity=2,
    units=None,
)
WAITING = msgspec.structs.replace(
    JOINED, position=12, forecast=Forecast(0.64, _NOON + timedelta(seconds=30))
)
CANCELLED = msgspec.structs.replace(
    RESERVED, status="cancelled", ended_at=_NOON + timedelta(seconds=60)
)
EVENTS = Events(
    [
        Event(
            event_id=cursor_of(1041),
            type="order.created",
            at=_NOON,
            item_id=1,
            order_id="4294967313",
            data={
                "customer_id": "ann",
                "status": "reserved",
                "ticket": 17,
                "quantity": 1,
                "units": 1,
            },
        ),
        Event(
            event_id=cursor_of(1042),
            type="order.paid",
            at=_NOON + timedelta(seconds=90),
            item_id=1,
            order_id="4294967313",
            data={
                "customer_id": "ann",
                "payment_id": "4294967313",
                "amount": 12900,
                "currency": "EUR",
                "units": 1,
                "paid_at": "2030-11-29T12:01:30.000000Z",
            },
        ),
    ],
    next=cursor_of(1042),
)
REFUND = {"reason": "The customer has broken a leg", "return_units": True}
REFUNDED = msgspec.structs.replace(
    RESERVED,
    status="refunded",
    paid_at=_NOON + timedelta(seconds=90),
    ended_at=_NOON + timedelta(days=3),
    payment=Payment(
        "4294967313", "refund_due", 12900, "EUR", "http://127.0.0.1:8001/sessions/s_17", None
    ),
)
OFFLINE_PAYMENT = {"reference": "till-3-000417"}
PAID_OFFLINE = msgspec.structs.replace(
    RESERVED,
    status="paid",
    paid_at=_NOON + timedelta(seconds=200),
    payment=Payment("576460752303423489", "succeeded", 12900, "EUR", None, "till-3-000417"),
)
EVENT = {
    "event_id": "e_1",
    "type": "payment.succeeded",
    "session_id": "s_17",
    "payment_id": "4294967313",
    "amount": 12900,
    "currency": "EUR",
    "occurred_at": "2030-11-29T12:01:30Z",
}
HEALTH = Health(
    "ready",
    [
        Check("database", True, "reached"),
        Check("migrations", True, "compatible"),
        Check("sweep", True, "0.2 s ago"),
    ],
)


def _text(media_type: str, description: str, text: str) -> ResponseSpec:
    return ResponseSpec(
        str,
        generate_examples=False,
        description=description,
        media_type=media_type,
        examples=[Example(summary=description, value=text)],
    )


EVENT_STREAM = _text(
    "text/event-stream",
    "The order at once, then at each change, until it is final",
    f"event: order\nid: reserved-5f3a0c11\ndata: {msgspec.json.encode(RESERVED).decode()}\n\n",
)
METRICS = _text(
    "text/plain",
    "Prometheus text format",
    'flashsale_reserve_outcomes_total{outcome="reserved"} 500.0\n',
)
