"""Any sequence of calls, by SQL or by HTTP, has the same effect on the database as on the model.

FLASHSALE_TEST_MODEL_EXAMPLES: how many sequences to try by SQL, and how many by HTTP.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple

import httpx
import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import http_support
import model
from flashsale.models import Order
from flashsale.testing import Clock
from http_support import Api
from support import Connection, call, item, rows, settle, value

EXAMPLES = os.environ.get("FLASHSALE_TEST_MODEL_EXAMPLES")

CUSTOMERS = st.sampled_from(["ann", "bob", "cid", "dan", "eve", "fay"])
KEYS = st.sampled_from([None, None, "k1", "k2"])
WAITS = st.sampled_from([True, True, True, False])
QUANTITIES = st.sampled_from([(1, None), (1, None), (1, 1), (3, None), (3, 1), (3, 2)])
REQUESTS = st.builds(
    lambda customer, key, wait, quantity: model.Request(customer, key, wait, *quantity),
    CUSTOMERS,
    KEYS,
    WAITS,
    QUANTITIES,
)
ANY = st.integers(0, 999)  # which order, payment: the n-th, counted round
TABLES = ["orders", "order_keys", "payments", "payment_events", "tallies", "sweepers", "items"]
TABLES += ["withdrawn_tickets", "history", "offline_references", "products"]


class Said(NamedTuple):
    """An answer: the outcome, if there is one, and the order that it is about.

    other: the id of the order that a refusal names.
    """

    outcome: str | None
    order: Any = None
    other: int | None = None


def attempt(step: Callable[[], Any]) -> Any:
    """The answer of a call, or its refusal."""
    try:
        return step()
    except model.RefusedError as refused:
        return refused


class LineMachine(RuleBasedStateMachine):
    """One item, in the database and as a model; and perhaps another variant of it (other).

    A subclass says how customers, operators and the provider reach the database. Its calls raise
    model.RefusedError. The clock, the sweep and the worker do their work by SQL.
    """

    db: ClassVar[Connection]
    clock: ClassVar[Clock]
    counts: ClassVar[Counter[str]]
    shop: model.ModelItem
    item_id: int
    other: model.ModelItem | None
    other_id: int
    events: int

    @initialize(
        stock=st.integers(0, 5),
        max_waiting=st.sampled_from([None, None, 0, 1, 3]),
        keep_if_free=st.booleans(),
        opens_in=st.sampled_from([None, None, None, 5]),
        closes_in=st.sampled_from([None, None, None, 40]),
        limits=st.sampled_from([(1, None), (3, None), (3, 4), (3, 7)]),
        has_variant=st.booleans(),
    )
    def put_on_sale(
        self,
        stock: int,
        max_waiting: int | None,
        keep_if_free: bool,
        opens_in: int | None,
        closes_in: int | None,
        limits: tuple[int, int | None],
        has_variant: bool,
    ) -> None:
        now = self.clock.at()
        opens_at = None if opens_in is None else self.clock.at(opens_in)
        closes_at = None if closes_in is None else self.clock.at(closes_in)
        self.events = 0
        self.shop = model.ModelItem(
            now=now,
            stock=stock,
            price=1000,
            hold=timedelta(seconds=10),
            max_waiting=max_waiting,
            keep_if_free=keep_if_free,
            opens_at=opens_at,
            closes_at=closes_at,
            max_per_order=limits[0],
            max_per_customer=limits[1],
        )
        allowed: dict[str, Any] = {"max_per_order": limits[0], "max_per_customer": limits[1]}
        if has_variant:
            allowed["product"] = "shoe"
        self.item_id = self.create(
            stock=stock,
            hold_seconds=10,
            max_waiting=max_waiting,
            late_payment="keep_if_free" if keep_if_free else "refund",
            opens_at=opens_at,
            closes_at=closes_at,
            **allowed,
        )
        self.other = None
        if has_variant:
            self.other = model.ModelItem(now, 2, 1000, timedelta(seconds=10), None)
            self.other.max_per_order, self.other.max_per_customer = limits
            self.shop.variants = self.other.variants = [self.shop, self.other]
            times = {"opens_at": None, "closes_at": None}
            self.other_id = self.create(sku="other", stock=2, hold_seconds=10, **allowed, **times)
        self.compare()

    # The way in

    def create(self, **terms: Any) -> int:
        raise NotImplementedError

    def ask(self, ask: model.Request, item_id: int) -> Said:
        raise NotImplementedError

    def cancel(self, order: model.ModelOrder) -> Said:
        raise NotImplementedError

    def request_payment(self, order: model.ModelOrder) -> Said:
        raise NotImplementedError

    def event(self, kind: str, payment_id: int, amount: int, at: datetime) -> Said:
        """The provider sends the result of a payment, in the session s<payment_id>."""
        raise NotImplementedError

    def change_stock(self, verb: str, units: int) -> Said:
        raise NotImplementedError

    def operate(self, verb: str) -> None:
        """Called after the model has done the same."""
        raise NotImplementedError

    # Customers

    @rule(ask=REQUESTS)
    def reserves(self, ask: model.Request) -> None:
        ((outcome, order),) = self.shop.reserve_many([ask])
        self.same_answer(self.ask(ask, self.item_id), outcome, order)
        self.compare()

    @precondition(lambda self: self.other)
    @rule(ask=REQUESTS)
    def asks_for_another_variant(self, ask: model.Request) -> None:
        assert self.other
        ((outcome, order),) = self.other.reserve_many([ask])
        self.same_answer(self.ask(ask, self.other_id), outcome, order)
        self.compare()

    @precondition(lambda self: self.other and self.claims(self.other))
    @rule(which=ANY)
    def cancels_another_variant(self, which: int) -> None:
        assert self.other
        order, other = self.pick(self.claims(self.other), which), self.other
        self.same_result(lambda: self.cancel(order), lambda: other.cancel(order), order)

    @precondition(lambda self: self.other and self.claims(self.other))
    @rule(which=ANY)
    def pays_for_another_variant_at_a_till(self, which: int) -> None:
        assert self.other
        order, other = self.pick(self.claims(self.other), which), self.other
        self.events += 1
        self.same_result(
            lambda: self.by_sql("pay_offline", self.order_id(order), f"r{self.events}"),
            lambda: other.pay_offline(order),
            order,
        )

    @precondition(lambda self: self.claims())
    @rule(which=ANY)
    def cancels(self, which: int) -> None:
        order = self.pick(self.claims(), which)
        self.same_result(lambda: self.cancel(order), lambda: self.shop.cancel(order), order)

    @precondition(lambda self: self.payments())
    @rule(which=ANY, wrong=st.sampled_from([0, 0, 0, 1]), ago=st.sampled_from([0, 0, 1, 2, 100]))
    def pays(self, which: int, wrong: int, ago: int) -> None:
        order, n = self.pick(self.payments(), which)
        payment_id, payment = self.payment_id(order, n), order.payments[n]
        amount, at = self.shop.price * (order.units or 1) + wrong, self.clock.at(-ago)
        self.same_result(
            lambda: self.event("payment.succeeded", payment_id, amount, at),
            lambda: self.shop.pay(order, payment, amount, at),
        )

    @precondition(lambda self: self.payments())
    @rule(which=ANY)
    def a_payment_fails(self, which: int) -> None:
        order, n = self.pick(self.payments(), which)
        payment_id, payment = self.payment_id(order, n), order.payments[n]
        self.same_result(
            lambda: self.event("payment.failed", payment_id, 1, self.shop.now),
            lambda: self.shop.fail(order, payment),
        )

    @precondition(lambda self: self.claims())
    @rule(which=ANY)
    def asks_for_another_payment(self, which: int) -> None:
        order = self.pick(self.claims(), which)
        self.same_result(
            lambda: self.request_payment(order), lambda: self.shop.request_payment(order), order
        )

    # The service

    @rule(seconds=st.sampled_from([1, 2, 4, 9.999, 10, 30]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.now_is(self.clock.at())
        self.compare()

    def now_is(self, moment: datetime) -> None:
        for shop, _ in self.shops():
            shop.now = moment

    @precondition(lambda self: self.shop.count("reserved"))
    @rule(which=ANY, seconds=st.sampled_from([-0.000001, 0]))
    def time_passes_to_a_deadline(self, which: int, seconds: float) -> None:
        order = self.pick([o for o in self.claims() if o.status == "reserved"], which)
        assert order.expires_at is not None
        moment = order.expires_at + timedelta(seconds=seconds)
        if moment > self.shop.now:
            self.clock.set(moment)
            self.now_is(moment)
            self.compare()

    @rule()
    def expire(self) -> None:
        assert call(self.db, "expire")[0] == sum(shop.expire() for shop, _ in self.shops())
        self.compare()

    @rule()
    def promote(self) -> None:
        done = call(self.db, "promote", self.item_id)
        assert (done.recycled, done.promoted, done.unserved) == self.shop.promote()
        # Units of groups that had their time in vain move on.
        assert done.more == (self.shop.state == "open" and done.unserved > 0)
        self.compare()

    @rule()
    def settle(self) -> None:
        settle(self.db)
        for shop, _ in self.shops():
            shop.settle()
        self.compare()
        shop = self.shop
        shown = call(self.db, "item_status", self.item_id)
        free = max(0, shop.now_serving - shop.issued)
        tickets = [row for o in self.claims() for row in o.rows]
        granted = [o for o in tickets if o.ticket <= shop.now_serving]
        assert (shown.paid, shown.available, shown.reserved, shown.waiting) == (
            shop.count("paid"),
            free,
            sum(o.status in ("reserved", "settling", "waiting") for o in granted),
            sum(o.status == "waiting" for o in tickets)
            - sum(o.status == "waiting" for o in granted),
        )
        assert shop.count("reserved", "settling", "paid") <= shown.stock
        assert rows(self.db, "select * from flashsale.violation") == []

    @rule()
    def work(self) -> None:
        while jobs := rows(self.db, "select * from flashsale.take_payment_jobs(1000, 30)"):
            for job in jobs:
                lease = (job.job_id, job.tries, job.payment_id)
                match job.kind:
                    case "open":
                        done = call(self.db, "payment_opened", *lease, f"s{job.payment_id}", "u")[0]
                        assert done == "opened"
                    case "void":  # two jobs may name the same session
                        assert call(self.db, "payment_voided", *lease)[0] in ("voided", "ignored")
                    case "refund":
                        assert call(self.db, "payment_refunded", *lease)[0] == "refunded"
        for shop, _ in self.shops():
            shop.work()
        self.compare()

    # Staff and operators

    @precondition(lambda self: self.claims())
    @rule(which=ANY)
    def pays_at_a_till(self, which: int) -> None:
        order = self.pick(self.claims(), which)
        self.events += 1
        self.same_result(
            lambda: self.by_sql("pay_offline", self.order_id(order), f"r{self.events}"),
            lambda: self.shop.pay_offline(order),
            order,
        )

    @precondition(lambda self: self.shop.count("paid"))
    @rule(which=ANY, return_units=st.booleans())
    def gets_a_refund(self, which: int, return_units: bool) -> None:
        order = self.pick([o for o in self.claims() if o.status in ("paid", "refunded")], which)
        self.same_result(
            lambda: self.by_sql("refund_order", self.order_id(order), "x", return_units),
            lambda: self.shop.refund(order, return_units),
            order,
        )

    @rule(verb=st.sampled_from(["restock", "withdraw"]), units=st.integers(1, 3))
    def stock_changes(self, verb: str, units: int) -> None:
        self.same_result(
            lambda: self.change_stock(verb, units), lambda: getattr(self.shop, verb)(units)
        )

    @rule(verb=st.sampled_from(["pause", "resume", "resume", "open", "close"]))
    def operates(self, verb: str) -> None:
        match verb:
            case "pause" | "resume":
                self.shop.paused = verb == "pause"
            case "open":
                self.shop.open()
            case "close":
                self.shop.close()
        self.operate(verb)
        self.compare()

    def teardown(self) -> None:
        """Empties the database for the next sequence, which also keeps violation quick."""
        self.counts["examples"] += 1
        if not hasattr(self, "item_id"):
            return
        assert rows(self.db, "select * from flashsale.violation") == []
        for table in TABLES:
            self.db.execute(f"delete from flashsale_data.{table}")
        self.db.execute("delete from pgmq.q_payments")
        self.db.execute("delete from pgmq.q_notifications")
        for _, item_id in self.shops():
            self.db.execute(f"drop sequence flashsale_data.line_{item_id}")

    # Both of them

    def shops(self) -> list[tuple[model.ModelItem, int]]:
        """The variants, with their ids."""
        return [(self.shop, self.item_id), *([(self.other, self.other_id)] if self.other else [])]

    def claims(self, shop: model.ModelItem | None = None) -> list[model.ModelOrder]:
        return [o for o in (shop or self.shop).orders.values() if o.customer]

    def payments(self) -> list[tuple[model.ModelOrder, int]]:
        return [(o, n) for o in self.claims() for n, p in enumerate(o.payments) if not p.offline]

    def pick(self, things: list[Any], which: int) -> Any:
        return things[which % len(things)]

    def order_id(self, order: model.ModelOrder) -> int:
        (item_id,) = [n for shop, n in self.shops() if shop is self.shop.shop_of(order)]
        return item_id << 32 | order.ticket

    def same_answer(self, said: Said, outcome: str, order: model.ModelOrder | None) -> None:
        """Of a request for units."""
        assert said.outcome == outcome
        if outcome == "has_other_order":
            assert order
            assert (said.order, said.other) == (None, self.order_id(order))
            self.counts["has_other_order"] += 1
        else:
            self.same_order(said.order, order)

    def payment_id(self, order: model.ModelOrder, n: int) -> int:
        return int(
            value(
                self.db,
                # The first attempt may have no row yet: only the order shows it.
                "select payment_id from flashsale.order_status where order_id = %s "
                "union select payment_id from flashsale_data.payments where order_id = %s "
                "order by 1 limit 1 offset %s",
                self.order_id(order),
                self.order_id(order),
                n,
            )
        )

    def same_order(self, shown: Any, order: model.ModelOrder | None) -> None:
        if shown is None or order is None:
            assert shown is order is None
            self.counts["refused"] += 1
            return
        shop = self.shop.shop_of(order)
        position = shop.position(order)
        if shown.outcome == "waiting":  # a new request's position is as of the last sweep
            left = value(
                self.db,
                "select gaps_in_line from flashsale_data.items "
                "where item_id = flashsale.item_of(%s)",
                shown.order_id,
            )
            assert shown.position in (position, max(1, order.ticket - shop.now_serving - left))
            position = shown.position
        assert (shown.ticket, shown.customer_id, shown.status, shown.position) == (
            order.ticket,
            order.customer,
            shop.shown(order),
            position,
        )
        assert (shown.quantity, shown.units) == (order.quantity, order.units)
        assert (shown.reserved_at, shown.expires_at) == (order.reserved_at, order.expires_at)

    def same_result(
        self, real: Callable[[], Said], modelled: Any, order: model.ModelOrder | None = None
    ) -> None:
        """Checks that both refuse for the same reason, or give the same answer about `order`."""
        outcome, said = attempt(modelled), attempt(real)
        if isinstance(outcome, model.RefusedError) or isinstance(said, model.RefusedError):
            assert said == outcome
            self.counts["refused"] += 1
        else:
            assert said.outcome == outcome or None in (said.outcome, outcome)
            if order is not None:
                self.same_order(said.order, order)
        self.compare()

    def compare(self) -> None:
        """Every order, the items' counts and the jobs agree with the model."""
        self.counts["calls"] += 1
        for shop, item_id in self.shops():
            self.compare_item(shop, item_id)
        kinds = rows(
            self.db, "select message ->> 'kind' as kind from pgmq.q_payments order by kind"
        )
        assert [k.kind for k in kinds] == sorted(
            kind for shop, _ in self.shops() for kind, _ in shop.jobs
        )

    def compare_item(self, shop: model.ModelItem, item_id: int) -> None:
        found = rows(
            self.db,
            "select ticket, customer_id, status, reserved_at, expires_at, ended_at, "
            "payment_status, position, amount, units "
            "from flashsale.order_status where item_id = %s order by ticket",
            item_id,
        )
        assert [tuple(row) for row in found] == [
            (
                o.ticket,
                o.customer,
                shop.shown(o),
                o.reserved_at,
                o.expires_at,
                o.expires_at if shop.overdue(o) and shop.shown(o) == "expired" else o.ended_at,
                o.payments[-1].status if o.payments else None,
                shop.position(o),
                o.payments[-1].amount if o.payments else None,
                o.units,
            )
            for o in sorted(shop.orders.values(), key=lambda o: o.ticket)
            if o.head is None
        ]
        parts = rows(
            self.db,
            "select ticket, status, ended_at from flashsale_data.orders "
            "where item_id = %s and head_id is not null order by ticket",
            item_id,
        )
        assert [tuple(row) for row in parts] == [
            (o.ticket, o.status, o.ended_at)
            for o in sorted(shop.orders.values(), key=lambda o: o.ticket)
            if o.head is not None
        ]
        self.counts["parts"] += len(parts)
        shown = call(self.db, "item_status", item_id)
        assert (
            shown.state,
            shown.stock,
            shown.now_serving,
            shown.issued,
            shown.withdrawing,
        ) == (shop.state, shop.stock, shop.now_serving, shop.issued, shop.withdrawing)

    def by_sql(self, function: str, *args: Any) -> Said:
        try:
            row = call(self.db, function, *args)
        except psycopg.Error as error:
            raise model.RefusedError(error.sqlstate or "") from error
        return self.said(row)

    def said(self, row: Any) -> Said:
        """Of a row whose columns may be an order's."""
        told = row._asdict()
        if told.get("outcome") == "has_other_order":
            return Said(row.outcome, None, row.order_id)
        return Said(told.get("outcome"), row if told.get("order_id") else None)


class SqlLine(LineMachine):
    """Calls by SQL, with batches and rollbacks too."""

    def create(self, **terms: Any) -> int:
        return item(self.db, **terms)

    def ask(self, ask: model.Request, item_id: int) -> Said:
        wanted = (ask.wait, ask.quantity, ask.least)
        return self.by_sql("reserve", item_id, ask.customer, ask.key, *wanted)

    def cancel(self, order: model.ModelOrder) -> Said:
        return self.by_sql("cancel", self.order_id(order), order.customer)

    def request_payment(self, order: model.ModelOrder) -> Said:
        return self.by_sql("request_payment", self.order_id(order), order.customer)

    def event(self, kind: str, payment_id: int, amount: int, at: datetime) -> Said:
        session = f"s{payment_id}"
        if kind == "payment.succeeded":
            return self.by_sql("pay", payment_id, session, amount, "EUR", at)
        query = "select flashsale.record_payment_event(%s, %s, %s, %s, %s, 'EUR', null)"
        self.events += 1
        about = (f"e{self.events}", kind, session, str(payment_id), amount)
        return Said(value(self.db, query, *about))

    def change_stock(self, verb: str, units: int) -> Said:
        return self.by_sql(verb, self.item_id, units)

    def operate(self, verb: str) -> None:
        self.by_sql(f"{verb}_item", self.item_id)

    @rule(asks=st.lists(REQUESTS, min_size=1, max_size=6))
    def reserve_in_a_batch(self, asks: list[model.Request]) -> None:
        answers = rows(
            self.db,
            "select * from flashsale.reserve_many("
            "array_fill(%s::int, array[%s::int]), %s, %s, %s, %s, %s)",
            self.item_id,
            len(asks),
            [a.customer for a in asks],
            [a.key for a in asks],
            [a.wait for a in asks],
            [a.quantity for a in asks],
            [a.least for a in asks],
        )
        expected = self.shop.reserve_many(asks)
        assert [a.outcome for a in answers] == [outcome for outcome, _ in expected]
        for row, (_, order) in zip(answers, expected, strict=True):
            self.same_answer(self.said(row), row.outcome, order)
        self.compare()

    @rule(ask=REQUESTS)
    def roll_back(self, ask: model.Request) -> None:
        with self.db.transaction(force_rollback=True):
            self.ask(ask, self.item_id)
        self.shop.roll_back(ask)
        self.compare()


class HttpLine(LineMachine):
    """Calls by HTTP, like clients that know only the contract of the service."""

    api: ClassVar[Api]
    runner: ClassVar[asyncio.Runner]

    SQLSTATES: ClassVar = {
        "already_paid": "RV202",
        "not_reserved": "RV203",
        "withdraw_too_much": "RV204",
    }
    GRANTS: ClassVar = {201: "reserved", 202: "waiting", 200: "existing"}

    def send(self, method: str, path: str, customer: str | None = None, **more: Any) -> Any:
        return self.runner.run(self.api(method, path, customer, **more))

    def order(self, answer: httpx.Response, status: int) -> Order:
        if answer.status_code == 409:
            raise model.RefusedError(self.SQLSTATES[answer.json()["code"]])
        assert answer.status_code == status, answer.text
        return msgspec.json.decode(answer.content, type=Order)

    def create(self, **terms: Any) -> int:
        times = {n: t.isoformat() for n in ("opens_at", "closes_at") if (t := terms[n])}
        shown = self.runner.run(self.api.item(**terms | times))
        return int(shown["item_id"])

    def ask(self, ask: model.Request, item_id: int) -> Said:
        headers = {"Idempotency-Key": ask.key} if ask.key else {}
        wanted: dict[str, Any] = {} if ask.wait else {"wait": False}
        if ask.bound[1:] != (1, 1):
            wanted |= {"quantity": ask.quantity, "min_quantity": ask.least}
        body = {"json": wanted} if wanted else {}
        path = f"/items/{item_id}/orders"
        answer = self.send("POST", path, ask.customer, headers=headers, **body)
        if answer.status_code in (409, 422):
            told = answer.json()
            return Said(told["code"], None, int(told["order_id"]) if "order_id" in told else None)
        return Said(self.GRANTS[answer.status_code], self.order(answer, answer.status_code))

    def cancel(self, order: model.ModelOrder) -> Said:
        answer = self.send("DELETE", f"/orders/{self.order_id(order)}", order.customer)
        return Said(None, self.order(answer, 200))

    def request_payment(self, order: model.ModelOrder) -> Said:
        answer = self.send("POST", f"/orders/{self.order_id(order)}/payment", order.customer)
        return Said(None, self.order(answer, 202))

    def event(self, kind: str, payment_id: int, amount: int, at: datetime) -> Said:
        self.events += 1
        event = {
            "event_id": f"e{self.events}",
            "type": kind,
            "session_id": f"s{payment_id}",
            "payment_id": str(payment_id),
            "amount": amount,
            "currency": "EUR",
            "occurred_at": at.isoformat(),
        }
        outcome, again = (self.runner.run(self.api.event(event)).json() for _ in range(2))
        assert again == {"outcome": "duplicate"}
        return Said(outcome["outcome"])

    def change(self, **changes: Any) -> Said:
        answer = self.send("PATCH", f"/items/{self.item_id}", json=changes)
        if answer.status_code == 409:
            raise model.RefusedError(self.SQLSTATES[answer.json()["code"]])
        assert answer.status_code == 200, answer.text
        return Said(None)

    def change_stock(self, verb: str, units: int) -> Said:
        return self.change(**{"add_stock" if verb == "restock" else "withdraw_stock": units})

    def operate(self, verb: str) -> None:
        shop = self.shop
        times = {"opens_at": shop.opens_at, "closes_at": shop.closes_at}
        self.change(paused=shop.paused, **{n: t and t.isoformat() for n, t in times.items()})

    @rule(customer=CUSTOMERS)
    def looks_at_their_orders(self, customer: str) -> None:
        answer = self.send("GET", "/orders", customer)
        mine = [o for shop, _ in self.shops() for o in self.claims(shop) if o.customer == customer]
        shown = msgspec.json.decode(answer.content, type=list[Order])
        mine.sort(key=self.order_id)
        shown.sort(key=lambda order: int(order.order_id))
        for found, expected in zip(shown, mine, strict=True):
            self.same_order(found, expected)
        for order in self.claims():
            one = self.send("GET", f"/orders/{self.order_id(order)}", customer)
            if order.customer == customer:
                self.same_order(self.order(one, 200), order)
            else:
                assert one.status_code == 404


RecordProperty = Callable[[str, object], None]


def run(machine: type[LineMachine], examples: int, record_property: RecordProperty) -> None:
    machine.counts = Counter()
    run_state_machine_as_test(
        machine,
        settings=settings(
            derandomize=EXAMPLES is None,  # each run the same
            max_examples=int(EXAMPLES or examples),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    for name, count in machine.counts.items():
        record_property(name, count)


pytestmark = pytest.mark.timeout(300 + int(EXAMPLES or 0))  # shrinking a failing example takes long


def test_every_sequence_of_calls_does_what_the_model_does(
    db: Connection, clock: Clock, record_property: RecordProperty
) -> None:
    LineMachine.db, LineMachine.clock = db, clock
    run(SqlLine, 40, record_property)


def test_every_sequence_of_requests_does_what_the_model_does(
    db: Connection, clock: Clock, database_url: str, record_property: RecordProperty
) -> None:
    LineMachine.db, LineMachine.clock = db, clock
    with asyncio.Runner() as HttpLine.runner:
        service = AsyncExitStack()
        configured = http_support.settings(database_url)
        HttpLine.api = HttpLine.runner.run(
            service.enter_async_context(http_support.serving(configured))
        )
        try:
            run(HttpLine, 15, record_property)
        finally:
            HttpLine.runner.run(service.aclose())
