"""Tests of the checker: a correct run passes, and each broken invariant is reported by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prove.judge.checker import INVARIANTS, FinalTables, ItemRow, OrderRow, PaymentRow, Run, judge
from prove.judge.history import History
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
            {"kind": "opened", "session_id": "s1", "payment_id": "1"},
            self.moved("s1", "captured"),
            self.moved("s1", "refunded"),
            {"kind": "opened", "session_id": "s2", "payment_id": "2"},
            self.moved("s2", "captured"),
        ]
        self.item = ItemRow(SHOE, 1, 10, now_serving=3, withdrawing=0, closes_at=150)
        self.jobs = 0
        self.violations: list[str] = []
        for ticket, asked in ((1, 99.9), (3, 101.9), (4, 102.9)):
            self.asks(ticket, asked, asked + 0.2)
        self.asks(1, 100.5, 100.6)  # the same key again

    @staticmethod
    def moved(session: str, to: str, amount: int = PRICE) -> dict[str, Any]:
        return {"kind": "moved", "session_id": session, "to": to, "amount": amount}

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
    story.ledger[2] = story.moved("s1", "refunded", PRICE - 1)


def paid_without_money(story: Story) -> None:
    story.ledger.pop()
    story.payments[1] = story.payments[1]._replace(status="open")


def granted_without_a_job(story: Story) -> None:
    del story.payments[0], story.ledger[:3]


def two_sessions(story: Story) -> None:
    story.ledger.append({"kind": "opened", "session_id": "s3", "payment_id": "1"})


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
