"""Tests of the checker: a correct run passes, and each broken invariant is reported by its name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prove.judge.checker import INVARIANTS, exercised, judge
from prove.judge.history import History
from prove.judge.records import Act, FinalTables, ItemRow, OrderRow, PaymentRow, Run, joined
from prove.report import Row, table

ROOT = Path(__file__).parent.parent
SHOE = 1
PRICE = 1000


def order(ticket: int, status: str, created: float, **times: Any) -> OrderRow:
    held = times.get("reserved")
    return OrderRow(
        item_id=SHOE,
        ticket=ticket,
        customer=None if status == "void" else f"c{ticket}",
        status=status,
        created_at=created,
        reserved_at=held,
        expires_at=None if held is None else held + 10,
        paid_at=times.get("paid"),
        ended_at=times.get("ended"),
        recycled=status in ("expired", "void"),
    )


def text(at: float) -> str:
    """A time as the ledger has it."""
    return datetime.fromtimestamp(at, UTC).isoformat()


class Story:
    """One unit. c1 lets the hold expire, ticket 2 burned, c3 waits, gets the unit and pays.

    c4 waits until the sale is over; c5 pays late and gets the money back, in another line.
    """

    def __init__(self) -> None:
        self.history = History()
        self.history.epoch = 0.0
        self.orders = [
            order(1, "expired", 100, reserved=100, ended=110.2),
            order(2, "void", 101.5, ended=101.5),
            order(3, "paid", 102, reserved=110.3, paid=112),
            order(4, "unserved", 103, ended=150),
        ]
        self.payments = [
            PaymentRow(1, SHOE, 1, PRICE, "refunded", "s1"),
            PaymentRow(2, SHOE, 3, PRICE, "succeeded", "s2"),
        ]
        self.keys = {("c1", SHOE, "k1"): (SHOE, 1)}
        self.ledger = [
            self.opened("s1", 1, 1),
            self.moved("s1", "captured", 130),
            self.moved("s1", "refunded", 131),
            self.opened("s2", 2, 3),
            self.moved("s2", "captured", 112),
        ]
        self.item = ItemRow(SHOE, 1, 10, now_serving=3, withdrawing=0, closes_at=150)
        self.jobs = 0
        self.violations: list[str] = []
        self.acts: list[Act] = []
        for ticket, asked in ((1, 99.9), (3, 101.9), (4, 102.9)):
            self.asks(ticket, asked, asked + 0.2)
        self.asks(1, 100.5, 100.6)  # the same key again

    @staticmethod
    def opened(session: str, payment_id: int, ticket: int, at: float = 101) -> dict[str, Any]:
        about = {"payment_id": str(payment_id), "order_id": str(SHOE << 32 | ticket)}
        return {"kind": "opened", "session_id": session, "at": text(at)} | about

    @staticmethod
    def moved(session: str, to: str, at: float = 131, **more: Any) -> dict[str, Any]:
        line = {"kind": "moved", "session_id": session, "to": to, "at": text(at)}
        return line | {"amount": PRICE, "key": f"{session}-{to}"} | more

    def asks(self, ticket: int, asked: float, answered: float, status: str | None = None) -> None:
        """The customer of a ticket reserves, and gets the state in the row as the answer."""
        row = self.orders[ticket - 1]
        at_once = row.reserved_at == row.created_at
        op = self.history.ask("reserve", SHOE, customer=row.customer, key=f"k{ticket}")
        op.asked, op.answered, op.status = asked, answered, 201 if at_once else 202
        op.body = {
            "item_id": SHOE,
            "ticket": ticket,
            "customer_id": row.customer,
            "status": status or ("reserved" if at_once else "waiting"),
            "created_at": None,
            "reserved_at": None,
            "expires_at": None,
            "paid_at": None,
        }
        self.keys[row.customer or "", SHOE, f"k{ticket}"] = (SHOE, ticket)

    def change(self, ticket: int, **fields: Any) -> None:
        self.orders[ticket - 1] = self.orders[ticket - 1]._replace(**fields)

    def run(self) -> Run:
        database = FinalTables(
            orders=self.orders,
            items={SHOE: self.item},
            payments=self.payments,
            keys=self.keys,
            jobs=self.jobs,
            dead_letters=0,
            violations=self.violations,
            now=200,
            acts=self.acts,
        )
        return Run(self.history, database, self.ledger, {SHOE: 1}, bound=1.0)


def test_a_correct_run_has_no_violation() -> None:
    assert judge(Story().run()) == []


def oversold(story: Story) -> None:
    story.change(3, reserved_at=109.0, expires_at=119.0)


def idle_unit(story: Story) -> None:
    story.change(3, reserved_at=112.5, expires_at=122.5, paid_at=113)


def hole_found_late(story: Story) -> None:
    story.change(2, created_at=108, ended_at=108)


def told_to_wait_for_a_free_unit(story: Story) -> None:
    story.change(3, created_at=111.5, reserved_at=112, expires_at=122, paid_at=113)
    story.change(4, created_at=114)
    story.history.ops[1].asked, story.history.ops[1].answered = 111.4, 111.6
    story.history.ops[2].asked, story.history.ops[2].answered = 113.9, 114.1


def overtaken(story: Story) -> None:
    row = story.orders[3]
    story.orders[3] = row._replace(
        status="paid", reserved_at=110.3, expires_at=120.3, paid_at=112, ended_at=None
    )
    story.orders[2] = order(3, "unserved", 102, ended=150)._replace(recycled=True)
    story.payments[1] = PaymentRow(2, SHOE, 4, PRICE, "succeeded", "s2")
    story.ledger[3] = story.opened("s2", 2, 4)


def tickets_against_time(story: Story) -> None:
    story.history.ops[1].asked, story.history.ops[1].answered = 103.5, 103.6


def two_live_orders(story: Story) -> None:
    story.change(4, customer="c3")
    story.history.ops[2].customer = story.history.ops[2].body["customer_id"] = "c3"
    story.keys["c3", SHOE, "k4"] = story.keys.pop(("c4", SHOE, "k4"))


def paid_at_the_deadline(story: Story) -> None:
    story.change(3, paid_at=120.3)


def short_hold(story: Story) -> None:
    story.change(3, expires_at=119.0)


def from_paid_to_reserved(story: Story) -> None:
    story.asks(3, 113, 113.1, status="paid")
    story.asks(3, 114, 114.1, status="reserved")
    story.asks(3, 115, 115.1, status="paid")


def forgotten_order(story: Story) -> None:
    for op in story.history.ops:
        if op.told == (SHOE, 4):
            op.body["ticket"] = 5
    story.keys["c4", SHOE, "k4"] = (SHOE, 5)
    story.history.ask("reserve", SHOE, customer="c4", key="k4").asked = 102.9  # no answer
    story.asks(4, 104, 104.1)
    story.history.ops[-1].body["ticket"] = 5
    story.keys["c4", SHOE, "k4"] = (SHOE, 5)


def another_deadline(story: Story) -> None:
    story.asks(3, 113, 113.1, status="paid")
    story.history.ops[-1].body["expires_at"] = "1970-01-01T00:02:01Z"


def refused_but_there(story: Story) -> None:
    op = story.history.ops[2]
    op.status, op.body = 409, {"code": "sold_out"}
    del story.keys["c4", SHOE, "k4"]


def refused_but_key_kept(story: Story) -> None:
    story.history.ask("reserve", SHOE, customer="c9", key="k9").status = 409
    story.keys["c9", SHOE, "k9"] = (SHOE, 4)


def one_key_two_orders(story: Story) -> None:
    story.keys["c1", SHOE, "k1"] = (SHOE, 3)


def captured_and_lost(story: Story) -> None:
    story.ledger.remove(story.moved("s1", "refunded"))


def refunded_twice(story: Story) -> None:
    story.ledger.append(story.moved("s1", "refunded"))


def refunded_another_amount(story: Story) -> None:
    story.ledger[2] = story.moved("s1", "refunded", amount=PRICE - 1)


def paid_without_money(story: Story) -> None:
    story.ledger[-1] = story.moved("s2", "voided")
    story.payments[1] = story.payments[1]._replace(status="open")


def granted_without_a_job(story: Story) -> None:
    del story.payments[0], story.ledger[:3]


def two_sessions(story: Story) -> None:
    story.ledger.append(story.opened("s3", 1, 1))
    story.ledger.append(story.moved("s3", "voided"))


def a_job_is_left(story: Story) -> None:
    story.jobs = 1


def nobody_learnt(story: Story) -> None:
    story.history.ask("reserve", SHOE, customer="c9", key="k9").asked = 120


def not_recycled(story: Story) -> None:
    story.change(1, recycled=False)


def ticket_without_order(story: Story) -> None:
    del story.orders[1]


def the_view_says_so(story: Story) -> None:
    story.violations.append("oversold")


@pytest.mark.parametrize(
    ("broken", "invariant"),
    [
        (oversold, "never_oversold"),
        (idle_unit, "freed_units_are_offered_again"),
        (hole_found_late, "burned_tickets_are_found"),
        (told_to_wait_for_a_free_unit, "nobody_waits_without_need"),
        (overtaken, "served_in_order"),
        (tickets_against_time, "tickets_respect_time"),
        (two_live_orders, "one_live_order_a_customer"),
        (paid_at_the_deadline, "times_make_sense"),
        (short_hold, "every_hold_gets_its_window"),
        (from_paid_to_reserved, "only_legal_transitions"),
        (forgotten_order, "what_was_acknowledged_exists"),
        (another_deadline, "what_was_acknowledged_exists"),
        (refused_but_there, "what_was_refused_left_nothing"),
        (refused_but_key_kept, "what_was_refused_left_nothing"),
        (one_key_two_orders, "equal_keys_get_equal_answers"),
        (captured_and_lost, "every_capture_is_settled_once"),
        (refunded_twice, "every_capture_is_settled_once"),
        (refunded_another_amount, "every_capture_is_settled_once"),
        (paid_without_money, "every_capture_is_settled_once"),
        (granted_without_a_job, "every_grant_has_its_payment_job"),
        (two_sessions, "every_grant_has_its_payment_job"),
        (a_job_is_left, "nothing_is_left_over"),
        (nobody_learnt, "nothing_is_left_over"),
        (not_recycled, "nothing_is_left_over"),
        (ticket_without_order, "nothing_is_left_over"),
        (the_view_says_so, "the_database_agrees"),
    ],
)
def test_a_broken_invariant_is_reported_by_its_name(
    broken: Callable[[Story], None], invariant: str
) -> None:
    story = Story()
    broken(story)
    assert {found.partition(":")[0] for found in judge(story.run())} == {invariant}


class MoneyStory(Story):
    """Twenty units, and a customer for each way in which money goes.

    c1 pays in time, which is heard of after the deadline. c2 is refunded by staff, c3 gives the
    order back, c4 is refunded at the provider, c5 pays at a till. The money of c6 comes late, and
    buys ticket 7. c8 loses the hold to an outage and pays in the next one. c9's session is voided
    after the deadline.
    """

    def __init__(self) -> None:
        super().__init__()
        self.orders = [
            order(1, "paid", 100, reserved=100, paid=109.5),
            order(2, "refunded", 100.1, reserved=100.1, paid=105, ended=120),
            order(3, "refunded", 100.2, reserved=100.2, paid=105, ended=150),
            order(4, "refunded", 100.3, reserved=100.3, paid=105, ended=125),
            order(5, "paid", 100.4, reserved=100.4, paid=104),
            order(6, "expired", 100.5, reserved=100.5, ended=110.7),
            order(7, "paid", 111.5, reserved=111.5, paid=111.5)._replace(customer="c6"),
            order(8, "paid", 112, reserved=136, paid=138)._replace(lost_holds=((112, 122),)),
            order(9, "expired", 112.1, reserved=112.1, ended=122.4),
        ]
        for ticket in (1, 2, 3, 4, 6, 9):
            self.change(ticket, may_settle=True)
        for ticket in (2, 3, 4):
            self.change(ticket, recycled=True)
        self.change(6, late=(SHOE, 7))
        self.payments = [
            self.pays(1, "succeeded", opened_at=101, ended_at=110.6),
            self.pays(2, "refunded", refund_reason="staff", opened_at=101),
            self.pays(3, "refunded", refund_reason="customer", opened_at=101),
            self.pays(4, "refunded", refund_reason="provider", opened_at=101),
            self.pays(5, "voided", opened_at=101),
            self.pays(6, "succeeded", opened_at=101)._replace(ticket=7),
            PaymentRow(8, SHOE, 8, PRICE, "failed", None),
            self.pays(9, "voided", opened_at=113),
            PaymentRow(10, SHOE, 5, PRICE, "succeeded", None, reference="till-1"),
            PaymentRow(11, SHOE, 8, PRICE, "succeeded", "s8", opened_at=137),
        ]
        self.ledger = [self.opened(f"s{n}", n, n) for n in (1, 2, 3, 4, 5, 6)]
        self.ledger += [self.opened("s8", 11, 8, 137), self.opened("s9", 9, 9, 113)]
        for ticket, at in ((1, 109.5), (2, 105), (3, 105), (4, 105), (6, 110.9), (8, 138)):
            self.ledger.append(self.moved(f"s{ticket}", "captured", at))
        self.ledger += [self.moved("s2", "refunded", 121), self.moved("s3", "refunded", 151)]
        self.ledger.append(self.moved("s4", "refunded", 124, key=None))
        self.ledger += [self.moved("s5", "voided", 104.2), self.moved("s9", "voided", 122.3)]
        self.acts = [Act(120, "refund_order", SHOE, SHOE << 32 | 2)]
        self.item = ItemRow(SHOE, 20, 10, 23, 0, None, settle_seconds=2, refund_seconds=60)
        self.history = History()
        self.history.epoch = 0.0
        self.keys = {}
        for ticket in (1, 2, 3, 4, 5, 6, 8, 9):
            created = self.orders[ticket - 1].created_at
            self.asks(ticket, created - 0.01, created + 0.01, "reserved")
        self.acted("refund_order", 2, "", 119.9)
        self.acted("pay_offline", 5, "till-1", 103.9)

    @staticmethod
    def pays(ticket: int, status: str, **more: Any) -> PaymentRow:
        return PaymentRow(ticket, SHOE, ticket, PRICE, status, f"s{ticket}", **more)

    def acted(self, kind: str, ticket: int, key: str, asked: float) -> None:
        """Staff did something about an order."""
        op = self.history.ask(kind, SHOE, key=key, order=(SHOE, ticket))
        op.asked, op.answered, op.status = asked, asked + 0.2, 200

    def pay(self, payment_id: int, **fields: Any) -> None:
        """Changes a payment."""
        n = [payment.payment_id for payment in self.payments].index(payment_id)
        self.payments[n] = self.payments[n]._replace(**fields)

    def move(self, session: str, what: str, **fields: Any) -> None:
        """Changes the line of the ledger that says so."""
        for line in self.ledger:
            if (line["session_id"], line.get("to")) == (session, what):
                line |= fields

    def run(self) -> Run:
        run = super().run()
        run.stock[SHOE] = 20
        run.provider_outages.append((111.8, 135.5))
        return run


def test_a_correct_run_in_which_money_goes_all_ways_has_no_violation() -> None:
    assert judge(MoneyStory().run()) == []


def test_the_ways_of_money_are_counted() -> None:
    count = exercised(MoneyStory().run())
    wanted = {"settling -> paid": 1, "paid -> refunded": 3, "offline payments": 1}
    wanted |= {"refunded by staff": 1, "refunded by customer": 1, "refunded by provider": 1}
    wanted |= {"reserved -> waiting": 1, "late money buys": 1, "seconds of outage": 23}
    assert {what: count[what] for what in wanted} == wanted


def money_in_time_expires(story: MoneyStory) -> None:
    story.change(1, status="expired", paid_at=None, ended_at=110.6, recycled=True)
    story.pay(1, status="refunded", refund_reason="late")
    story.ledger.append(story.moved("s1", "refunded", 111))


def late_money_buys_its_order(story: MoneyStory) -> None:
    story.move("s1", "captured", at=text(110.2))


def paid_when_it_was_heard_of(story: MoneyStory) -> None:
    story.change(1, paid_at=109.9)


def late_order_untold(story: MoneyStory) -> None:
    story.change(6, late=(SHOE, 5))
    story.asks(7, 115, 115.1, "paid")
    story.history.ops[-1].kind = "read"


def cancelled_and_kept(story: MoneyStory) -> None:
    story.change(6, status="cancelled", ended_at=108.0, recycled=True)


def given_back_too_late(story: MoneyStory) -> None:
    story.change(3, ended_at=166)


def refunded_without_a_word(story: MoneyStory) -> None:
    story.acts.clear()


def not_the_provider(story: MoneyStory) -> None:
    story.move("s4", "refunded", key="payment-4-refund")


def a_refund_that_was_promised(story: MoneyStory) -> None:
    story.acted("refund_order", 1, "", 130)


def two_refunds_for_one_order(story: MoneyStory) -> None:
    story.payments.append(PaymentRow(12, SHOE, 2, PRICE, "refunded", None, "staff", "till-2"))


def one_reference_twice(story: MoneyStory) -> None:
    story.change(9, status="paid", paid_at=120, ended_at=None, recycled=False)
    story.payments.append(PaymentRow(12, SHOE, 9, PRICE, "succeeded", None, reference="till-1"))


def a_till_that_is_not_believed(story: MoneyStory) -> None:
    story.acted("pay_offline", 9, "till-9", 115)


def paid_at_a_till_and_online(story: MoneyStory) -> None:
    story.move("s5", "voided", to="captured", at=text(104))
    story.pay(5, status="succeeded")


def left_open(story: MoneyStory) -> None:
    story.ledger = [line for line in story.ledger if line != story.moved("s5", "voided", 104.2)]


def declined_and_left_open(story: MoneyStory) -> None:
    story.move("s5", "voided", to="failed", payable=True)


def settled_for_too_long(story: MoneyStory) -> None:
    story.ledger = [line for line in story.ledger if line != story.moved("s9", "voided", 122.3)]
    story.ledger.append(story.moved("s9", "voided", 170))
    story.change(9, ended_at=140)


def settled_after_the_answer(story: MoneyStory) -> None:
    story.item = story.item._replace(settle_seconds=30)
    story.change(9, ended_at=140)


def shown_settling_for_too_long(story: MoneyStory) -> None:
    story.asks(9, 160, 160.1, "settling")
    story.history.ops[-1].body["expires_at"] = text(122.1)


def expired_in_an_outage(story: MoneyStory) -> None:
    story.change(8, status="expired", reserved_at=112, expires_at=122, lost_holds=())
    story.change(8, paid_at=None, ended_at=122.2, recycled=True)
    story.payments = [p for p in story.payments if p.payment_id != 11]
    story.ledger = [line for line in story.ledger if line["session_id"] != "s8"]


def lost_without_an_outage(story: MoneyStory) -> None:
    behind = (136, 146)  # began just after the outage, so the worker may have been behind
    lost = ((112, 122), behind, (146.1, 156.1))
    story.change(8, lost_holds=lost, reserved_at=156.2, expires_at=166.2)
    story.change(8, paid_at=160)
    story.move("s8", "captured", at=text(160))


def left_settling(story: MoneyStory) -> None:
    story.change(9, status="settling", ended_at=None, recycled=False)


@pytest.mark.parametrize(
    ("broken", "invariant"),
    [
        (money_in_time_expires, "money_in_time_buys"),
        (late_money_buys_its_order, "money_in_time_buys"),
        (paid_when_it_was_heard_of, "money_in_time_buys"),
        (late_order_untold, "late_money_is_told"),
        (cancelled_and_kept, "late_money_is_told"),
        (given_back_too_late, "refunds_go_back_once"),
        (refunded_without_a_word, "refunds_go_back_once"),
        (not_the_provider, "refunds_go_back_once"),
        (a_refund_that_was_promised, "refunds_go_back_once"),
        (two_refunds_for_one_order, "refunds_go_back_once"),
        (one_reference_twice, "offline_payments_count_once"),
        (a_till_that_is_not_believed, "offline_payments_count_once"),
        (paid_at_a_till_and_online, "every_capture_is_settled_once"),
        (left_open, "no_session_stays_open"),
        (declined_and_left_open, "no_session_stays_open"),
        (settled_for_too_long, "settling_is_short"),
        (settled_after_the_answer, "settling_is_short"),
        (shown_settling_for_too_long, "settling_is_short"),
        (expired_in_an_outage, "nobody_loses_a_place_to_an_outage"),
        (lost_without_an_outage, "nobody_loses_a_place_to_an_outage"),
        (left_settling, "nothing_is_left_over"),
    ],
)
def test_money_that_went_wrong_is_reported_by_its_name(
    broken: Callable[[MoneyStory], None], invariant: str
) -> None:
    story = MoneyStory()
    broken(story)
    assert {found.partition(":")[0] for found in judge(story.run())} == {invariant}


def group(
    tickets: range, least: int, units: int | None, status: str, created: float, **times: Any
) -> list[OrderRow]:
    """An order for as many units as there are tickets, and its parts, as the database has them."""
    head = order(tickets[0], status, created, **times)
    head = head._replace(quantity=len(tickets), min_quantity=least, units=units)
    parts = []
    for n, ticket in enumerate(tickets[1:], start=1):
        gone, held = head.ended_at, times.get("reserved")
        if units is not None and n >= units:  # given up at the grant
            gone, held = head.reserved_at, None
        parts.append(
            order(ticket, status, created, reserved=held, ended=gone)._replace(
                customer=None, head=head.ticket, recycled=gone is not None
            )
        )
    return [head._replace(recycled=head.ended_at is not None), *parts]


class GroupStory(MoneyStory):
    """Four units. An order for one unit beside orders for several.

    c1 gets two units and gives them back. c3 lets the hold expire. c4 wants three, is content with
    one, and so gives up tickets 5 and 6 at once. c7 waits for three units, gets one of them in
    time, and ends unserved. c10 waits behind it, for one. c4 asks again, for three or at least one
    (ticket 11), and gets the two that c1 has given back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stock = 4
        self.orders = [
            *group(range(1, 3), 2, 2, "refunded", 100, reserved=100, paid=105, ended=130),
            order(3, "expired", 100.1, reserved=100.1, ended=110.3)._replace(may_settle=True),
            *group(range(4, 7), 1, 1, "paid", 100.2, reserved=100.2, paid=106),
            *group(range(7, 10), 3, None, "unserved", 100.3, ended=120.4),
            order(10, "paid", 100.4, reserved=120.5, paid=121)._replace(units=1),
            *group(range(11, 14), 1, 2, "paid", 107, reserved=130.1, paid=131),
        ]
        self.change(4, may_buy_again=True)
        self.change(7, part_served_at=110.3)
        self.change(11, customer="c4", part_served_at=130.1)
        self.change(13, recycled=False)  # the line has not reached it
        self.orders = joined(self.orders)
        self.payments = [
            self.pays(1, "refunded", refund_reason="customer", opened_at=101)._replace(amount=2000),
            self.pays(3, "voided", opened_at=101),
            self.pays(4, "succeeded", opened_at=101),
            self.pays(10, "succeeded", opened_at=120.6),
            self.pays(11, "succeeded", opened_at=130.2)._replace(amount=2000),
        ]
        opened = ((1, 101.0), (3, 101.0), (4, 101.0), (10, 120.6), (11, 130.2))
        self.ledger = [self.opened(f"s{n}", n, n, at) for n, at in opened]
        for ticket, at, amount in ((1, 105, 2000), (4, 106, 1000), (10, 121, 1000)):
            self.ledger.append(self.moved(f"s{ticket}", "captured", at, amount=amount))
        self.ledger.append(self.moved("s11", "captured", 131, amount=2000))
        self.ledger.append(self.moved("s1", "refunded", 131, amount=2000))
        self.ledger.append(self.moved("s3", "voided", 110.2))
        self.acts = []
        terms = {"price": PRICE, "max_per_order": 3, "max_per_customer": 4}
        self.item = ItemRow(SHOE, 4, 10, 12, 0, None, refund_seconds=60, **terms)
        self.history = History()
        self.history.epoch = 0.0
        self.keys = {}
        for ticket in (1, 3, 4, 7, 10, 11):
            row = self.orders[ticket - 1]
            self.asks(ticket, row.created_at - 0.01, row.created_at + 0.01)
            self.history.ops[-1].quantity = row.quantity
            self.history.ops[-1].min_quantity = row.min_quantity
            self.history.ops[-1].body["quantity"] = row.quantity

    def run(self) -> Run:
        run = Story.run(self)
        run.stock[SHOE] = self.stock
        return run

    def refused(self, ticket: int, code: str, **body: Any) -> None:
        """The customer of a ticket asks again, and is refused."""
        op = self.history.ask("reserve", SHOE, customer=f"c{ticket}", key=f"k{ticket}")
        op.asked, op.answered, op.status, op.body = 150, 150.1, 409, {"code": code} | body


def test_a_correct_run_with_groups_has_no_violation() -> None:
    story = GroupStory()
    assert judge(story.run()) == []
    count = exercised(story.run())
    kinds = ("groups", "groups granted whole", "groups granted in part", "groups in vain")
    assert [count[kind] for kind in kinds] == [4, 1, 2, 1]


def group_that_had_enough(story: GroupStory) -> None:
    for ticket in (7, 8, 9):
        story.change(ticket, min_quantity=1)
    story.history.ops[3].min_quantity = 1


def single_behind_a_group(story: GroupStory) -> None:
    story.change(10, reserved_at=135, expires_at=145, paid_at=136)
    story.move("s10", "captured", at=text(136))


def kept_for_too_long(story: GroupStory) -> None:
    for ticket in (7, 8, 9):
        story.change(ticket, ended_at=125)
    story.change(10, reserved_at=125.1, expires_at=135.1, paid_at=126)
    story.move("s10", "captured", at=text(126))


def given_up_too_early(story: GroupStory) -> None:
    story.change(7, part_served_at=115)


def fewer_than_wanted(story: GroupStory) -> None:
    story.change(4, min_quantity=2)


def part_that_goes_on(story: GroupStory) -> None:
    story.change(2, ended_at=129.5)


def part_that_never_ends(story: GroupStory) -> None:
    story.change(13, ended_at=None)


def unit_that_no_ticket_has(story: GroupStory) -> None:
    story.change(11, units=3)


def part_without_order(story: GroupStory) -> None:
    story.change(13, head=9)


def unit_left_at_the_grant(story: GroupStory) -> None:
    story.stock = 5


def sold_beyond_the_limit(story: GroupStory) -> None:
    story.item = story.item._replace(max_per_customer=3)


def sold_beyond_an_order_s_limit(story: GroupStory) -> None:
    story.item = story.item._replace(max_per_order=2, max_per_customer=4)


def two_orders_of_a_product(story: GroupStory) -> None:
    story.change(4, may_buy_again=False)


def amount_of_one_unit(story: GroupStory) -> None:
    story.pay(11, amount=PRICE)


def another_quantity(story: GroupStory) -> None:
    story.history.ops[0].body["quantity"] = 1


def other_units(story: GroupStory) -> None:
    story.history.ops[2].body["units"] = 3


def one_key_for_two_requests(story: GroupStory) -> None:
    story.asks(7, 101, 101.1)


def key_reused_without_need(story: GroupStory) -> None:
    story.refused(3, "key_reused")


def too_many_without_need(story: GroupStory) -> None:
    story.refused(3, "too_many")


def other_order_that_is_none(story: GroupStory) -> None:
    story.refused(3, "has_other_order", order_id=str(SHOE << 32 | 3))


@pytest.mark.parametrize(
    ("broken", "invariants"),
    [
        (group_that_had_enough, "freed_units_are_offered_again"),
        (single_behind_a_group, "served_in_order freed_units_are_offered_again"),
        (kept_for_too_long, "set_aside_units_move_on"),
        (given_up_too_early, "set_aside_units_move_on served_in_order"),
        (fewer_than_wanted, "groups_get_what_is_there"),
        (part_that_goes_on, "groups_get_what_is_there"),
        (part_that_never_ends, "groups_get_what_is_there"),
        (unit_that_no_ticket_has, "groups_get_what_is_there the_amount_follows_the_units"),
        (part_without_order, "groups_get_what_is_there"),
        (unit_left_at_the_grant, "nobody_waits_without_need freed_units_are_offered_again"),
        (sold_beyond_the_limit, "limits_hold"),
        (sold_beyond_an_order_s_limit, "limits_hold"),
        (two_orders_of_a_product, "one_live_order_a_customer"),
        (amount_of_one_unit, "the_amount_follows_the_units"),
        (another_quantity, "what_was_acknowledged_exists"),
        (other_units, "what_was_acknowledged_exists"),
        (one_key_for_two_requests, "equal_keys_get_equal_answers"),
        (key_reused_without_need, "refusals_are_justified"),
        (too_many_without_need, "refusals_are_justified"),
        (other_order_that_is_none, "refusals_are_justified"),
    ],
)
def test_groups_that_went_wrong_are_reported_by_name(
    broken: Callable[[GroupStory], None], invariants: str
) -> None:
    story = GroupStory()
    broken(story)
    assert {found.partition(":")[0] for found in judge(story.run())} == set(invariants.split())


def extended(story: Story) -> None:
    story.acts.append(Act(105, "extend_holds", SHOE, None, seconds=5))
    story.change(1, expires_at=115, ended_at=115.2)
    story.change(3, reserved_at=115.3, expires_at=125.3, paid_at=117)
    story.ledger[-1] = story.moved("s2", "captured", 117)


def test_extended_holds_are_longer() -> None:
    story = Story()
    extended(story)
    story.asks(1, 101, 101.1)
    story.history.ops[-1].body["expires_at"] = text(110)  # before the extension
    assert judge(story.run()) == []


def test_a_hold_that_was_not_extended_with_the_others_is_found() -> None:
    story = Story()
    story.acts.append(Act(105, "extend_holds", SHOE, None, seconds=5))
    assert {it.partition(":")[0] for it in judge(story.run())} == {"every_hold_gets_its_window"}


def test_every_invariant_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "invariants.md").read_text()
    assert [it.__name__ for it in INVARIANTS if f"| `{it.__name__}` |" not in text] == []


def test_an_outage_does_not_count_against_the_bound() -> None:
    story = Story()
    idle_unit(story)
    run = story.run()
    run.outages.append((110.0, 112.0))
    assert judge(run) == []


def test_too_little_exercise_fails_a_run() -> None:
    (problem,) = judge(Story().run(), {"waiting -> reserved": 2, "reserved -> paid": 1})
    assert problem.startswith("too little exercise: waiting -> reserved happened 1 times")


def test_the_table_shows_each_row_and_what_was_found() -> None:
    text = table([Row("storm", 1, 20_000, 3, 0, ["lost a unit"]), Row("disk full", skipped="root")])
    assert "20,000" in text
    assert "VIOLATION  storm: lost a unit" in text
    assert "skipped: root" in text


@pytest.mark.parametrize(
    ("lost", "again", "found"),
    [
        (((112, 122), (136, 146)), 155.0, set()),
        (((112, 122), (136, 146)), 159.0, {"freed_units_are_offered_again", "served_in_order"}),
        (((112, 122),), 145.0, {"freed_units_are_offered_again", "served_in_order"}),
    ],
    ids=["for a while", "for too long", "after one"],
)
def test_who_has_lost_two_holds_waits_until_sessions_are_opened_in_time(
    lost: tuple[tuple[float, float], ...], again: float, found: set[str]
) -> None:
    story = MoneyStory()
    story.change(8, lost_holds=lost, reserved_at=again, expires_at=again + 10, paid_at=again + 2)
    story.move("s8", "captured", at=text(again + 2))
    assert {it.partition(":")[0] for it in judge(story.run())} == found
