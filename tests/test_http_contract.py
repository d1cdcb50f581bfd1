"""Every row of the HTTP contract (docs/reference/http-api.md), on the real SQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from http_support import NEW_ITEM, Api, api_fixture, problem, success  # noqa: F401 - fixtures
from support import Connection, sweep, value

ORDER_FIELDS = {
    "order_id",
    "item_id",
    "customer_id",
    "status",
    "ticket",
    "position",
    "forecast",
    "created_at",
    "reserved_at",
    "expires_at",
    "paid_at",
    "ended_at",
    "payment",
    "late_order_id",
    "quantity",
    "units",
}


def moment(text: str) -> datetime:
    """An RFC 3339 time in UTC, as the contract wants it."""
    assert text.endswith("Z"), text
    return datetime.fromisoformat(text)


async def test_a_new_item_is_on_sale(api: Api) -> None:
    response = await api("POST", "/items", json=NEW_ITEM | {"stock": 5, "max_waiting": 7})

    assert response.status_code == 201
    item = response.json()
    assert response.headers["location"] == f"/items/{item['item_id']}"
    assert item | NEW_ITEM | {"stock": 5, "max_waiting": 7} == item
    assert (item["available"], item["reserved"], item["paid"], item["waiting"]) == (5, 0, 0, 0)
    assert (item["state"], item["paused"], item["late_payment"]) == ("open", False, "refund")
    assert moment(item["created_at"]) and moment(item["as_of"])
    assert item["opens_at"] is None and item["closes_at"] is None


async def test_a_sku_is_taken_once(api: Api) -> None:
    await api.item()
    body = problem(await api("POST", "/items", json=NEW_ITEM), 409, "sku_taken")
    assert body["hint"]
    assert len((await api("GET", "/items")).json()) == 1


async def test_items_are_shown_and_listed_by_pages(api: Api) -> None:
    items = [await api.item(sku=f"shoe {n}") for n in range(3)]
    ids = [i["item_id"] for i in items]

    shown = (await api("GET", f"/items/{ids[0]}")).json()
    assert shown | {"as_of": items[0]["as_of"]} == items[0]
    first = (await api("GET", "/items?limit=2")).json()
    assert [i["item_id"] for i in first] == ids[:2]
    rest = (await api("GET", f"/items?limit=2&after={ids[1]}")).json()
    assert [i["item_id"] for i in rest] == ids[2:]


async def test_times_are_in_utc_and_keep_their_moment(api: Api) -> None:
    item = await api.item(
        opens_at="2030-01-01T12:00:00+02:00", closes_at="2030-01-01T12:00:00.123456Z"
    )
    assert item["opens_at"] == "2030-01-01T10:00:00Z"
    assert item["closes_at"] == "2030-01-01T12:00:00.123456Z"


async def test_a_change_tells_absent_from_null(api: Api) -> None:
    item = await api.item(closes_at="2030-01-01T12:00:00Z", max_waiting=3)
    path = f"/items/{item['item_id']}"

    changed = (await api("PATCH", path, json={"hold_seconds": 5, "paused": True})).json()
    assert changed["hold_seconds"] == 5 and changed["state"] == "paused"
    assert changed["closes_at"] == item["closes_at"] and changed["max_waiting"] == 3

    changed = (await api("PATCH", path, json={"closes_at": None, "max_waiting": None})).json()
    assert changed["closes_at"] is None and changed["max_waiting"] is None
    assert changed["hold_seconds"] == 5

    changed = (await api("PATCH", path, json={"opens_at": "2030-01-01T00:00:00+01:00"})).json()
    assert changed["opens_at"] == "2029-12-31T23:00:00Z"
    assert (await api("PATCH", path, json={})).json()["opens_at"] == changed["opens_at"]


async def test_stock_is_added_and_withdrawn(api: Api) -> None:
    item = await api.item(stock=2)
    path = f"/items/{item['item_id']}"

    assert (await api("PATCH", path, json={"add_stock": 3})).json()["stock"] == 5
    assert (await api("PATCH", path, json={"withdraw_stock": 4})).json()["stock"] == 1
    problem(await api("PATCH", path, json={"withdraw_stock": 2}), 409, "withdraw_too_much")
    assert (await api("GET", path)).json()["stock"] == 1


async def test_the_first_customers_are_reserved_a_unit(api: Api) -> None:
    item = await api.item()

    response = await api.order(item, "ann")

    assert response.status_code == 201
    order = response.json()
    assert set(order) == ORDER_FIELDS
    assert response.headers["location"] == f"/orders/{order['order_id']}"
    assert isinstance(order["order_id"], str)
    assert (order["status"], order["ticket"], order["position"]) == ("reserved", 1, None)
    assert moment(order["expires_at"]) - moment(order["reserved_at"]) == timedelta(seconds=60)
    payment = order["payment"]
    assert isinstance(payment["payment_id"], str)
    assert payment | {"status": "requested", "amount": 1000, "currency": "EUR"} == payment
    assert payment["checkout_url"] is None


async def test_a_customer_with_an_order_gets_that_order_again(api: Api) -> None:
    item = await api.item()
    first = (await api.order(item, "ann")).json()

    again = await api.order(item, "ann")

    assert again.status_code == 200
    assert again.json() == first


async def test_later_customers_wait_with_a_position(api: Api) -> None:
    item = await api.item()
    await api.order(item, "ann")
    assert (await api.order(item, "bob", json={"wait": True})).status_code == 202

    response = await api.order(item, "cat")

    assert response.status_code == 202
    order = response.json()
    assert (order["status"], order["position"], order["payment"]) == ("waiting", 2, None)
    assert order["expires_at"] is None


async def test_a_waiting_order_has_a_forecast(api: Api, db: Connection) -> None:
    item = await api.item(stock=2)
    ann, bob, cat, dan = [
        (await api.order(item, name)).json() for name in ("ann", "bob", "cat", "dan")
    ]
    assert [o["forecast"] for o in (ann, bob, cat, dan)] == [None] * 4
    await api("DELETE", f"/orders/{cat['order_id']}", "cat")
    sweep(db)

    seen = (await api("GET", f"/orders/{dan['order_id']}", "dan")).json()

    assert seen["position"] == 1  # the cat has left the line
    assert set(seen["forecast"]) == {"chance", "as_of"}
    assert seen["forecast"]["chance"] == 0.52
    assert moment(seen["forecast"]["as_of"])
    assert (await api("GET", "/orders", "dan")).json() == [seen]
    for order, name in ((ann, "ann"), (cat, "cat")):
        other = (await api("GET", f"/orders/{order['order_id']}", name)).json()
        assert (other["position"], other["forecast"]) == (None, None)
    await api("DELETE", f"/orders/{ann['order_id']}", "ann")
    sweep(db)
    seen = (await api("GET", f"/orders/{dan['order_id']}", "dan")).json()
    assert (seen["status"], seen["forecast"]) == ("reserved", None)


async def test_a_position_is_never_more_than_the_number_who_wait(api: Api, db: Connection) -> None:
    item = await api.item()
    await api.order(item, "holder")
    orders = [(await api.order(item, f"c{n}")).json()["order_id"] for n in range(12)]
    for n, order_id in enumerate(orders[:9]):
        await api("DELETE", f"/orders/{order_id}", f"c{n}")

    assert (await api("GET", f"/orders/{orders[9]}", "c9")).json()["position"] == 1
    assert (await api("GET", f"/orders/{orders[11]}", "c11")).json()["position"] == 3
    sweep(db)
    assert (await api.order(item, "next")).json()["position"] == 4


async def test_a_key_leads_to_its_order_even_after_it_ended(api: Api) -> None:
    item = await api.item()
    key = {"Idempotency-Key": "k1"}
    first = (await api.order(item, "ann", headers=key)).json()
    await api("DELETE", f"/orders/{first['order_id']}", "ann")

    duplicate = await api.order(item, "ann", headers=key)
    new = await api.order(item, "ann", headers={"Idempotency-Key": "k2"})

    assert duplicate.status_code == 200
    assert duplicate.json()["order_id"] == first["order_id"]
    assert duplicate.json()["status"] == "cancelled"
    assert new.json()["order_id"] != first["order_id"]


@pytest.mark.parametrize(
    ("terms", "body", "code"),
    [
        ({"opens_at": "2030-01-01T00:00:00Z"}, None, "not_open"),
        ({"closes_at": "2020-01-01T00:00:00Z"}, None, "closed"),
        ({"stock": 0, "max_waiting": 0}, None, "sold_out"),
        ({"stock": 0}, {"wait": False}, "sold_out"),
    ],
)
async def test_a_refusal_says_why_and_writes_nothing(
    api: Api, db: Connection, terms: dict[str, Any], body: Any, code: str
) -> None:
    item = await api.item(**terms)
    refused = await api.order(item, "ann", json=body)
    problem(refused, 409, code)
    assert ("retry-after" in refused.headers) == (code == "not_open")
    assert (await api("GET", "/orders", "ann")).json() == []
    assert (await api("GET", f"/items/{item['item_id']}")).json()["issued"] == 0


async def test_a_paused_item_refuses(api: Api) -> None:
    item = await api.item()
    await api("PATCH", f"/items/{item['item_id']}", json={"paused": True})
    problem(await api.order(item, "ann"), 409, "paused")


async def test_not_open_says_in_how_many_seconds_the_sale_opens(api: Api) -> None:
    opens_at = datetime.now(UTC) + timedelta(seconds=90)
    item = await api.item(opens_at=opens_at.isoformat())
    retry = int((await api.order(item, "ann")).headers["retry-after"])
    assert 80 <= retry <= 90


async def test_an_unknown_item_is_not_found(api: Api) -> None:
    for item_id in ("1", "2147483647"):
        problem(await api("GET", f"/items/{item_id}"), 404, "unknown_item")
        problem(await api("PATCH", f"/items/{item_id}", json={}), 404, "unknown_item")
        problem(await api("POST", f"/items/{item_id}/orders", "ann"), 404, "unknown_item")


async def test_a_customer_can_not_see_the_order_of_another(api: Api) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    path = f"/orders/{order['order_id']}"

    assert (await api("GET", path, "ann")).json() == order
    for method, where in (
        ("GET", path),
        ("DELETE", path),
        ("POST", f"{path}/payment"),
        ("GET", f"{path}/events"),
    ):
        problem(await api(method, where, "bob"), 404, "unknown_order")
    assert (await api("GET", path, "ann")).json() == order
    assert (await api("GET", "/orders", "bob")).json() == []


@pytest.mark.parametrize(
    "order_id",
    ["1", "0", "-1", "01", "abc", "4294967297x", "9" * 19, "9" * 60, "9" * 65, "1.0", "1_0"],
)
async def test_a_text_that_is_no_order_id_is_not_found(api: Api, order_id: str) -> None:
    problem(await api("GET", f"/orders/{order_id}", "ann"), 404, "unknown_order")


async def test_orders_are_listed_newest_first_by_pages(api: Api) -> None:
    ids = [
        (await api.order(await api.item(sku=f"shoe {n}"), "ann")).json()["order_id"]
        for n in range(3)
    ]
    listed = (await api("GET", "/orders", "ann")).json()
    assert [o["order_id"] for o in listed] == ids[::-1]
    first = (await api("GET", "/orders?limit=2", "ann")).json()
    assert [o["order_id"] for o in first] == ids[:0:-1]
    rest = (await api("GET", f"/orders?limit=2&before={ids[1]}", "ann")).json()
    assert [o["order_id"] for o in rest] == ids[:1]


async def test_cancelling_twice_answers_the_same(api: Api, db: Connection) -> None:
    item = await api.item()
    order = (await api.order(item, "ann")).json()
    waiting = (await api.order(item, "bob")).json()
    path = f"/orders/{order['order_id']}"

    first = await api("DELETE", path, "ann")
    again = await api("DELETE", path, "ann")

    assert first.status_code == again.status_code == 200
    assert first.json()["status"] == "cancelled" and moment(first.json()["ended_at"])
    assert again.json() == first.json()
    sweep(db)
    promoted = (await api("GET", f"/orders/{waiting['order_id']}", "bob")).json()
    assert promoted["status"] == "reserved" and promoted["payment"]["status"] == "requested"


async def test_a_paid_order_can_not_be_cancelled(api: Api) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    paid = await api.pay(order)
    assert (paid.status_code, paid.json()) == (200, {"outcome": "paid"})

    problem(await api("DELETE", f"/orders/{order['order_id']}", "ann"), 409, "already_paid")

    shown = (await api("GET", f"/orders/{order['order_id']}", "ann")).json()
    assert shown["status"] == "paid" and moment(shown["paid_at"])
    assert shown["payment"]["status"] == "succeeded"


async def test_a_failed_payment_may_be_tried_again(api: Api) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    path = f"/orders/{order['order_id']}/payment"
    failed = success(order) | {"type": "payment.failed"}
    assert (await api.event(failed)).json() == {"outcome": "failed"}

    response = await api("POST", path, "ann")

    assert response.status_code == 202
    payment = response.json()["payment"]
    assert payment["status"] == "requested"
    assert payment["payment_id"] != order["payment"]["payment_id"]
    again = await api("POST", path, "ann")
    assert (again.status_code, again.json()["payment"]) == (202, payment)


async def test_only_a_reserved_order_can_be_paid(api: Api) -> None:
    item = await api.item()
    await api.order(item, "ann")
    waiting = (await api.order(item, "bob")).json()
    problem(await api("POST", f"/orders/{waiting['order_id']}/payment", "bob"), 409, "not_reserved")


async def test_an_event_counts_once(api: Api) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    outcomes = [(await api.pay(order, e)).json()["outcome"] for e in ("e1", "e1", "e2")]
    assert outcomes == ["paid", "duplicate", "already_paid"]


async def test_money_without_an_amount_is_kept_as_unusable(api: Api) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    answer = await api.event(success(order) | {"amount": None})
    assert (answer.status_code, answer.json()) == (200, {"outcome": "unusable"})


async def test_an_event_may_have_unknown_fields(api: Api) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    event = success(order) | {"livemode": False, "nested": {"a": [1]}}
    assert (await api.event(event)).json() == {"outcome": "paid"}
    unknown = success(order, "e2") | {"type": "payment.disputed", "payment_id": "not ours"}
    assert (await api.event(unknown)).json() == {"outcome": "ignored"}


async def test_a_hold_past_its_deadline_shows_as_expired(api: Api, clock: Any) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    clock.advance(60)
    shown = (await api("GET", f"/orders/{order['order_id']}", "ann")).json()
    assert shown["status"] == "expired" and shown["ended_at"] == order["expires_at"]
    assert (await api.pay(order)).json() == {"outcome": "refund_due"}


async def test_a_customer_may_have_128_characters_and_a_key_255(api: Api) -> None:
    item = await api.item()
    key = {"Idempotency-Key": "k" * 255}
    assert (await api.order(item, "x" * 128, headers=key)).status_code == 201


async def test_an_event_without_a_usable_id_or_time_counts_once(api: Api) -> None:
    item = await api.item()
    order = (await api.order(item, "ann")).json()
    event = success(order) | {"event_id": "x" * 256, "occurred_at": "2030-01-01T00:00:00"}
    outcomes = [(await api.event(event)).json()["outcome"] for _ in range(2)]
    assert outcomes == ["paid", "duplicate"]


UNUSABLE: dict[str, dict[str, Any]] = {
    "NUL": {"session_id": "a\0"},
    "no type": {"type": None},
    "a negative amount": {"amount": -1},
    "an amount past bigint": {"amount": 2**63},
    "a bad currency": {"currency": "eur"},
    "money without an amount": {"amount": None},
}


@pytest.mark.parametrize("changes", UNUSABLE.values(), ids=UNUSABLE)
async def test_a_genuine_event_that_can_t_be_used_is_kept(
    api: Api, db: Connection, changes: dict[str, Any]
) -> None:
    order = {"payment": {"payment_id": "1", "amount": 1, "currency": "EUR"}}
    event = success(order) | changes
    outcomes = [(await api.event(event)).json()["outcome"] for _ in range(2)]
    assert outcomes == ["unusable", "duplicate"]
    payload = value(db, "select payload from flashsale.unusable_event")
    assert json.loads(payload) == event


@pytest.mark.parametrize("body", [b"{", b"\xff\0", b"[" * 7000])
async def test_a_genuine_body_that_is_no_event_is_kept(
    api: Api, db: Connection, body: bytes
) -> None:
    assert (await api.event(body)).json() == {"outcome": "unusable"}
    payload = value(db, "select payload from flashsale.unusable_event")
    assert payload == body.decode("utf-8", "replace").replace("\0", "\ufffd")
