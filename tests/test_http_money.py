"""Money over HTTP: settling, refunds, tills, more time, and who of the staff did it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from flashsale.testing.clock import Clock
from http_support import Api, LocalApi, api_fixture, problem, success  # noqa: F401 - fixtures
from money_support import event, kinds, mails, open_sessions, payments, take, voided
from support import Connection, one, rows, settle, status, sweep, value

STAFF = {"X-Staff-Id": "eve@shop.example"}


async def buy(api: Api, item: dict[str, Any], customer: str = "ann") -> dict[str, Any]:
    """An order that is paid."""
    order: dict[str, Any] = (await api.order(item, customer)).json()
    assert (await api.pay(order, f"paid {customer}")).json() == {"outcome": "paid"}
    return await shown(api, order, customer)


async def shown(api: Api, order: dict[str, Any], customer: str = "ann") -> dict[str, Any]:
    body: dict[str, Any] = (await api("GET", f"/orders/{order['order_id']}", customer)).json()
    return body


async def refund(api: Api, order: dict[str, Any], **body: Any) -> Any:
    body = {"reason": "a broken leg"} | body
    return await api("POST", f"/orders/{order['order_id']}/refund", json=body, headers=STAFF)


async def pay_offline(api: Api, order: dict[str, Any], reference: str = "till 1") -> Any:
    path = f"/orders/{order['order_id']}/offline-payment"
    return await api("POST", path, json={"reference": reference}, headers=STAFF)


async def extend(api: Api, item: dict[str, Any], seconds: int = 60) -> Any:
    body = {"seconds": seconds, "reason": "a slow provider"}
    return await api("POST", f"/items/{item['item_id']}/extension", json=body, headers=STAFF)


def paid_at(order: dict[str, Any], moment: datetime) -> dict[str, Any]:
    return success(order) | {"occurred_at": moment.isoformat()}


# Terms


async def test_an_item_has_the_seconds_of_settling_and_of_refunds(api: Api) -> None:
    item = await api.item()
    assert (item["settle_seconds"], item["refund_seconds"]) == (2, None)
    other = await api.item(sku="sock", settle_seconds=0, refund_seconds=31_536_000)
    assert (other["settle_seconds"], other["refund_seconds"]) == (0, 31_536_000)

    path = f"/items/{item['item_id']}"
    changes = {"settle_seconds": 60, "refund_seconds": 1}
    changed = (await api("PATCH", path, json=changes)).json()
    assert changed | changes == changed
    changed = (await api("PATCH", path, json={"refund_seconds": None})).json()
    assert (changed["settle_seconds"], changed["refund_seconds"]) == (60, None)


# Settling


async def test_money_that_came_in_time_buys_though_we_hear_of_it_later(
    api: Api, db: Connection, clock: Clock
) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    open_sessions(db)
    clock.advance(58.7)
    captured_at = clock.at()
    clock.advance(2.5)
    sweep(db)
    assert (await shown(api, order))["status"] == "settling"
    again = await api("POST", f"/items/{order['item_id']}/orders", "ann")
    assert (again.status_code, again.json()["order_id"]) == (200, order["order_id"])

    assert (await api.event(paid_at(order, captured_at))).json() == {"outcome": "paid"}

    paid = await shown(api, order)
    assert (paid["status"], datetime.fromisoformat(paid["paid_at"])) == ("paid", captured_at)
    assert mails(db)[-1] == ("paid", "ann")


async def test_a_settling_order_can_not_be_cancelled_or_paid_at_a_till_or_anew(
    api: Api, db: Connection, clock: Clock
) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    open_sessions(db)
    clock.advance(60)
    for _swept in range(2):
        cancelled = await api("DELETE", f"/orders/{order['order_id']}", "ann")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "settling")
        anew = await api("POST", f"/orders/{order['order_id']}/payment", "ann")
        problem(anew, 409, "not_reserved")
        problem(await pay_offline(api, order), 409, "not_reserved")
        sweep(db)
    (void,) = [job for job in take(db) if job.kind == "void"]
    voided(db, void)
    assert (await shown(api, order))["status"] == "expired"


async def test_a_stream_goes_on_while_it_settles_and_ends_when_it_is_refunded(
    api: LocalApi, db: Connection, clock: Clock
) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    open_sessions(db)
    watcher = api.app.state.service.watcher
    watched = watcher.stream(await watcher.see(order["order_id"]))

    async def after(change: Callable[[], Any]) -> bytes:
        """The next event of the stream, after the retry and heartbeats."""
        change()
        async with asyncio.timeout(30):
            while not (part := await anext(watched)).startswith(b"event:"):
                pass
        return bytes(part)

    assert b'"status":"reserved"' in await after(lambda: None)
    clock.set(datetime.fromisoformat(order["expires_at"]))
    assert b'"status":"settling"' in await after(lambda: sweep(db))
    money = one(db, "select * from flashsale.order_status")
    heard = await after(lambda: event(db, "succeeded", money, at=clock.at(-1)))
    assert b'"status":"paid"' in heard
    assert [part async for part in watched] == []

    path = f"/orders/{order['order_id']}/events"
    last = heard.split(b"\n")[1].removeprefix(b"id: ").decode()
    async with asyncio.timeout(30):  # a stream that does not end is heard for ever
        for status_code, statuses in ((204, ""), (200, '"refunded"')):
            answer = await api("GET", path, "ann", headers={"Last-Event-ID": last})
            assert answer.status_code == status_code
            assert statuses in answer.text
            await refund(api, order)
        last = answer.text.split("id: ")[1].split("\n")[0]
        answer = await api("GET", path, "ann", headers={"Last-Event-ID": last})
        assert answer.status_code == 204


# Attempts


async def test_the_first_tab_pays_after_a_decline_and_the_second_is_voided(
    api: Api, db: Connection
) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    open_sessions(db)
    declined = success(order, "declined") | {"type": "payment.failed", "payable": True}
    assert (await api.event(declined)).json() == {"outcome": "failed"}
    await api("POST", f"/orders/{order['order_id']}/payment", "ann")
    open_sessions(db)

    assert (await api.pay(order)).json() == {"outcome": "paid"}

    assert (await shown(api, order))["status"] == "paid"
    second = value(db, "select max(session_id) from flashsale_data.payments where status = 'open'")
    assert kinds(db) == [("void", second)]


async def test_money_after_a_cancellation_goes_back_always(api: Api, db: Connection) -> None:
    order = (await api.order(await api.item(late_payment="keep_if_free"), "ann")).json()
    await api("DELETE", f"/orders/{order['order_id']}", "ann")
    assert (await api.pay(order)).json() == {"outcome": "refund_due"}
    assert len((await api("GET", "/orders", "ann")).json()) == 1
    assert payments(db) == [("refund_due", "cancelled")]


async def test_late_money_names_the_order_that_it_has_bought(
    api: Api, db: Connection, clock: Clock
) -> None:
    item = await api.item(late_payment="keep_if_free", price=4900)
    order = (await api.order(item, "ann")).json()
    clock.advance(60)
    settle(db)
    assert (await api.pay(order)).json() == {"outcome": "paid"}

    new, old = (await api("GET", "/orders", "ann")).json()
    assert (old["status"], old["late_order_id"]) == ("expired", new["order_id"])
    assert (new["status"], new["late_order_id"]) == ("paid", None)
    assert mails(db) == [("paid_late", "ann")]
    story = rows(db, "select what from flashsale.explain_order(%s)", int(new["order_id"]))
    assert "49.00 EUR" in " ".join(row.what for row in story)


@pytest.mark.parametrize("late_payment", ["refund", "keep_if_free"])
async def test_simultaneous_events_of_a_session_have_one_effect(
    api: Api, db: Connection, clock: Clock, late_payment: str
) -> None:
    """The session is not known yet, and the unit is free."""
    item = await api.item(late_payment=late_payment, stock=3)
    order = (await api.order(item, "ann")).json()
    clock.advance(60)
    settle(db)
    answers = await asyncio.gather(*(api.pay(order, f"e{n}") for n in range(4)))
    outcomes = {answer.json()["outcome"] for answer in answers}
    kept = late_payment == "keep_if_free"
    assert outcomes <= ({"paid", "already_paid"} if kept else {"refund_due", "already_paid"})
    done = [status for status, _ in payments(db) if status in ("succeeded", "refund_due")]
    assert done == ["succeeded" if kept else "refund_due"]
    paid = [o for o in (await api("GET", "/orders", "ann")).json() if o["status"] == "paid"]
    assert len(paid) == int(kept)


# Refunds


@pytest.mark.parametrize("return_units", [None, True, False])
async def test_staff_refund_an_order_and_its_unit_comes_back_or_not(
    api: Api, db: Connection, return_units: bool | None
) -> None:
    item = await api.item()
    order = await buy(api, item)
    bob = (await api.order(item, "bob")).json()
    body = {} if return_units is None else {"return_units": return_units}

    answers = [await refund(api, order, **body) for _ in range(2)]

    for answer in answers:
        assert (answer.status_code, answer.json()["status"]) == (200, "refunded")
        assert answer.json()["payment"]["status"] == "refund_due"
        assert answer.json()["ended_at"] is not None
    assert kinds(db) == [("refund", f"s{order['order_id']}")]
    settle(db)
    expected = "waiting" if return_units is False else "reserved"
    assert (await shown(api, bob, "bob"))["status"] == expected
    counts = (await api("GET", f"/items/{item['item_id']}")).json()
    assert (counts["stock"], counts["paid"]) == (int(return_units is not False), 0)
    (noted,) = rows(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.staff, noted.action, noted.order_id, noted.reason) == (
        STAFF["X-Staff-Id"],
        "refund_order",
        int(order["order_id"]),
        "a broken leg",
    )
    assert (noted.before, noted.after["status"]) == ({"status": "paid"}, "refunded")
    event(db, "refunded", status(db, int(order["order_id"])))
    assert ("order_refunded", "ann") in mails(db)
    assert (await api.order(item, "ann")).status_code == 202


async def test_only_a_paid_order_is_refunded(api: Api) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    assert problem(await refund(api, order), 409, "not_paid")["hint"]
    assert (await shown(api, order))["status"] == "reserved"


async def test_a_customer_gives_a_paid_order_back_in_time(
    api: Api, db: Connection, clock: Clock
) -> None:
    item = await api.item(refund_seconds=100)
    order = await buy(api, item)
    path = f"/orders/{order['order_id']}"
    problem(await api("DELETE", path, "bob"), 404, "unknown_order")
    clock.advance(99)
    answers = [await api("DELETE", path, "ann") for _ in range(2)]
    for answer in answers:
        assert (answer.status_code, answer.json()["status"]) == (200, "refunded")
    assert payments(db) == [("refund_due", "customer")]
    settle(db)
    assert (await api.order(item, "bob")).status_code == 201


@pytest.mark.parametrize(("terms", "seconds"), [({}, 0), ({"refund_seconds": 100}, 100)])
async def test_a_customer_does_not_give_it_back_later_or_if_it_was_not_promised(
    api: Api, clock: Clock, terms: dict[str, Any], seconds: int
) -> None:
    order = await buy(api, await api.item(**terms))
    clock.advance(seconds)
    problem(await api("DELETE", f"/orders/{order['order_id']}", "ann"), 409, "already_paid")
    assert (await shown(api, order))["status"] == "paid"


async def test_a_refund_at_the_provider_is_one_of_the_order(api: Api, db: Connection) -> None:
    item = await api.item()
    order = await buy(api, item)
    bob = (await api.order(item, "bob")).json()
    back = success(order, "back") | {"type": "payment.refunded"}
    outcomes = [(await api.event(back | {"event_id": e})).json()["outcome"] for e in "ab"]
    assert outcomes == ["refunded", "ignored"]
    assert (await shown(api, order))["status"] == "refunded"
    settle(db)
    assert (await shown(api, bob, "bob"))["status"] == "reserved"
    noted = one(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.staff, noted.action) == (None, "refund_at_provider")
    assert ("order_refunded", "ann") in mails(db)


# Tills


async def test_a_till_takes_the_money_and_the_session_is_voided(api: Api, db: Connection) -> None:
    order = (await api.order(await api.item(), "ann")).json()
    open_sessions(db)

    answers = [await pay_offline(api, order, "cash-1") for _ in range(2)]

    for answer in answers:
        assert (answer.status_code, answer.json()["status"]) == (200, "paid")
        payment = answer.json()["payment"]
        assert (payment["status"], payment["reference"]) == ("succeeded", "cash-1")
        assert payment["checkout_url"] is None
    assert kinds(db) == [("void", f"s{order['order_id']}")]
    (noted,) = rows(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.staff, noted.action) == (STAFF["X-Staff-Id"], "pay_offline")


async def test_a_till_and_the_provider_both_take_the_money_and_one_gives_it_back(
    api: Api, db: Connection
) -> None:
    """The till names the payment after the session."""
    order = (await api.order(await api.item(), "ann")).json()
    open_sessions(db)
    await pay_offline(api, order, f"s{order['order_id']}")
    assert (await api.pay(order)).json() == {"outcome": "refund_due"}
    assert payments(db) == [("refund_due", "superseded"), ("succeeded", None)]


async def test_what_a_till_has_taken_it_pays_out(api: Api, db: Connection) -> None:
    order = (await api.order(await api.item(refund_seconds=100), "ann")).json()
    await pay_offline(api, order)
    problem(await api("DELETE", f"/orders/{order['order_id']}", "ann"), 409, "already_paid")
    refunded = (await refund(api, order)).json()
    assert (refunded["status"], refunded["payment"]["status"]) == ("refunded", "refunded")
    assert [kind for kind, _ in kinds(db)] == []


async def test_a_reference_belongs_to_one_order(api: Api) -> None:
    item = await api.item(stock=2)
    ann = (await api.order(item, "ann")).json()
    bob = (await api.order(item, "bob")).json()
    await pay_offline(api, ann)
    assert problem(await pay_offline(api, bob), 409, "reference_taken")["hint"]
    problem(await pay_offline(api, ann, "another"), 409, "not_reserved")
    assert (await shown(api, bob, "bob"))["status"] == "reserved"


# More time


async def test_all_running_deadlines_of_an_item_are_moved_later(
    api: Api, db: Connection, clock: Clock
) -> None:
    item, other = await api.item(stock=3), await api.item(sku="sock")
    orders = [(await api.order(item, name)).json() for name in ("ann", "bob")]
    elsewhere = (await api.order(other, "ann")).json()
    await pay_offline(api, orders[1])
    assert (await extend(api, item)).json() == {"extended": 1}
    clock.advance(61)
    assert (await shown(api, orders[0]))["status"] == "reserved"
    assert (await shown(api, elsewhere))["status"] == "expired"
    clock.advance(60)
    assert (await extend(api, item)).json() == {"extended": 0}
    noted = rows(db, "select * from flashsale.history where action = 'extend_holds'")
    assert [(n.staff, n.item_id, n.after["extended"], n.reason) for n in noted] == [
        (STAFF["X-Staff-Id"], item["item_id"], 1, "a slow provider")  # what moved none is not noted
    ]


# Requests


STAFF_CALLS: dict[str, dict[str, Any]] = {
    "/orders/{}/refund": {"reason": "x"},
    "/orders/{}/offline-payment": {"reference": "x"},
    "/items/{}/extension": {"seconds": 1, "reason": "x"},
}


@pytest.mark.parametrize("path", STAFF_CALLS)
@pytest.mark.parametrize("staff", ["", " ", "x" * 129, b"a\x00b", b"a\x7f", "ä".encode()])
async def test_a_bad_name_of_staff_is_refused(
    api: Api, db: Connection, path: str, staff: Any
) -> None:
    item = await api.item()
    order = (await api.order(item, "ann")).json()
    place = path.format(item["item_id"] if "items" in path else order["order_id"])
    answer = await api("POST", place, json=STAFF_CALLS[path], headers={"X-Staff-Id": staff})
    assert "staff" in problem(answer, 422, "bad_value")["detail"]
    assert rows(db, "select * from flashsale.history where action <> 'create_item'") == []


@pytest.mark.parametrize(("staff", "noted"), [("x" * 128, "x" * 128), (None, "flashsale")])
async def test_without_a_name_the_history_has_the_service_s_login(
    api: Api, db: Connection, staff: str | None, noted: str
) -> None:
    item = await api.item()
    await api.order(item, "ann")  # else there is nothing to extend, and nothing to note
    headers = {} if staff is None else {"X-Staff-Id": staff}
    body = STAFF_CALLS["/items/{}/extension"]
    await api("POST", f"/items/{item['item_id']}/extension", json=body, headers=headers)
    assert value(db, "select staff from flashsale.history where action <> 'create_item'") == (
        staff or value(db, "select session_user")
    )


BAD_BODIES: list[tuple[str, Any]] = [
    ("refund", {}),
    ("refund", {"reason": ""}),
    ("refund", {"reason": " "}),
    ("refund", {"reason": "x" * 1001}),
    ("refund", {"reason": "a\0"}),
    ("refund", {"reason": None}),
    ("refund", {"reason": "x", "return_units": None}),
    ("refund", {"reason": "x", "return_units": "no"}),
    ("refund", {"reason": "x", "amount": 1}),
    ("offline-payment", {}),
    ("offline-payment", {"reference": ""}),
    ("offline-payment", {"reference": "x" * 256}),
    ("offline-payment", {"reference": "a\nb"}),
    ("offline-payment", {"reference": 7}),
    ("extension", {"seconds": 0, "reason": "x"}),
    ("extension", {"seconds": -1, "reason": "x"}),
    ("extension", {"seconds": 604_801, "reason": "x"}),
    ("extension", {"seconds": 1.5, "reason": "x"}),
    ("extension", {"seconds": 1}),
    ("extension", {"reason": "x"}),
]


@pytest.mark.parametrize(("verb", "body"), BAD_BODIES)
async def test_a_bad_body_changes_nothing(
    api: Api, db: Connection, verb: str, body: dict[str, Any]
) -> None:
    item = await api.item()
    order = (await api.order(item, "ann")).json()
    if verb == "refund":
        await api.pay(order)
    before = await shown(api, order)
    place = f"/items/{item['item_id']}" if verb == "extension" else f"/orders/{order['order_id']}"
    problem(await api("POST", f"{place}/{verb}", json=body), 422, "bad_value")
    problem(await api("POST", f"{place}/{verb}"), 422, "bad_value")
    assert await shown(api, order) == before
    assert rows(db, "select * from flashsale.history where action <> 'create_item'") == []


async def test_what_does_not_exist_is_not_found(api: Api) -> None:
    for order_id in ("4294967297", "1", "x"):
        problem(await refund(api, {"order_id": order_id}), 404, "unknown_order")
        problem(await pay_offline(api, {"order_id": order_id}), 404, "unknown_order")
    problem(await extend(api, {"item_id": 99}), 404, "unknown_item")
