"""Money through all parts: the HTTP service, the worker, and the simulated provider.

Each runs as it does in production, over real HTTP and with real time, and tells the others itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from granian.constants import Interfaces
from granian.server.embed import Server

from flashsale.api.app import create_app
from flashsale.settings import Settings
from flashsale.worker import run as worker
from flashsale.worker.mail import Mail
from http_support import NEW_ITEM, Api
from simulator_support import SECRET, Stage, Webhook
from support import Connection, rows, value

DEADLINE_SECONDS = 60


class Inbox:
    """A sender that keeps what it sent."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []

    async def send(self, mail: Mail) -> None:
        self.mails.append(mail)

    def subjects(self, customer: str) -> list[str]:
        return [mail.subject for mail in self.mails if mail.to == customer]


class Shop(Api):
    """The service, with its worker, the provider and the e-mails."""

    def __init__(self, client: httpx.AsyncClient, stage: Stage, inbox: Inbox) -> None:
        super().__init__(client)
        self.stage = stage
        self.inbox = inbox

    async def sale(self, *customers: str, **terms: Any) -> list[dict[str, Any]]:
        """An item, and the orders of these customers, in their order."""
        item = await self.item(**terms)
        return [(await self.order(item, customer)).json() for customer in customers]

    async def now(self, order: dict[str, Any]) -> dict[str, Any]:
        path = f"/orders/{order['order_id']}"
        body: dict[str, Any] = (await self("GET", path, order["customer_id"])).json()
        return body

    async def until(
        self, order: dict[str, Any], *statuses: str, payment: str | None = None
    ) -> dict[str, Any]:
        """Waits until an order has one of these statuses, and its payment has this one."""

        async def reached() -> Any:
            shown = await self.now(order)
            paying = (shown["payment"] or {}).get("status")
            return shown if shown["status"] in statuses and payment in (None, paying) else None

        shown: dict[str, Any] = await until(reached, f"{statuses} {payment}")
        return shown

    async def ready(self, order: dict[str, Any]) -> dict[str, Any]:
        """Waits until the customer can pay."""
        return await self.until(order, "reserved", payment="open")

    async def complete(self, order: dict[str, Any], outcome: str = "succeed") -> httpx.Response:
        """The customer pays, or tries to, in the session that the order shows."""
        return await self.stage.complete({"session_id": session_of(order)}, outcome)

    async def session(self, session_id: str) -> dict[str, Any]:
        body: dict[str, Any] = (await self.stage.client.get(f"/sessions/{session_id}")).json()
        return body

    async def at_the_provider(self, session_id: str, status: str) -> dict[str, Any]:
        """Waits until a session has this status."""

        async def reached() -> Any:
            session = await self.session(session_id)
            return session if session["status"] == status else None

        session: dict[str, Any] = await until(reached, f"a session {status}")
        return session


def session_of(order: dict[str, Any]) -> str:
    return str(order["payment"]["checkout_url"]).rsplit("/", 1)[1]


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What the condition returns, as soon as that is true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (result := await condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.02)
    return result


@asynccontextmanager
async def served(settings: Settings, port: int) -> AsyncIterator[None]:
    """The HTTP service on its port."""
    app = create_app(settings)
    server = Server(app, port=port, interface=Interfaces.ASGI, log_enabled=False, websockets=False)
    running = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait_for(running, DEADLINE_SECONDS)


@asynccontextmanager
async def worked(settings: Settings, inbox: Inbox) -> AsyncIterator[None]:
    """A worker with the real provider."""
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(settings, sender=inbox, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, DEADLINE_SECONDS)


@pytest.fixture(name="shop")
async def shop_fixture(database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    hook, inbox = Webhook(), Inbox()  # never started: the service is on its port
    stage = Stage(tmp_path / "ledger.jsonl", hook)
    settings = Settings(
        database_url=database_url,
        webhook_secret=SECRET,
        provider_url=stage.url,
        provider_timeout_seconds=1.0,
        sse_poll_seconds=0.05,
        job_poll_seconds=0.02,
        sweep_interval_seconds=0.1,
    )
    address = f"http://127.0.0.1:{hook.port}"
    try:
        await stage.start()
        async with (
            served(settings, hook.port),
            worked(settings, inbox),
            httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client,
        ):
            shop = Shop(client, stage, inbox)

            async def is_ready() -> bool:
                with suppress(httpx.TransportError):
                    return (await client.get("/health/ready")).is_success
                return False

            await until(is_ready, "the service")
            yield shop
    finally:
        await stage.stop()
        await stage.client.aclose()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# Outages


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"fail": 1}, {"hang": 1}], ids=["fails", "hangs"])
async def test_an_outage_costs_nobody_their_place_and_it_goes_on_by_itself(
    shop: Shop, db: Connection, fault: dict[str, Any]
) -> None:
    await shop.stage.faults(**fault)
    orders = await shop.sale("ann", "bob", "cid", "dan", "eve", hold_seconds=2)
    ends = time.monotonic() + 11
    while time.monotonic() < ends:
        shown = [(await shop.now(order))["status"] for order in orders]
        assert set(shown) <= {"waiting", "reserved"}
        await asyncio.sleep(0.2)
    assert shop.inbox.mails == []
    # From the next hold on, so that a slow machine can pay in time.
    await shop("PATCH", f"/items/{orders[0]['item_id']}", json={"hold_seconds": 60})
    await asyncio.sleep(3)
    await shop.stage.faults()

    for order in orders:
        open_order = await shop.ready(order)
        assert open_order["ticket"] == order["ticket"]
        await shop.complete(open_order)
        paid = await shop.until(order, "paid")
        assert moment(paid["paid_at"]) < moment(paid["expires_at"])
        reason = {"reason": "the next one wants to try too"}
        await shop("POST", f"/orders/{order['order_id']}/refund", json=reason)
    assert not [mail for mail in shop.inbox.mails if "expired" in mail.subject]
    assert rows(db, "select * from flashsale.dead_letter") == []


@pytest.mark.slow
async def test_the_database_is_told_that_the_provider_is_down_and_that_it_is_back(
    shop: Shop, db: Connection
) -> None:
    """All holds go back to the line meanwhile; the next ones start when the provider is back."""
    await shop.stage.faults(fail=1)
    orders = await shop.sale(*(f"c{n}" for n in range(12)), stock=10, hold_seconds=3)
    down = "select is_down from flashsale.provider_status"

    async def is_down() -> bool:
        return bool(value(db, down))

    async def all_wait() -> bool:
        return {(await shop.now(order))["status"] for order in orders} == {"waiting"}

    await until(is_down, "the breaker")
    assert "flashsale_provider_down 1.0" in (await shop("GET", "/metrics")).text
    await until(all_wait, "the end of the holds")
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        assert await all_wait()
        assert await is_down()
        await asyncio.sleep(0.2)
    await shop.stage.faults()
    for order in orders[:10]:
        await shop.ready(order)
    assert not await is_down()
    assert {(await shop.now(order))["status"] for order in orders[10:]} == {"waiting"}
    subjects = {
        subject for order in orders for subject in shop.inbox.subjects(order["customer_id"])
    }
    assert subjects <= {"Shoe: it is your turn", "Shoe: reserved for you"}


@pytest.mark.slow
async def test_the_backlog_of_an_outage_costs_nobody_their_place(
    shop: Shop, db: Connection
) -> None:
    """It takes longer than a hold, also for those who come when the provider is back."""
    await shop.stage.faults(fail=1)
    early = await shop.sale(*(f"c{n}" for n in range(60)), stock=200, hold_seconds=2)

    async def is_down() -> bool:
        return bool(value(db, "select is_down from flashsale.provider_status"))

    await until(is_down, "the breaker")
    await shop.stage.faults(latency_ms=500)
    for n in range(60):
        await shop.order(early[0], f"d{n}")
    could_pay = "select from flashsale_data.payments p where p.order_id = o.order_id and opened_at"
    without = f"select customer_id from flashsale_data.orders o where not exists ({could_pay}"

    async def all_could_pay() -> bool:
        assert rows(db, f"{without} is not null) and ended_at is not null") == []
        return rows(db, f"{without} is not null)") == []

    await until(all_could_pay, "the sessions")


@pytest.mark.slow
async def test_a_long_hold_is_tried_until_the_provider_is_back(shop: Shop, db: Connection) -> None:
    await shop.stage.stop()
    (order,) = await shop.sale("ann", hold_seconds=1800)

    async def tried_often() -> bool:
        return bool(value(db, "select is_down from flashsale.provider_status"))

    await until(tried_often, "the breaker")  # after ten tries, which used to be the last one
    shown = await shop.now(order)
    assert (shown["status"], shown["payment"]["status"]) == ("reserved", "requested")
    await shop.stage.start()
    began = time.monotonic()
    open_order = await shop.ready(order)
    assert time.monotonic() - began < 20, "and not minutes later"
    assert open_order["expires_at"] == order["expires_at"]
    await shop.complete(open_order)
    await shop.until(order, "paid")


# Settling


@pytest.mark.slow
async def test_money_in_the_last_second_buys_though_its_event_is_late(
    shop: Shop, db: Connection
) -> None:
    await shop.stage.faults(delay_events=1, delay_ms=4000)
    ann, bob = await shop.sale("ann", "bob", hold_seconds=3, settle_seconds=10)
    ann = await shop.ready(ann)
    await asyncio.sleep((moment(ann["expires_at"]) - datetime.now(UTC)).total_seconds() - 0.7)
    await shop.complete(ann)
    session = await shop.session(session_of(ann))
    paid = await shop.until(ann, "paid", "expired")  # by the answer to the void
    assert paid["status"] == "paid"
    assert moment(paid["paid_at"]) < moment(paid["expires_at"])
    # The provider's time of the capture, in the database's microseconds.
    difference = moment(paid["paid_at"]) - moment(session["captured_at"])
    assert abs(difference) < timedelta(milliseconds=1)

    async def event_came() -> bool:
        found = rows(db, "select outcome from flashsale_data.payment_events")
        return [row.outcome for row in found] == ["already_paid"]

    await until(event_came, "the late event")
    assert (await shop.now(bob))["status"] == "waiting"
    assert shop.inbox.subjects("ann")[-1] == "Shoe: paid"


async def test_an_unpaid_hold_settles_and_the_next_is_served(shop: Shop) -> None:
    ann, bob = await shop.sale("ann", "bob", hold_seconds=2, settle_seconds=30)
    await shop.ready(ann)
    expired = await shop.until(ann, "expired")
    await shop.ready(bob)
    # The provider's answer has ended it, and not the end of settle_seconds.
    assert moment(expired["ended_at"]) - moment(expired["expires_at"]) < timedelta(seconds=20)


# Attempts


async def test_a_declined_session_that_is_paid_after_all_buys_and_the_second_is_voided(
    shop: Shop,
) -> None:
    await shop.stage.faults(decline_keeps_open=1)
    (order,) = await shop.sale("ann")
    first = await shop.ready(order)
    await shop.complete(first, "fail")
    await shop.until(order, "reserved", payment="failed")
    await shop("POST", f"/orders/{order['order_id']}/payment", "ann")
    second = await shop.ready(order)
    assert session_of(first) != session_of(second)
    await shop.complete(first)
    await shop.until(order, "paid")
    await shop.at_the_provider(session_of(second), "voided")
    totals = await shop.stage.totals()
    assert (totals["captured"], totals["refunded"]) == (1, 0)


# Refunds


async def test_the_money_of_a_refunded_order_goes_back_once(shop: Shop, db: Connection) -> None:
    ann, bob, cid = await shop.sale("ann", "bob", "cid", refund_seconds=3600)
    for order, give_back in ((ann, "customer"), (bob, "staff")):
        open_order = await shop.ready(order)
        await shop.complete(open_order)
        await shop.until(order, "paid")
        path = f"/orders/{order['order_id']}"
        for _ in range(2):
            answer = (
                await shop("DELETE", path, order["customer_id"])
                if give_back == "customer"
                else await shop("POST", f"{path}/refund", json={"reason": "a broken leg"})
            )
            assert (answer.status_code, answer.json()["status"]) == (200, "refunded")
        await shop.until(order, "refunded", payment="refunded")
        await shop.at_the_provider(session_of(open_order), "refunded")
    await shop.ready(cid)
    totals = await shop.stage.totals()
    assert (totals["captured"], totals["refunded"]) == (2, 2)

    async def told() -> bool:
        return all("Shoe: refunded" in shop.inbox.subjects(name) for name in ("ann", "bob"))

    await until(told, "the e-mails")


async def test_a_refund_at_the_provider_offers_the_unit_again(shop: Shop) -> None:
    ann, bob = await shop.sale("ann", "bob")
    ann = await shop.ready(ann)
    await shop.complete(ann)
    await shop.until(ann, "paid")
    await shop.stage.refund({"session_id": session_of(ann)})
    await shop.until(ann, "refunded", payment="refunded")
    await shop.ready(bob)


# Tills


async def test_a_till_voids_the_open_session(shop: Shop) -> None:
    (order,) = await shop.sale("ann")
    open_order = await shop.ready(order)
    path = f"/orders/{order['order_id']}/offline-payment"
    answer = await shop("POST", path, json={"reference": "cash-1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "paid")
    await shop.at_the_provider(session_of(open_order), "voided")
    assert (await shop.complete(open_order)).status_code == 409


async def test_who_pays_online_and_at_the_till_gets_one_of_them_back(shop: Shop) -> None:
    """The till names the payment after the session, and the event is late."""
    await shop.stage.faults(delay_events=1, delay_ms=1500)
    (order,) = await shop.sale("ann")
    open_order = await shop.ready(order)
    await shop.complete(open_order)
    path = f"/orders/{order['order_id']}/offline-payment"
    answer = await shop("POST", path, json={"reference": session_of(open_order)})
    assert answer.json()["status"] == "paid"
    await shop.at_the_provider(session_of(open_order), "refunded")
    assert (await shop.now(order))["payment"]["reference"] == session_of(open_order)


# What a customer pays for


async def test_the_checkout_page_shows_the_item_s_name(shop: Shop) -> None:
    (order,) = await shop.sale("ann")
    session = await shop.session(session_of(await shop.ready(order)))
    assert session["description"] == NEW_ITEM["name"]
