"""GET /events: the feed over HTTP, its cursors, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from flashsale.cursors import cursor_of, event_of
from http_support import Api, api_fixture, problem  # noqa: F401 - fixtures
from support import Connection, settle

FIELDS = {"event_id", "type", "at", "item_id", "order_id", "data"}


async def events(api: Api, **parameters: Any) -> dict[str, Any]:
    response = await api("GET", "/events", params=parameters)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


async def test_the_feed_tells_what_happened_in_its_order(api: Api, db: Connection) -> None:
    item = await api.item()
    order = (await api.order(item, "ann")).json()
    await api.pay(order)
    settle(db)

    page = await events(api)
    assert [event["type"] for event in page["events"]] == [
        "item.created",
        "order.created",
        "order.paid",
    ]
    assert all(set(event) == FIELDS for event in page["events"])
    created, paid = page["events"][1:]
    assert (created["item_id"], created["order_id"]) == (item["item_id"], order["order_id"])
    assert created["data"] == {
        "customer_id": "ann",
        "status": "reserved",
        "ticket": 1,
        "quantity": 1,
        "units": 1,
    }
    assert paid["at"].endswith("Z")
    assert paid["data"] == {
        "customer_id": "ann",
        "payment_id": order["order_id"],
        "amount": 1000,
        "currency": "EUR",
        "units": 1,
        "paid_at": paid["data"]["paid_at"],
    }
    assert page["events"][0]["order_id"] is None
    assert page["events"][0]["data"]["sku"] == "shoe"


async def test_a_reader_goes_on_after_its_cursor(api: Api, db: Connection) -> None:
    item = await api.item(stock=9)
    settle(db)
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for customer in ("ann", "bob", "cid"):
        await api.order(item, customer)
        settle(db)
        while (page := await events(api, limit=1, **cursor))["events"]:
            seen += [event["event_id"] for event in page["events"]]
            assert page["next"] == seen[-1]
            cursor = {"after": page["next"]}
        assert page["next"] == cursor["after"]
    assert seen == [event["event_id"] for event in (await events(api))["events"]]
    assert len(seen) == 4


async def test_an_empty_feed_has_a_cursor_too(api: Api, db: Connection) -> None:
    page = await events(api)
    assert page["events"] == []
    await api.item()
    settle(db)
    assert len((await events(api, after=page["next"]))["events"]) == 1


@pytest.mark.parametrize(
    "query",
    [
        "after=1",
        "after=",
        "after=evt_1_00000000",
        "after=evt_01_" + cursor_of(1)[-8:],
        "after=" + cursor_of(2**63),
        "after=" + cursor_of(7).upper(),
        "after=" + "x" * 65,
        "limit=0",
        "limit=1001",
        "limit=x",
        "since=1",
        "limit=1&limit=2",
    ],
)
async def test_nonsense_is_refused(api: Api, query: str) -> None:
    problem(await api("GET", f"/events?{query}"), 422, "bad_value")


async def test_a_cursor_that_retention_has_passed_is_refused(api: Api, db: Connection) -> None:
    item = await api.item(stock=9)
    settle(db)
    first = await events(api)
    for customer in ("ann", "bob"):
        await api.order(item, customer)
    settle(db)
    last = await events(api)
    db.execute("select flashsale.forget_events(interval '0', 2)")

    body = problem(
        await api("GET", "/events", params={"after": first["next"]}), 409, "cursor_expired"
    )
    assert body["hint"]
    kept = await events(api)
    assert [event["data"]["customer_id"] for event in kept["events"]] == ["bob"]
    assert await events(api, after=last["next"]) == {"events": [], "next": last["next"]}


async def test_events_are_not_stored_on_the_way(api: Api) -> None:
    response = await api("GET", "/events")
    assert response.headers["cache-control"] == "private, no-store"
    assert (await api("HEAD", "/events")).status_code == 200


@pytest.mark.parametrize("number", [0, 1, 2**32, 2**63 - 1])
def test_a_cursor_is_read_as_it_was_written(number: int) -> None:
    assert event_of(cursor_of(number)) == number
