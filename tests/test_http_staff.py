"""Staff over HTTP: who did it, calls that are repeated, lists of orders, and items by their sku."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from http_support import NEW_ITEM, LocalApi, api_fixture, problem  # noqa: F401 - a fixture
from support import Connection, connect, eventually, item_status, rows, value

KEY = {"Idempotency-Key": "k1"}
EVE = {"X-Staff-Id": "eve"}


async def paid(api: LocalApi, shoe: dict[str, Any], customer: str) -> dict[str, Any]:
    order = (await api.order(shoe, customer)).json()
    await api.pay(order, f"e-{customer}")
    return order  # type: ignore[no-any-return]


async def calls(api: LocalApi) -> dict[str, tuple[str, str, str | None, Any]]:
    """Every call that changes something and takes a key: method, path, customer, body."""
    shoe = await api.item(stock=9)
    path = f"/items/{shoe['item_id']}"
    ann, bob, cem = [(await api.order(shoe, c)).json()["order_id"] for c in ("ann", "bob", "cem")]
    dan = (await paid(api, shoe, "dan"))["order_id"]
    return {
        "create": ("POST", "/items", None, NEW_ITEM | {"sku": "boot"}),
        "change": ("PATCH", path, None, {"add_stock": 5}),
        "extend": ("POST", f"{path}/extension", None, {"seconds": 5, "reason": "outage"}),
        "cancel": ("DELETE", f"/orders/{ann}", "ann", None),
        "payment": ("POST", f"/orders/{bob}/payment", "bob", None),
        "refund": ("POST", f"/orders/{dan}/refund", None, {"reason": "torn"}),
        "till": ("POST", f"/orders/{cem}/offline-payment", None, {"reference": "r1"}),
    }


def effects(db: Connection) -> list[Any]:
    """All that calls have changed."""
    return [
        rows(db, "select * from flashsale.history order by history_id"),
        rows(db, "select item_id, stock, name from flashsale.item_status order by 1"),
        rows(db, "select order_id, status, expires_at from flashsale.order_status order by 1"),
        rows(db, "select payment_id, status from flashsale_data.payments order by 1"),
    ]


NAMES = ["create", "change", "extend", "cancel", "payment", "refund", "till"]


@pytest.mark.parametrize("name", NAMES)
async def test_the_same_call_again_has_one_effect(api: LocalApi, db: Connection, name: str) -> None:
    method, path, customer, body = (await calls(api))[name]
    first = await api(method, path, customer, json=body, headers=KEY)
    assert first.status_code in (200, 201, 202), first.text
    then = effects(db)
    again = await api(method, path, customer, json=body, headers=KEY)
    assert (again.status_code, effects(db)) == (first.status_code, then)
    ignored = ("as_of", "available", "reserved", "paid")
    assert {k: v for k, v in again.json().items() if k not in ignored} == {
        k: v for k, v in first.json().items() if k not in ignored
    }


@pytest.mark.parametrize("name", NAMES)
async def test_a_key_with_another_request_is_refused(
    api: LocalApi, db: Connection, name: str
) -> None:
    every = await calls(api)
    method, path, customer, body = every[name]
    key = KEY
    if customer:  # the same customer, with another order
        key = {"Idempotency-Key": "k2"}
        boot = await api.item(sku="shirt")
        other = (await api.order(boot, customer)).json()["order_id"]
        assert (await api("DELETE", f"/orders/{other}", customer, headers=key)).status_code == 200
    else:
        assert (
            await api("PATCH", every["change"][1], json={"hold_seconds": 9}, headers=key)
        ).status_code == 200
    then = effects(db)
    problem(await api(method, path, customer, json=body, headers=key), 422, "key_reused")
    assert effects(db) == then


async def test_a_key_with_another_body_is_refused(api: LocalApi, db: Connection) -> None:
    shoe = await api.item()
    path = f"/items/{shoe['item_id']}"
    assert (await api("PATCH", path, json={"add_stock": 5}, headers=KEY)).json()["stock"] == 6
    problem(await api("PATCH", path, json={"add_stock": 6}, headers=KEY), 422, "key_reused")
    spaced = b'{ "add_stock" : 5 }'
    again = await api("PATCH", path, content=spaced, headers=KEY)
    assert (again.status_code, again.json()["stock"]) == (200, 6)
    assert (await api("PATCH", path, json={"add_stock": 5})).json()["stock"] == 11


async def test_stock_is_added_once_by_many_at_once(api: LocalApi, db: Connection) -> None:
    shoe = await api.item()
    path = f"/items/{shoe['item_id']}"
    answered = await asyncio.gather(
        *(api("PATCH", path, json={"add_stock": 5}, headers=KEY) for _ in range(20))
    )
    assert {a.status_code for a in answered} <= {200, 503}
    assert {a.json()["stock"] for a in answered if a.status_code == 200} == {6}
    assert item_status(db, shoe["item_id"]).stock == 6
    assert value(db, "select count(*) from flashsale.history where action = 'change_item'") == 1


async def test_stock_is_added_once_although_the_first_caller_rolls_back(
    api: LocalApi, db: Connection, database_url: str
) -> None:
    shoe = await api.item()
    with connect(database_url) as tool:
        tool.execute("begin")
        tool.execute(
            "select flashsale.change_item(%s, '{\"add_stock\": 5}', p_idempotency_key => 'k1')",
            [shoe["item_id"]],
        )
        waiting = asyncio.create_task(
            api("PATCH", f"/items/{shoe['item_id']}", json={"add_stock": 5}, headers=KEY)
        )
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        await asyncio.to_thread(eventually, lambda: value(db, waits))
        tool.execute("rollback")
        assert (await waiting).json()["stock"] == 6


async def test_the_history_has_who_did_it(api: LocalApi, db: Connection) -> None:
    shoe = (await api("POST", "/items", json=NEW_ITEM, headers=EVE)).json()
    path = f"/items/{shoe['item_id']}"
    await api("PATCH", path, json={"add_stock": 5, "name": "Boot"}, headers=EVE)
    await api("PATCH", path, json={"add_stock": 1})
    found = rows(db, "select staff, action, before, after from flashsale.history order by 1, 2")
    login = value(db, "select session_user::text")
    assert sorted((row.staff, row.action) for row in found) == sorted(
        [("eve", "create_item"), ("eve", "change_item"), (login, "change_item")]
    )
    (changed,) = [row for row in found if (row.staff, row.action) == ("eve", "change_item")]
    assert changed.before == {"stock": 1, "name": "Shoe"}
    assert changed.after == {"stock": 6, "name": "Boot"}


async def test_an_item_is_found_by_its_sku_over_http(api: LocalApi) -> None:
    await api.item(sku="boot")
    shoe = await api.item(sku="shoe, 42 &c")
    found = await api("GET", "/items", params={"sku": "shoe, 42 &c"})
    assert [i["item_id"] for i in found.json()] == [shoe["item_id"]]
    assert found.headers["cache-control"] == "public, max-age=1"
    assert (await api("GET", "/items?sku=none")).json() == []
    problem(await api("GET", "/items?sku="), 422, "bad_value")
    problem(await api("GET", f"/items?sku={'x' * 65}"), 422, "bad_value")


async def test_a_taken_sku_names_its_item(api: LocalApi) -> None:
    await api.item(sku="boot")
    shoe = await api.item()
    said = problem(await api("POST", "/items", json=NEW_ITEM), 409, "sku_taken")
    assert said["item_id"] == shoe["item_id"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/items?skv=shoe"),
        ("GET", "/items/1?limit=1"),
        ("GET", "/orders?customer=ann"),
        ("GET", "/orders/4294967297?x"),
        ("GET", "/items/1/orders?before=1"),
        ("GET", "/items?limit=1&limit=2"),
        ("POST", "/items?sku=shoe"),
        ("POST", "/items/1/orders?wait=false"),
        ("PATCH", "/items/1?add_stock=1"),
        ("DELETE", "/orders/4294967297?reason=x"),
        ("GET", "/orders/4294967297/events?after=1"),
        ("GET", "/health/live?x=1"),
        ("GET", "/metrics?x=1"),
    ],
)
async def test_unknown_query_parameters_are_refused(
    api: LocalApi, db: Connection, method: str, path: str
) -> None:
    shoe = await api.item()
    await api.order(shoe, "ann")
    then = effects(db)
    problem(await api(method, path, "bob", json=None), 422, "bad_value")
    assert effects(db) == then


async def test_staff_list_the_orders_of_an_item(api: LocalApi) -> None:
    boot, shoe = await api.item(sku="boot"), await api.item(stock=2)
    await api.order(boot, "ann")
    for customer in ("ann", "bob", "cem", "dan", "eva"):
        await api.order(shoe, customer)
    path = f"/items/{shoe['item_id']}/orders"
    seen = []
    page = await api("GET", path, params={"limit": 2})
    for _ in range(9):
        seen += [order["customer_id"] for order in page.json()]
        if "next" not in page.links:
            break
        page = await api("GET", page.links["next"]["url"])
    assert seen == ["ann", "bob", "cem", "dan", "eva"]
    waiting = await api("GET", path, params={"status": "waiting"})
    assert [o["ticket"] for o in waiting.json()] == [3, 4, 5]
    assert waiting.headers["cache-control"] == "private, no-store"
    assert "link" not in waiting.headers
    after = waiting.json()[0]["order_id"]
    rest = await api("GET", path, params={"status": "waiting", "after": after})
    assert [o["ticket"] for o in rest.json()] == [4, 5]
    problem(await api("GET", path, params={"status": "gone"}), 422, "bad_value")
    problem(await api("GET", "/items/99/orders"), 404, "unknown_item")
    problem(await api("GET", path, params={"after": "x"}), 404, "unknown_order")


async def test_lists_name_their_next_page(api: LocalApi) -> None:
    for n in range(3):
        await api.order(await api.item(sku=f"s{n}"), "ann")
    for path in ("/items", "/orders"):
        page, seen = await api("GET", path, "ann", params={"limit": 2}), 0
        seen += len(page.json())
        page = await api("GET", page.links["next"]["url"], "ann")
        assert (seen, len(page.json()), "next" in page.links) == (2, 1, False)


async def test_a_price_is_changed_before_the_first_order(api: LocalApi) -> None:
    shoe = await api.item()
    path = f"/items/{shoe['item_id']}"
    changed = await api("PATCH", path, json={"price": 1250, "currency": "USD", "name": "Boot"})
    assert changed.status_code == 200
    assert (changed.json()["price"], changed.json()["currency"]) == (1250, "USD")
    order = (await api.order(shoe, "ann")).json()
    assert (order["payment"]["amount"], order["payment"]["currency"]) == (1250, "USD")
    problem(await api("PATCH", path, json={"price": 1000}), 409, "has_orders")
    assert (await api("PATCH", path, json={"price": 1250, "name": "Shoe"})).json()["name"] == "Shoe"
    problem(await api("PATCH", path, json={"price": 0}), 422, "bad_value")
    problem(await api("PATCH", path, json={"name": "a\nb"}), 422, "bad_value")
