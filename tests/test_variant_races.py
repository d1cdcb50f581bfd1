"""A customer asks for S, M and L at the same moment: they get one of them, whoever decides."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import pytest

from flashsale.testing import Clock
from flashsale.testing.calls import call_all
from support import (
    Call,
    Connection,
    blocked,
    call,
    connect,
    eventually,
    item,
    item_status,
    pay,
    rows,
    sessions,
    settle,
    status,
    value,
)

SIZES = ("S", "M", "L")


@pytest.fixture
def shirts(db: Connection) -> list[int]:
    """Three variants of a product, of which a customer may have two units in all."""
    return variants(db, stock=1000)


def variants(db: Connection, **terms: Any) -> list[int]:
    limits = {"product": "shirt", "max_per_order": 2, "max_per_customer": 2}
    return [item(db, size, **(terms | limits)) for size in SIZES]


def at_once(url: str, tasks: list[Callable[[Connection], Any]]) -> list[Any]:
    """Each task on a connection of its own, all at the same moment."""
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[Connection], Any], conn: Connection) -> Any:
        start.wait()
        return task(conn)

    with sessions(url, len(tasks)) as conns:
        running = [Call(partial(run, *it)) for it in zip(tasks, conns, strict=True)]
        return [it.result() for it in running]


def asks(item_id: int, customer: str, quantity: int = 1) -> Callable[[Connection], Any]:
    return lambda conn: call(conn, "reserve", item_id, customer, None, True, quantity)


def asks_for_all(
    items: list[int], customer: str, quantities: list[int]
) -> Callable[[Connection], list[Any]]:
    """The same in one batch."""
    return lambda conn: call_all(
        conn,
        "reserve_many",
        *(items, [customer] * len(items), None, None, quantities, None),
    )


def open_orders(db: Connection, customer: str) -> list[Any]:
    return rows(
        db,
        "select * from flashsale.order_status where customer_id = %s and ended_at is null "
        "and status <> 'paid'",
        customer,
    )


def one_of_them(db: Connection, customer: str, answers: list[Any]) -> None:
    """Exactly one request got an order, and all the others were told of it."""
    (mine,) = open_orders(db, customer)
    count = Counter(answer.outcome for answer in answers)
    assert set(count) <= {"reserved", "existing", "has_other_order"}
    assert count["reserved"] == 1
    assert {answer.order_id for answer in answers} == {mine.order_id}
    for answer in answers:
        assert (answer.outcome == "has_other_order") == (answer.item_id != mine.item_id)


def test_a_customer_who_asks_for_all_sizes_at_once_gets_one(
    db: Connection, database_url: str, shirts: list[int]
) -> None:
    for n in range(15):
        answers = at_once(database_url, [asks(it, f"c{n}", 1 + n % 2) for it in shirts * 2])
        one_of_them(db, f"c{n}", answers)


def test_batches_in_every_order_get_one_size(
    db: Connection, database_url: str, shirts: list[int]
) -> None:
    for n in range(8):
        tasks = [
            asks_for_all(list(order), f"c{n}", [1 + n % 2] * 3) for order in permutations(shirts)
        ]
        answers = [answer for batch in at_once(database_url, tasks) for answer in batch]
        one_of_them(db, f"c{n}", answers)


def test_a_batch_gives_the_first_size_that_it_asks_for(db: Connection, shirts: list[int]) -> None:
    small, medium, large = shirts
    batch = asks_for_all([medium, small, large, medium], "ann", [2, 1, 1, 1])(db)
    assert [answer.outcome for answer in batch] == [
        "reserved",
        "has_other_order",
        "has_other_order",
        "existing",
    ]
    assert len({answer.order_id for answer in batch}) == 1
    issued = [item_status(db, it).issued for it in shirts]
    assert issued[1] == 2 and issued[0] == issued[2] == 0


def test_two_who_ask_for_two_sizes_crosswise_do_not_deadlock(
    db: Connection, database_url: str, shirts: list[int]
) -> None:
    small, _, large = shirts

    def crosswise(names: list[str], items: list[int]) -> Callable[[Connection], Any]:
        def work(conn: Connection) -> Any:
            return [
                call_all(conn, "reserve_many", items, [f"{name}{n}" for name in names])
                for n in range(100)
            ]

        return work

    batches = [(["ann", "bob"], [small, large]), (["bob", "ann"], [small, large])]
    at_once(database_url, [crosswise(*it) for it in batches])
    for n in range(100):
        for name in ("ann", "bob"):
            assert len(open_orders(db, f"{name}{n}")) == 1


def test_batches_that_meet_crosswise_at_a_product_do_not_deadlock(
    db: Connection, database_url: str, shirts: list[int]
) -> None:
    """Both wait for ann, whom somebody else orders for, and nobody holds bob meanwhile."""
    small, _, large = shirts
    with sessions(database_url, 3) as (other, one, two):
        for n in range(10):
            names = [f"ann{n}", f"bob{n}"]
            other.execute("begin")
            call(other, "reserve", small, names[0])
            calls = [
                Call(partial(call_all, conn, "reserve_many", [small, large], customers))
                for conn, customers in ((one, names), (two, names[::-1]))
            ]
            for conn in (one, two):
                eventually(partial(blocked, db, conn))
            other.execute("rollback")
            answers = [answer for it in calls for answer in it.result()]
            for name in names:
                one_of_them(db, name, [a for a in answers if a.customer_id == name])


@pytest.mark.parametrize("commits", [True, False])
def test_a_request_waits_for_the_other_size_that_is_being_ordered(
    db: Connection, database_url: str, shirts: list[int], commits: bool
) -> None:
    small, _, large = shirts
    with connect(database_url) as one, connect(database_url) as two:
        one.execute("begin")
        first = call(one, "reserve", small, "ann", None, True, 2)
        waiting = Call(lambda: call(two, "reserve", large, "ann", None, True, 2))
        eventually(lambda: blocked(db, two))
        one.execute("commit" if commits else "rollback")
        second = waiting.result()
    if commits:
        assert (second.outcome, second.order_id) == ("has_other_order", first.order_id)
        assert [o.item_id for o in open_orders(db, "ann")] == [small]
    else:
        assert (second.outcome, second.units) == ("reserved", 2)
        assert [o.item_id for o in open_orders(db, "ann")] == [large]
    settle(db)
    assert rows(db, "select * from flashsale.violation") == []


def test_money_and_the_next_size_at_once_keep_the_limit(
    db: Connection, database_url: str, shirts: list[int]
) -> None:
    small, medium, large = shirts
    outcomes: Counter[str] = Counter()
    for n in range(15):
        who = f"c{n}"
        first = call(db, "reserve", small, who)

        def pays(conn: Connection, order: Any = first) -> Any:
            return pay(conn, order)

        tasks = [pays, *(asks(it, who, 2 - n % 2) for it in (medium, large) * 2)]
        paid, *others = at_once(database_url, tasks)
        assert paid.outcome == "paid"
        outcomes.update(answer.outcome for answer in others)
        had = value(
            db,
            "select sum(coalesce(units, quantity)) from flashsale.order_status "
            "where customer_id = %s and ended_at is null",
            who,
        )
        assert had <= 2
        assert len(open_orders(db, who)) <= 1
    assert outcomes["has_other_order"] or outcomes["too_many"]
    settle(db)
    assert rows(db, "select * from flashsale.violation") == []


def test_a_refund_and_the_next_size_at_once_keep_the_limit(
    db: Connection, database_url: str, shirts: list[int]
) -> None:
    small, medium, large = shirts
    for n in range(15):
        who = f"c{n}"
        first = call(db, "reserve", small, who, None, True, 2)
        assert pay(db, first).outcome == "paid"

        def refunds(conn: Connection, order: Any = first) -> Any:
            return call(conn, "refund_order", order.order_id, "broken")

        back, *others = at_once(
            database_url, [refunds, *(asks(it, who, 2) for it in (medium, large) * 2)]
        )
        assert back.outcome == "refunded"
        assert {it.outcome for it in others} <= {"existing", "reserved", "has_other_order"}
        assert len(open_orders(db, who)) <= 1
        assert status(db, first.order_id).status == "refunded"
    settle(db)
    assert rows(db, "select * from flashsale.violation") == []


def test_an_expired_hold_and_another_size_at_once(
    db: Connection, database_url: str, clock: Clock, shirts: list[int]
) -> None:
    """The hold is over, and nobody has swept: one of the requests ends it, and gets another."""
    small, medium, large = shirts
    for n in range(10):
        call(db, "reserve", small, f"c{n}", None, True, 2)
    clock.advance(60)
    for n in range(10):
        answers = at_once(database_url, [asks(it, f"c{n}") for it in (medium, large) * 2])
        one_of_them(db, f"c{n}", answers)
