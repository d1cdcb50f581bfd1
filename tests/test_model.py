"""Any sequence of calls does to the database what it does to the model of the line.

FLASHSALE_MODEL_EXAMPLES: how many sequences to try.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, ClassVar

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

import model
from conftest import Clock
from support import Connection, call, item, rows, settle, value

EXAMPLES = int(os.environ.get("FLASHSALE_MODEL_EXAMPLES", "60"))

CUSTOMERS = st.sampled_from(["ann", "bob", "cid", "dan", "eve", "fay"])
KEYS = st.sampled_from([None, None, "k1", "k2"])
WAITS = st.sampled_from([True, True, True, False])
REQUESTS = st.builds(model.Request, CUSTOMERS, KEYS, WAITS)
ANY = st.integers(0, 999)  # which order, payment: the n-th, counted round
TABLES = ["orders", "order_keys", "payments", "payment_events", "tallies", "sweepers", "items"]


class Line(RuleBasedStateMachine):
    """One item, in the database and as a model."""

    db: ClassVar[Connection]
    clock: ClassVar[Clock]
    shop: model.Item
    item_id: int
    events: int

    @initialize(
        stock=st.integers(0, 3),
        max_waiting=st.sampled_from([None, None, 0, 1, 3]),
        keep_if_free=st.booleans(),
        opens_in=st.sampled_from([None, None, None, 5]),
        closes_in=st.sampled_from([None, None, None, 40]),
    )
    def put_on_sale(
        self,
        stock: int,
        max_waiting: int | None,
        keep_if_free: bool,
        opens_in: int | None,
        closes_in: int | None,
    ) -> None:
        now = self.clock.at()
        opens_at = None if opens_in is None else self.clock.at(opens_in)
        closes_at = None if closes_in is None else self.clock.at(closes_in)
        self.events = 0
        self.shop = model.Item(
            now=now,
            stock=stock,
            price=1000,
            hold=timedelta(seconds=10),
            max_waiting=max_waiting,
            keep_if_free=keep_if_free,
            opens_at=opens_at,
            closes_at=closes_at,
        )
        self.item_id = item(
            self.db,
            stock=stock,
            hold_seconds=10,
            max_waiting=max_waiting,
            late_payment="keep_if_free" if keep_if_free else "refund",
            opens_at=opens_at,
            closes_at=closes_at,
        )
        self.compare()

    # Customers

    @rule(ask=REQUESTS)
    def reserve(self, ask: model.Request) -> None:
        row = call(self.db, "reserve", self.item_id, ask.customer, ask.key, ask.wait)
        ((outcome, order),) = self.shop.reserve_many([ask])
        self.same_answer(row, outcome, order)
        self.compare()

    @rule(asks=st.lists(REQUESTS, min_size=1, max_size=6))
    def reserve_many(self, asks: list[model.Request]) -> None:
        answers = rows(
            self.db,
            "select * from flashsale.reserve_many(array_fill(%s::int, array[%s::int]), %s, %s, %s)",
            self.item_id,
            len(asks),
            [a.customer for a in asks],
            [a.key for a in asks],
            [a.wait for a in asks],
        )
        expected = self.shop.reserve_many(asks)
        assert [a.outcome for a in answers] == [outcome for outcome, _ in expected]
        for row, (outcome, order) in zip(answers, expected, strict=True):
            self.same_answer(row, outcome, order)
        self.compare()

    @rule(ask=REQUESTS)
    def roll_back(self, ask: model.Request) -> None:
        with self.db.transaction(force_rollback=True):
            call(self.db, "reserve", self.item_id, ask.customer, ask.key, ask.wait)
        self.shop.roll_back(ask)
        self.compare()

    @precondition(lambda self: self.claims())
    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        order = self.pick(self.claims(), which)
        self.same_result(
            lambda: call(self.db, "cancel", self.order_id(order), order.customer),
            lambda: self.shop.cancel(order),
        )

    @precondition(lambda self: self.payments())
    @rule(which=ANY, wrong=st.sampled_from([0, 0, 0, 1]))
    def pay(self, which: int, wrong: int) -> None:
        order, n = self.pick(self.payments(), which)
        payment_id = self.payment_id(order, n)
        payment = order.payments[n]
        amount = self.shop.price + wrong
        self.same_result(
            lambda: call(self.db, "pay", payment_id, f"s{payment_id}", amount, "EUR"),
            lambda: self.shop.pay(order, payment, amount),
        )

    @precondition(lambda self: self.payments())
    @rule(which=ANY)
    def a_payment_fails(self, which: int) -> None:
        order, n = self.pick(self.payments(), which)
        payment_id = self.payment_id(order, n)
        self.events += 1
        outcome = value(
            self.db,
            "select flashsale.record_payment_event(%s, 'payment.failed', %s, %s, 1, 'EUR', null)",
            f"e{self.events}",
            f"s{payment_id}",
            str(payment_id),
        )
        assert outcome == self.shop.fail(order.payments[n])
        self.compare()

    @precondition(lambda self: self.claims())
    @rule(which=ANY)
    def request_payment(self, which: int) -> None:
        order = self.pick(self.claims(), which)
        self.same_result(
            lambda: call(self.db, "request_payment", self.order_id(order), order.customer),
            lambda: self.shop.request_payment(order),
        )

    # The service

    @rule(seconds=st.sampled_from([1, 4, 9.999, 10, 30]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.shop.now = self.clock.at()
        self.compare()

    @precondition(lambda self: self.shop.count("reserved"))
    @rule(which=ANY, seconds=st.sampled_from([-0.000001, 0]))
    def time_passes_to_a_deadline(self, which: int, seconds: float) -> None:
        order = self.pick([o for o in self.claims() if o.status == "reserved"], which)
        assert order.expires_at is not None
        moment = order.expires_at + timedelta(seconds=seconds)
        if moment > self.shop.now:
            self.clock.set(moment)
            self.shop.now = moment
            self.compare()

    @rule()
    def expire(self) -> None:
        assert call(self.db, "expire")[0] == self.shop.expire()
        self.compare()

    @rule()
    def promote(self) -> None:
        done = call(self.db, "promote", self.item_id)
        assert (done.recycled, done.promoted, done.unserved) == self.shop.promote()
        assert not done.more
        self.compare()

    @rule()
    def settle(self) -> None:
        settle(self.db)
        self.shop.settle()
        self.compare()
        shop = self.shop
        shown = call(self.db, "item_status", self.item_id)
        free = max(0, shop.now_serving - shop.issued)
        granted = [o for o in self.claims() if o.ticket <= shop.now_serving]
        assert (shown.paid, shown.available, shown.reserved, shown.waiting) == (
            shop.count("paid"),
            free,
            sum(o.status in ("reserved", "waiting") for o in granted),
            sum(o.status == "waiting" for o in self.claims())
            - sum(o.status == "waiting" for o in granted),
        )
        assert shop.count("reserved", "paid") <= shown.stock
        assert rows(self.db, "select * from flashsale.violation") == []

    @rule()
    def work(self) -> None:
        for job in rows(self.db, "select * from flashsale.take_payment_jobs(1000, 30)"):
            lease = (job.job_id, job.reads, job.payment_id)
            match job.kind:
                case "open":
                    done = call(self.db, "payment_opened", *lease, f"s{job.payment_id}", "u")[0]
                    assert done == "opened"
                case "void":
                    assert call(self.db, "payment_voided", *lease)[0] == "voided"
                case "refund":
                    assert call(self.db, "payment_refunded", *lease)[0] == "refunded"
        self.shop.work()
        self.compare()

    # Operators

    @rule(units=st.integers(1, 3))
    def restock(self, units: int) -> None:
        call(self.db, "restock", self.item_id, units)
        self.shop.restock(units)
        self.compare()

    @rule(units=st.integers(1, 3))
    def withdraw(self, units: int) -> None:
        self.same_result(
            lambda: call(self.db, "withdraw", self.item_id, units),
            lambda: self.shop.withdraw(units),
        )

    @rule(verb=st.sampled_from(["pause", "resume", "resume", "open", "close"]))
    def operate(self, verb: str) -> None:
        call(self.db, f"{verb}_item", self.item_id)
        match verb:
            case "pause" | "resume":
                self.shop.paused = verb == "pause"
            case "open":
                self.shop.open()
            case "close":
                self.shop.close()
        self.compare()

    def teardown(self) -> None:
        """The next sequence of calls finds an empty database, and violation stays quick."""
        if not hasattr(self, "item_id"):
            return
        assert rows(self.db, "select * from flashsale.violation") == []
        for table in TABLES:
            self.db.execute(f"delete from flashsale_data.{table}")  # type: ignore[call-overload]
        self.db.execute("delete from pgmq.q_payments")
        self.db.execute("delete from pgmq.q_notifications")
        self.db.execute(f"drop sequence flashsale_data.line_{self.item_id}")  # type: ignore[call-overload]

    # Both of them

    def claims(self) -> list[model.Order]:
        return [o for o in self.shop.orders.values() if o.customer]

    def payments(self) -> list[tuple[model.Order, int]]:
        return [(o, n) for o in self.claims() for n in range(len(o.payments))]

    def pick(self, things: list[Any], which: int) -> Any:
        return things[which % len(things)]

    def order_id(self, order: model.Order) -> int:
        return self.item_id << 32 | order.ticket

    def payment_id(self, order: model.Order, n: int) -> int:
        return int(
            value(
                self.db,
                "select payment_id from flashsale_data.payments where order_id = %s "
                "order by payment_id limit 1 offset %s",
                self.order_id(order),
                n,
            )
        )

    def same_answer(self, row: Any, outcome: str, order: model.Order | None) -> None:
        assert row.outcome == outcome
        if order is None:
            assert row.order_id is None
        else:
            assert (row.ticket, row.customer_id, row.status, row.expires_at) == (
                order.ticket,
                order.customer,
                self.shop.shown(order),
                order.expires_at,
            )

    def same_result(self, real: Any, modelled: Any) -> None:
        """Both refuse with the same SQLSTATE, or both answer, with the same outcome if any."""
        outcome = refusal = None
        try:
            outcome = modelled()
        except model.RefusedError as refused:
            refusal = refused.sqlstate
        if refusal is None:
            row = real()
            assert outcome is None or row.outcome == outcome
        else:
            with pytest.raises(psycopg.Error) as error:
                real()
            assert error.value.sqlstate == refusal
        self.compare()

    def compare(self) -> None:
        """Every order, the item's numbers and the jobs are the model's."""
        shop = self.shop
        found = rows(
            self.db,
            "select ticket, customer_id, status, reserved_at, expires_at, ended_at, "
            "payment_status, position from flashsale.order_status order by ticket",
        )
        assert [tuple(row) for row in found] == [
            (
                o.ticket,
                o.customer,
                shop.shown(o),
                o.reserved_at,
                o.expires_at,
                o.expires_at if shop.overdue(o) else o.ended_at,
                o.payments[-1].status if o.payments else None,
                max(1, o.ticket - shop.now_serving) if o.status == "waiting" else None,
            )
            for o in sorted(shop.orders.values(), key=lambda o: o.ticket)
        ]
        shown = call(self.db, "item_status", self.item_id)
        assert (
            shown.state,
            shown.stock,
            shown.now_serving,
            shown.issued,
            shown.withdrawing,
        ) == (shop.state, shop.stock, shop.now_serving, shop.issued, shop.withdrawing)
        kinds = rows(
            self.db, "select message ->> 'kind' as kind from pgmq.q_payments order by kind"
        )
        assert [k.kind for k in kinds] == sorted(kind for kind, _ in shop.jobs)


@pytest.mark.timeout(300 + EXAMPLES)  # a difference takes minutes to be made small
def test_every_sequence_of_calls_does_what_the_model_does(db: Connection, clock: Clock) -> None:
    Line.db, Line.clock = db, clock
    run_state_machine_as_test(
        Line,
        settings=settings(
            derandomize="FLASHSALE_MODEL_EXAMPLES" not in os.environ,  # each run the same
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
