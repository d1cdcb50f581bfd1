"""The HTTP routes: each handler calls one function of the SQL API and returns its answer."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import MediaType, Response, delete, get, patch, post
from litestar.openapi.spec import Example
from litestar.params import Body
from litestar.response import Stream

from flashsale.api import examples
from flashsale.api.caching import public
from flashsale.api.health import live, ready
from flashsale.api.metrics import CONTENT_TYPE
from flashsale.api.openapi import answers
from flashsale.api.parameters import (
    After,
    AfterEntry,
    AfterOrder,
    Before,
    CustomerId,
    EntryLimit,
    EventCursor,
    IdempotencyKey,
    IfNoneMatch,
    ItemId,
    LastEventId,
    Limit,
    OrderId,
    RequestKey,
    SkuFilter,
    StaffId,
    Status,
)
from flashsale.api.parts import Service
from flashsale.api.queries import next_page
from flashsale.api.requests import JsonRequest, as_text, from_provider
from flashsale.api.unit_answers import asked_for, granted
from flashsale.models import (
    Draw,
    DrawEntry,
    Events,
    Extended,
    Extension,
    Item,
    ItemChanges,
    NewItem,
    OfflinePayment,
    Order,
    PaymentEvent,
    Receipt,
    RefundRequest,
    UnitRequest,
    UnitRequestBody,
)

_BODY = (
    "malformed_body",
    "body_timeout",
    "body_too_large",
    "unsupported_media_type",
    "bad_value",
)
_BUSY = ("overloaded", "database_unavailable")
_UNCHANGED = (None, None, "The client has this already: If-None-Match names its ETag")
_HEARD = (None, None, "Last-Event-ID is the order's final event: there will be no other")
_ORDER = ("customer_required", "unknown_order", *_BUSY)
_KEY = ("bad_value", "key_reused")


def _body(example: object) -> Any:
    return Body(examples=[Example(value=example)])


# Items


@post(
    "/items",
    tags=["items"],
    responses=answers(
        {201: (Item, examples.ITEM, "The item, on sale")},
        *_BODY,
        "key_reused",
        "sku_taken",
        *_BUSY,
    ),
)
async def create_item(
    data: Annotated[NewItem, _body(examples.NEW_ITEM)],
    service: Service,
    staff: StaffId = None,
    key: RequestKey = None,
) -> Response[Item]:
    """Puts an item on sale."""
    item = await service.database.create_item(data, staff, key)
    return Response(item, headers={"Location": f"/items/{item.item_id}"})


@get(
    "/items",
    tags=["items"],
    responses=answers(
        {200: (list[Item], [examples.ITEM], "Items by item_id"), 304: _UNCHANGED},
        "bad_value",
        *_BUSY,
    ),
)
async def list_items(
    service: Service,
    limit: Limit = 100,
    after: After = 0,
    sku: SkuFilter = None,
    if_none_match: IfNoneMatch = None,
) -> Response[list[Item]]:
    """Lists items by item_id, or the one with a sku. Link names the next page."""
    if sku is not None:
        return public(await service.database.items_with(sku), if_none_match)
    items = await service.database.items(limit, after)
    link = next_page("/items", limit=limit, after=items[-1].item_id) if len(items) == limit else {}
    return public(items, if_none_match, link)


@get(
    "/items/{item_id:int}",
    tags=["items"],
    responses=answers(
        {200: (Item, examples.ITEM, "The item"), 304: _UNCHANGED}, "unknown_item", *_BUSY
    ),
)
async def get_item(
    item_id: ItemId, service: Service, if_none_match: IfNoneMatch = None
) -> Response[Item]:
    """Shows an item and its counts of units, which are up to a second old (as_of)."""
    return public(await service.database.item_status(item_id), if_none_match)


@get(
    "/items/{item_id:int}/draw",
    tags=["items"],
    responses=answers(
        {200: (Draw, examples.DRAW, "The draw"), 304: _UNCHANGED},
        "unknown_item",
        "no_draw",
        *_BUSY,
    ),
)
async def get_draw(
    item_id: ItemId, service: Service, if_none_match: IfNoneMatch = None
) -> Response[Draw]:
    """Shows the draw of an item: its commitment, and from the opening on what else is public."""
    return public(await service.database.draw_status(item_id), if_none_match)


@get(
    "/items/{item_id:int}/draw/entries",
    tags=["items"],
    responses=answers(
        {200: (list[DrawEntry], [examples.DRAW_ENTRY], "Entries by entry_id")},
        "bad_value",
        "unknown_item",
        "unknown_order",
        "no_draw",
        *_BUSY,
    ),
)
async def list_draw_entries(
    item_id: ItemId, service: Service, limit: EntryLimit = 1000, after: AfterEntry = None
) -> list[DrawEntry]:
    """Lists the entries of a draw, once the list is complete: what anybody needs to check it."""
    return await service.database.draw_entries(item_id, limit, after)


@patch(
    "/items/{item_id:int}",
    tags=["items"],
    responses=answers(
        {200: (Item, examples.ITEM, "The item, changed")},
        *_BODY,
        "key_reused",
        "unknown_item",
        "withdraw_too_much",
        "draw_has_begun",
        "has_orders",
        *_BUSY,
    ),
)
async def change_item(
    item_id: ItemId,
    data: Annotated[ItemChanges, _body(examples.CHANGES)],
    service: Service,
    staff: StaffId = None,
    key: RequestKey = None,
) -> Item:
    """Changes an item's terms, all or nothing. Absent fields stay; null takes away a limit."""
    return await service.database.change_item(item_id, data, staff, key)


@post(
    "/items/{item_id:int}/extension",
    status_code=200,
    tags=["items"],
    responses=answers(
        {200: (Extended, examples.EXTENDED, "So many deadlines were moved")},
        *_BODY,
        "key_reused",
        "unknown_item",
        *_BUSY,
    ),
)
async def extend_holds(
    item_id: ItemId,
    data: Annotated[Extension, _body(examples.EXTENSION)],
    service: Service,
    staff: StaffId = None,
    key: RequestKey = None,
) -> Extended:
    """Moves all running deadlines of an item later, for example after an outage."""
    return Extended(
        await service.database.extend_holds(item_id, data.seconds, data.reason, staff, key)
    )


@get(
    "/items/{item_id:int}/orders",
    tags=["items"],
    responses=answers(
        {200: (list[Order], [examples.RESERVED], "The item's orders, by ticket")},
        "bad_value",
        "unknown_item",
        "unknown_order",
        *_BUSY,
    ),
)
async def list_orders_of_item(
    item_id: ItemId,
    service: Service,
    status: Status = None,
    after: AfterOrder = None,
    limit: Limit = 100,
) -> Response[list[Order]]:
    """Lists the orders of all customers, by ticket. Link names the next page, if there is one.

    With a status a page may have fewer orders than `limit`, although more follow.
    """
    orders, more = await service.database.orders_of_item(item_id, status, after, limit)
    path = f"/items/{item_id}/orders"
    link = {} if more is None else next_page(path, status=status, limit=limit, after=more)
    return Response(orders, headers=link)


# Orders


@post(
    "/items/{item_id:int}/orders",
    tags=["orders"],
    responses=answers(
        {
            201: (Order, examples.RESERVED, "Its units are held until expires_at"),
            202: (Order, examples.JOINED, "In the line; position 1 is next. Or entered in a draw"),
            200: (Order, examples.RESERVED, "The order that the customer already has"),
        },
        *_BODY,
        "customer_required",
        "unknown_item",
        "not_open",
        "closed",
        "paused",
        "sold_out",
        "has_other_order",
        "too_many",
        "key_reused",
        *_BUSY,
    ),
)
async def reserve(
    item_id: ItemId,
    customer: CustomerId,
    service: Service,
    idempotency_key: IdempotencyKey = None,
    data: Annotated[UnitRequestBody | None, _body(examples.UNIT_REQUEST)] = None,
) -> Response[Order]:
    """Requests units, by default one: the answer is a reservation, or a place in the line."""
    request = asked_for(UnitRequest(item_id, customer, idempotency_key), data)
    answer = await service.intake.reserve(request)
    service.metrics.reserved(answer.outcome)
    return granted(answer)


@get(
    "/orders",
    tags=["orders"],
    responses=answers(
        {200: (list[Order], [examples.WAITING], "The customer's orders, newest first")},
        "customer_required",
        "bad_value",
        "unknown_order",
        *_BUSY,
    ),
)
async def list_orders(
    customer: CustomerId, service: Service, limit: Limit = 100, before: Before = None
) -> Response[list[Order]]:
    """Lists the customer's orders, newest first. Link names the next page."""
    orders = await service.database.orders_of(customer, limit, before)
    more = len(orders) == limit
    link = next_page("/orders", limit=limit, before=orders[-1].order_id) if more else {}
    return Response(orders, headers=link)


@get(
    "/orders/{order_id:str}",
    tags=["orders"],
    responses=answers({200: (Order, examples.RESERVED, "The order")}, *_ORDER),
)
async def get_order(order_id: OrderId, customer: CustomerId, service: Service) -> Order:
    """Shows an order."""
    return await service.database.order_status(order_id, customer)


@delete(
    "/orders/{order_id:str}",
    status_code=200,
    tags=["orders"],
    responses=answers(
        {200: (Order, examples.CANCELLED, "The order, which has ended, or is settling")},
        "already_paid",
        *_ORDER,
        *_KEY,
    ),
)
async def cancel(
    order_id: OrderId, customer: CustomerId, service: Service, key: RequestKey = None
) -> Order:
    """Cancels a reservation, leaves the line, or gives a paid order back within refund_seconds.

    A repeated call gets the same answer. An order that is settling stays as it is.
    """
    return await service.database.cancel(order_id, customer, key)


@post(
    "/orders/{order_id:str}/payment",
    status_code=202,
    tags=["orders"],
    responses=answers(
        {202: (Order, examples.RESERVED, "A payment session is being opened")},
        "not_reserved",
        *_ORDER,
        *_KEY,
    ),
)
async def request_payment(
    order_id: OrderId, customer: CustomerId, service: Service, key: RequestKey = None
) -> Order:
    """Starts a new payment attempt after a failed one. The deadline does not change."""
    return await service.database.request_payment(order_id, customer, key)


@get(
    "/orders/{order_id:str}/events",
    tags=["orders"],
    media_type="text/event-stream",
    responses={
        **answers({204: _HEARD}, *_ORDER),
        200: examples.EVENT_STREAM,
    },
)
async def watch_order(
    order_id: OrderId, customer: CustomerId, service: Service, last_event_id: LastEventId = None
) -> Response[Any]:
    """Streams the order: at once, then at each change, until it is final."""
    await service.database.order_status(order_id, customer)  # refuses another customer's order
    seen = await service.watcher.see(order_id)
    if seen.is_last(last_event_id):
        return Response(None, status_code=204)
    return Stream(
        service.watcher.stream(seen),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


# Money


@post(
    "/orders/{order_id:str}/refund",
    status_code=200,
    tags=["payments"],
    responses=answers(
        {200: (Order, examples.REFUNDED, "The order, whose money goes back")},
        *_BODY,
        "key_reused",
        "unknown_order",
        "not_paid",
        *_BUSY,
    ),
)
async def refund_order(
    order_id: OrderId,
    data: Annotated[RefundRequest, _body(examples.REFUND)],
    service: Service,
    staff: StaffId = None,
    key: RequestKey = None,
) -> Order:
    """Refunds a paid order, for staff. A repeated call gets the same answer."""
    return await service.database.refund_order(order_id, data.reason, data.return_units, staff, key)


@post(
    "/orders/{order_id:str}/offline-payment",
    status_code=200,
    tags=["payments"],
    responses=answers(
        {200: (Order, examples.PAID_OFFLINE, "The order, paid")},
        *_BODY,
        "key_reused",
        "unknown_order",
        "not_reserved",
        "reference_taken",
        *_BUSY,
    ),
)
async def pay_offline(
    order_id: OrderId,
    data: Annotated[OfflinePayment, _body(examples.OFFLINE_PAYMENT)],
    service: Service,
    staff: StaffId = None,
    key: RequestKey = None,
) -> Order:
    """Records that a till has taken the money for an order. A repeated call changes nothing."""
    return await service.database.pay_offline(order_id, data.reference, staff, key)


@post(
    "/webhooks/payments",
    status_code=200,
    guards=[from_provider],
    tags=["payments"],
    responses=answers(
        {200: (Receipt, Receipt("paid"), "The event is durable")},
        *_BODY,
        "bad_signature",
        "provider_unavailable",
        *_BUSY,
    ),
)
async def record_payment_event(
    data: Annotated[PaymentEvent, _body(examples.EVENT)], request: JsonRequest, service: Service
) -> Receipt:
    """Takes an event of the payment provider, signed by it: by default with Flashsale-Signature."""
    outcome = await service.database.record_payment_event(data, as_text(await request.body()))
    service.metrics.event_recorded(outcome)
    return Receipt(outcome)


# The service itself


@get(
    "/events",
    tags=["events"],
    responses=answers(
        {200: (Events, examples.EVENTS, "What happened after the cursor, in its order")},
        "bad_value",
        "cursor_expired",
        *_BUSY,
    ),
)
async def list_events(service: Service, after: EventCursor = None, limit: Limit = 100) -> Events:
    """Lists what happened to orders and items: the feed, for staff and their programs.

    No event ever appears behind a cursor that was given out.
    """
    return await service.database.events(after, limit)


@get(
    "/metrics",
    media_type=MediaType.TEXT,
    tags=["service"],
    responses={**answers({}), 200: examples.METRICS},
)
async def scrape(service: Service) -> Response[bytes]:
    """Metrics for Prometheus. Without the database, what the process itself knows."""
    return Response(await service.metrics.scrape(), media_type=CONTENT_TYPE)


HANDLERS = [
    create_item,
    list_items,
    get_item,
    get_draw,
    list_draw_entries,
    change_item,
    extend_holds,
    list_orders_of_item,
    reserve,
    list_orders,
    get_order,
    cancel,
    request_payment,
    watch_order,
    refund_order,
    pay_offline,
    record_payment_event,
    list_events,
    live,
    ready,
    scrape,
]
