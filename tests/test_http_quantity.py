"""Orders for several units, and limits per customer, over HTTP: the mapping, and each code once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flashsale.api.unit_answers import asked_for
from flashsale.database.connections import Connections
from flashsale.models import UnitRequest, UnitRequestBody
from http_support import (
    Api,
    LocalApi,
    api_fixture,  # noqa: F401 - a fixture
    part,
    problem,
    success,
    told_to,
)
from support import Connection, sweep, value


def amounts(order: dict[str, Any]) -> tuple[int, int | None, int | None]:
    """The units asked for, those granted, and the amount."""
    payment = order["payment"] or {"amount": None}
    return order["quantity"], order["units"], payment["amount"]


async def test_an_item_shows_its_limits(api: Api) -> None:
    item = await api.item(max_per_order=4, max_per_customer=6, product="shirt")
    limits = {"max_per_order": 4, "max_per_customer": 6, "product": "shirt"}
    assert item | limits == item
    shown = (await api("GET", f"/items/{item['item_id']}")).json()
    assert shown | limits == shown
    plain = await api.item(sku="plain")
    defaults = {"max_per_order": 1, "max_per_customer": 1, "product": None}
    assert plain | defaults == plain


async def test_limits_are_changed_all_or_nothing(api: Api) -> None:
    item = await api.item(max_per_order=2)
    path = f"/items/{item['item_id']}"
    changed = (await api("PATCH", path, json={"max_per_order": 3, "max_per_customer": 9})).json()
    assert (changed["max_per_order"], changed["max_per_customer"]) == (3, 9)
    problem(
        await api("PATCH", path, json={"hold_seconds": 9, "max_per_order": 10}), 422, "bad_value"
    )
    changed = (await api("PATCH", path, json={"max_per_customer": None})).json()
    assert (changed["max_per_order"], changed["max_per_customer"]) == (3, 3)
    assert changed["hold_seconds"] == item["hold_seconds"]


@pytest.mark.parametrize(
    "terms",
    [
        {"max_per_order": 0},
        {"max_per_order": 101},
        {"max_per_order": None},
        {"max_per_order": "2"},
        {"max_per_customer": 0},
        {"max_per_customer": 10_001},
        {"max_per_order": 3, "max_per_customer": 2},
        {"product": ""},
        {"product": " "},
        {"product": "x" * 65},
        {"product": "a\nb"},
        {"product": 1},
    ],
)
async def test_limits_out_of_range_are_refused(api: Api, terms: dict[str, Any]) -> None:
    item = {"sku": "s", "name": "n", "price": 1, "currency": "EUR", "stock": 1, "hold_seconds": 9}
    problem(await api("POST", "/items", json=item | terms), 422, "bad_value")
    assert (await api("GET", "/items")).json() == []
    there = await api.item()
    problem(await api("PATCH", f"/items/{there['item_id']}", json=terms), 422, "bad_value")
    shown = (await api("GET", f"/items/{there['item_id']}")).json()
    assert shown | {"as_of": there["as_of"]} == there


async def test_several_units_are_one_order_with_one_amount(api: Api) -> None:
    item = await api.item(stock=5, max_per_order=3)
    response = await api.order(item, "ann", json={"quantity": 3})
    assert response.status_code == 201
    order = response.json()
    assert (order["status"], *amounts(order)) == ("reserved", 3, 3, 3000)
    assert (await api("GET", f"/orders/{order['order_id']}", "ann")).json() == order
    assert (await api("GET", "/orders", "ann")).json() == [order]
    shown = (await api("GET", f"/items/{item['item_id']}")).json()
    assert (shown["available"], shown["issued"]) == (2, 3)
    assert (await api.pay(order)).json() == {"outcome": "paid"}
    paid = (await api("GET", f"/orders/{order['order_id']}", "ann")).json()
    assert (paid["status"], *amounts(paid)) == ("paid", 3, 3, 3000)


async def test_an_order_without_a_quantity_is_for_one_unit(api: Api) -> None:
    item = await api.item(stock=5, max_per_order=3)
    bodies: list[dict[str, Any]] = [{}, {"json": {}}, {"json": {"quantity": 1}}, {"json": None}]
    for n, body in enumerate(bodies):
        order = (await api.order(item, f"c{n}", **body)).json()
        assert amounts(order) == (1, 1, 1000)


async def test_a_customer_who_is_content_with_fewer_gets_what_is_there(api: Api) -> None:
    item = await api.item(stock=2, max_per_order=4)
    response = await api.order(item, "ann", json={"quantity": 4, "min_quantity": 2})
    assert response.status_code == 201
    assert amounts(response.json()) == (4, 2, 2000)


async def test_a_customer_who_wants_all_waits_for_all(api: Api, db: Connection) -> None:
    item = await api.item(stock=2, max_per_order=4)
    response = await api.order(item, "ann", json={"quantity": 3})
    assert response.status_code == 202
    order = response.json()
    assert (order["status"], order["position"], *amounts(order)) == ("waiting", 1, 3, None, None)
    await api("PATCH", f"/items/{item['item_id']}", json={"add_stock": 1})
    sweep(db)
    order = (await api("GET", f"/orders/{order['order_id']}", "ann")).json()
    assert (order["status"], *amounts(order)) == ("reserved", 3, 3, 3000)


async def test_who_does_not_want_to_wait_takes_no_tickets(api: Api) -> None:
    item = await api.item(stock=2, max_per_order=4)
    body = {"quantity": 4, "min_quantity": 3, "wait": False}
    problem(await api.order(item, "ann", json=body), 409, "sold_out")
    assert (await api("GET", f"/items/{item['item_id']}")).json()["issued"] == 0
    enough = await api.order(item, "ann", json=body | {"min_quantity": 2})
    assert (enough.status_code, amounts(enough.json())) == (201, (4, 2, 2000))


@pytest.mark.parametrize(
    "body",
    [
        {"quantity": 0},
        {"quantity": -1},
        {"quantity": 101},
        {"quantity": 2**63},
        {"quantity": "2"},
        {"quantity": 1.5},
        {"quantity": None},
        {"quantity": True},
        {"min_quantity": 0},
        {"quantity": 2, "min_quantity": 3},
        {"min_quantity": 2},
        {"quantity": 2, "min_quantity": "1"},
        {"quantity": 2, "most": 3},
    ],
)
async def test_a_quantity_out_of_range_is_refused_in_both_ways(
    api: LocalApi, body: dict[str, Any]
) -> None:
    item = await api.item(stock=9, max_per_order=9)
    express = problem(await api.order(item, "ann", json=body), 422, "bad_value")
    headers = {"Content-Type": "application/json; charset=utf-8"}  # which the express way avoids
    assert problem(await api.order(item, "ann", json=body, headers=headers), 422, "bad_value") == (
        express
    )
    assert "Expected" in express["detail"] or "unknown field" in express["detail"]
    assert (await api("GET", f"/items/{item['item_id']}")).json()["issued"] == 0
    assert (await api("GET", "/orders", "ann")).json() == []


async def test_more_than_the_limits_allow_is_too_many(api: Api) -> None:
    item = await api.item(stock=9, max_per_order=2, max_per_customer=3)
    body = problem(await api.order(item, "ann", json={"quantity": 3}), 422, "too_many")
    assert "max_per_order" in body["hint"] and "order_id" not in body
    order = (await api.order(item, "ann", json={"quantity": 2})).json()
    await api.pay(order)
    problem(await api.order(item, "ann", json={"quantity": 2}), 422, "too_many")
    last = await api.order(item, "ann")
    assert (last.status_code, amounts(last.json())) == (201, (1, 1, 1000))
    await api.event(success(last.json(), "e2"))
    full = await api.order(item, "ann")  # at the limit: the latest paid order is the answer
    assert (full.status_code, full.json()["order_id"]) == (200, last.json()["order_id"])
    assert (await api("GET", f"/items/{item['item_id']}")).json()["issued"] == 3


async def test_an_open_order_for_another_variant_is_named(api: Api) -> None:
    small = await api.item(sku="S", product="shirt", stock=5, max_per_order=2)
    large = await api.item(sku="L", product="shirt", stock=5, max_per_order=2)
    order = (await api.order(small, "ann")).json()
    body = problem(await api.order(large, "ann"), 409, "has_other_order")
    assert body["order_id"] == order["order_id"]
    assert body["hint"]
    slow = {"Content-Type": "application/json; charset=utf-8"}  # which the express way avoids
    said = await api.order(large, "ann", json={"quantity": 2}, headers=slow)
    assert problem(said, 409, "has_other_order") == body
    assert (await api.order(small, "ann")).status_code == 200
    assert (await api("GET", f"/orders/{body['order_id']}", "ann")).status_code == 200
    await api("DELETE", f"/orders/{body['order_id']}", "ann")
    assert (await api.order(large, "ann", json={"quantity": 2})).status_code == 201


async def test_variants_share_the_limit_of_a_customer(api: Api) -> None:
    terms = {"product": "shirt", "stock": 5, "max_per_order": 2, "max_per_customer": 2}
    small, large = await api.item(sku="S", **terms), await api.item(sku="L", **terms)
    await api.pay((await api.order(small, "ann")).json())
    problem(await api.order(large, "ann", json={"quantity": 2}), 422, "too_many")
    assert (await api.order(large, "ann")).status_code == 201


async def test_a_key_belongs_to_its_request(api: Api) -> None:
    item = await api.item(stock=9, max_per_order=4)
    key = {"Idempotency-Key": "k"}
    body = {"quantity": 2, "min_quantity": 1}
    first = (await api.order(item, "ann", json=body, headers=key)).json()
    again = await api.order(item, "ann", json=body, headers=key)
    assert (again.status_code, again.json()) == (200, first)
    for other in ({"quantity": 3, "min_quantity": 1}, {"quantity": 2}, body | {"wait": False}, {}):
        said = problem(await api.order(item, "ann", json=other, headers=key), 422, "key_reused")
        assert said["hint"]
    problem(await api.order(item, "ann", headers=key), 422, "key_reused")
    await api("DELETE", f"/orders/{first['order_id']}", "ann")
    problem(await api.order(item, "ann", headers=key), 422, "key_reused")  # also when it has ended
    ended = await api.order(item, "ann", json=body, headers=key)
    assert (ended.status_code, ended.json()["status"]) == (200, "cancelled")


async def test_a_key_of_a_request_without_a_body_is_the_same_with_its_defaults(api: Api) -> None:
    item = await api.item(stock=9, max_per_order=4)
    key = {"Idempotency-Key": "k"}
    first = (await api.order(item, "ann", headers=key)).json()
    for same in ({"wait": True}, {"quantity": 1}, {"quantity": 1, "min_quantity": 1}):
        again = await api.order(item, "ann", json=same, headers=key)
        assert (again.status_code, again.json()) == (200, first)


async def test_one_batch_takes_requests_for_any_number_of_units(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = await api.item(stock=100, max_per_order=4)
    calls = api.app.state.service.database
    batches: list[list[tuple[int, int | None]]] = []
    real = calls.reserve_many

    async def reserve_many(requests: Any, deadline: float) -> Any:
        batches.append([(it.quantity, it.min_quantity) for it in requests])
        return await real(requests, deadline)

    monkeypatch.setattr(calls, "reserve_many", reserve_many)
    wanted = [1 + n % 4 for n in range(40)]
    answers = await asyncio.gather(
        *(api.order(item, f"c{n}", json={"quantity": units}) for n, units in enumerate(wanted))
    )
    assert [a.status_code for a in answers] == [201] * len(wanted)
    assert [amounts(a.json()) for a in answers] == [(q, q, 1000 * q) for q in wanted]
    assert max(len(batch) for batch in batches) > 5
    assert any(len(set(batch)) > 1 for batch in batches)


async def test_arrays_of_quantities_are_sent_only_if_somebody_asks_for_more_than_one(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = await api.item(stock=10, max_per_order=4)
    calls = api.app.state.service.database
    sent: list[tuple[str, int]] = []

    def watched(real: Any) -> Any:
        async def call(pool: Connections, query: str, *args: Any, **kwargs: Any) -> Any:
            sent.append((query.split("(")[0].rpartition(".")[2], len(args)))
            return await real(pool, query, *args, **kwargs)

        return call

    monkeypatch.setattr(Connections, "all", watched(Connections.all))  # which one() calls
    loop = asyncio.get_running_loop()
    asked = [UnitRequest(item["item_id"], f"c{n}") for n in range(2)]
    more = UnitRequest(item["item_id"], "c9", quantity=2)
    await calls.reserve(asked[0], loop.time() + 5)
    await calls.reserve_many(asked, loop.time() + 5)
    await calls.reserve(more, loop.time() + 5)
    await calls.reserve_many([asked[0], more], loop.time() + 5)
    assert sent == [("reserve", 4), ("reserve_many", 4), ("reserve", 6), ("reserve_many", 6)]


async def test_the_body_reaches_sql_by_the_express_way_too(api: LocalApi, db: Connection) -> None:
    item = await api.item(stock=9, max_per_order=4)
    path = f"/items/{item['item_id']}/orders".encode()
    body = b'{"quantity":4,"min_quantity":2,"wait":false}'
    length = (b"content-length", str(len(body)).encode())
    answer = await told_to(api.app, path, [part(body, more=False)], length)
    assert answer.status == 201
    found = value(db, "select (quantity, units)::text from flashsale.order_status")
    assert found == "(4,4)"
    asked = asked_for(UnitRequest(1, "ann", "k"), UnitRequestBody(False, 4, 2))
    assert asked == UnitRequest(1, "ann", "k", False, 4, 2)
    assert asked_for(asked, None) is asked
