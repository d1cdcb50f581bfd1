"""Items as the operators see and change them: terms, stock, pausing, closing."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from flashsale.testing.clock import Clock
from support import (
    Call,
    Connection,
    call,
    connect,
    item,
    item_status,
    many,
    pay,
    reserve,
    rows,
    sessions,
    settle,
    statuses,
    sweep,
    value,
)


def units(db: Connection, item_id: int) -> tuple[int, ...]:
    """(stock, available, reserved, paid, waiting, withdrawing) after a sweep."""
    sweep(db)
    s = item_status(db, item_id)
    return (s.stock, s.available, s.reserved, s.paid, s.waiting, s.withdrawing)


def test_an_item_shows_its_terms_and_where_its_units_are(db: Connection) -> None:
    shoe = item(db, stock=5)
    orders = many(db, shoe, ["ann", "bob", "cid"])
    pay(db, orders[0])
    assert units(db, shoe) == (5, 2, 2, 1, 0, 0)
    many(db, shoe, ["dan", "eve", "fay", "gus"])
    assert units(db, shoe) == (5, 0, 4, 1, 2, 0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sku": ""}, "sku"),
        ({"sku": "x" * 65}, "sku"),
        ({"sku": None}, "sku"),
        ({"name": ""}, "name"),
        ({"price": 0}, "price"),
        ({"price": 10**12 + 1}, "price"),
        ({"currency": "eur"}, "currency"),
        ({"stock": -1}, "stock"),
        ({"stock": 10_000_001}, "stock"),
        ({"hold_seconds": 0}, "hold_seconds"),
        ({"hold_seconds": 604_801}, "hold_seconds"),
        ({"max_waiting": -1}, "max_waiting"),
        ({"late_payment": "maybe"}, "late_payment"),
        ({"opens_at": "2030-01-02Z", "closes_at": "2030-01-01Z"}, "opens_at must be before"),
        ({"opens_at": "infinity"}, "2000 to 2999"),
        ({"closes_at": "20026-01-01Z"}, "2000 to 2999"),
    ],
)
def test_impossible_terms_are_refused_with_a_clear_message(
    db: Connection, changes: dict[str, Any], problem: str
) -> None:
    terms = (
        {"sku": "shoe", "name": "Shoe", "price": 1, "currency": "EUR", "stock": 1}
        | {"hold_seconds": 60}
        | changes
    )
    named = ", ".join(f"p_{name} => %s" for name in terms)
    with pytest.raises(psycopg.Error) as error:
        rows(db, f"select * from flashsale.create_item({named})", *terms.values())
    assert error.value.sqlstate == "RV302"
    assert problem in str(error.value)
    assert rows(db, "select * from flashsale.item_status") == []
    assert value(db, "select count(*) from pg_sequences where sequencename like 'line%%'") == 0


def test_a_sku_is_taken_once(db: Connection) -> None:
    item(db)
    with pytest.raises(psycopg.Error) as error:
        item(db)
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV201", "sku_taken")


def test_new_units_go_to_the_line_first(db: Connection) -> None:
    shoe = item(db)
    many(db, shoe, ["ann", "bob", "cid"])
    call(db, "restock", shoe, 1)
    (dan,) = many(db, shoe, ["dan"])
    assert dan.outcome == "waiting"
    sweep(db)
    assert statuses(db, shoe) == {
        "ann": "reserved",
        "bob": "reserved",
        "cid": "waiting",
        "dan": "waiting",
    }


def test_free_units_are_withdrawn_at_once(db: Connection) -> None:
    shoe = item(db, stock=5)
    many(db, shoe, ["ann"])
    call(db, "withdraw", shoe, 3)
    assert units(db, shoe) == (2, 1, 1, 0, 0, 0)
    assert [o.outcome for o in many(db, shoe, ["bob", "cid"])] == ["reserved", "waiting"]


def test_units_that_are_held_are_withdrawn_as_they_come_back(db: Connection) -> None:
    shoe = item(db, stock=3)
    orders = many(db, shoe, ["ann", "bob", "cid", "dan"])
    call(db, "withdraw", shoe, 2)
    assert units(db, shoe) == (3, 0, 3, 0, 1, 2)
    call(db, "cancel", orders[0].order_id)
    assert units(db, shoe) == (2, 0, 2, 0, 1, 1)
    call(db, "cancel", orders[1].order_id)
    assert units(db, shoe) == (1, 0, 1, 0, 1, 0)
    call(db, "cancel", orders[2].order_id)
    assert units(db, shoe) == (1, 0, 1, 0, 0, 0)
    assert statuses(db, shoe)["dan"] == "reserved"


def test_a_withdrawn_unit_never_comes_back(db: Connection) -> None:
    shoe = item(db, stock=2)
    call(db, "withdraw", shoe, 2)
    settle(db)
    (ann,) = many(db, shoe, ["ann"])
    assert ann.outcome == "waiting"
    settle(db)
    assert units(db, shoe) == (0, 0, 0, 0, 1, 0)


def test_new_units_settle_what_is_still_to_be_withdrawn(db: Connection) -> None:
    shoe = item(db, stock=2)
    many(db, shoe, ["ann", "bob", "cid"])
    call(db, "withdraw", shoe, 2)
    call(db, "restock", shoe, 3)
    assert units(db, shoe) == (3, 0, 3, 0, 0, 0)


def test_paid_units_can_not_be_withdrawn(db: Connection) -> None:
    shoe = item(db, stock=3)
    orders = many(db, shoe, ["ann", "bob"])
    pay(db, orders[0])  # not folded into the item yet
    with pytest.raises(psycopg.Error) as error:
        call(db, "withdraw", shoe, 3)
    assert (error.value.sqlstate, error.value.diag.constraint_name) == (
        "RV204",
        "withdraw_too_much",
    )
    assert "Only 2" in str(error.value)
    call(db, "withdraw", shoe, 2)
    with pytest.raises(psycopg.Error):
        call(db, "withdraw", shoe, 1)
    assert units(db, shoe) == (2, 0, 1, 1, 0, 1)


def test_no_units_can_be_withdrawn_when_those_to_be_withdrawn_are_paid(db: Connection) -> None:
    shoe = item(db)
    (ann,) = many(db, shoe, ["ann"])
    call(db, "withdraw", shoe, 1)
    pay(db, ann)
    with pytest.raises(psycopg.Error, match="Only 0 of the units") as error:
        call(db, "withdraw", shoe, 1)
    assert error.value.sqlstate == "RV204"


def test_a_million_units_are_withdrawn_in_one_statement(db: Connection) -> None:
    """However many they are, they are a few rows, and the line behind them goes on."""
    shoe = item(db, stock=1_000_000)
    (ann,) = many(db, shoe, ["ann"])
    with db.transaction(force_rollback=True):
        reserve(db, shoe, "bob")  # a hole
    call(db, "withdraw", shoe, 989_998)
    assert units(db, shoe) == (10_002, 10_000, 2, 0, 0, 0)
    assert value(db, "select count(*) from flashsale_data.withdrawn_tickets") == 1
    assert value(db, "select count(*) from flashsale_data.orders") == 1
    (bob,) = many(db, shoe, ["bob"])
    assert (bob.outcome, bob.ticket) == ("reserved", 989_998 + 3)
    with db.transaction(force_rollback=True):
        reserve(db, shoe, "cid")  # another hole, behind the withdrawn ones
    for _ in range(3):
        sweep(db)  # a visit looks at 100,000 tickets, and the withdrawn ones are as one
    assert value(db, "select settled from flashsale_data.items") == bob.ticket + 1
    assert units(db, shoe) == (10_002, 10_000, 2, 0, 0, 0)
    call(db, "cancel", ann.order_id)
    assert units(db, shoe) == (10_002, 10_001, 1, 0, 0, 0)


def test_requests_during_a_withdrawal_keep_their_tickets(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=100_000)
    with sessions(database_url, 4) as conns:
        operator, *rest = conns

        def storm(conn: Connection, n: int) -> list[Any]:
            return [reserve(conn, shoe, f"{n} {i}") for i in range(100)]

        storms = [Call(partial(storm, conn, n)) for n, conn in enumerate(rest)]
        call(operator, "withdraw", shoe, 20_000)
        orders = [order for running in storms for order in running.result()]
    assert {o.outcome for o in orders} == {"reserved"}
    settle(db)
    assert units(db, shoe) == (80_000, 79_700, 300, 0, 0, 0)


def test_tickets_between_those_of_a_withdrawal_are_not_withdrawn(db: Connection) -> None:
    """As if another customer took every second ticket, and rolled back."""
    shoe = item(db, stock=10)
    db.execute(f"alter sequence flashsale_data.line_{shoe} increment by 2")
    call(db, "withdraw", shoe, 10)
    assert value(db, "select count(*) from flashsale_data.withdrawn_tickets") == 5
    assert value(db, "select count(*) from flashsale_data.orders where status = 'void'") == 5
    assert units(db, shoe)[0] == 5 and item_status(db, shoe).withdrawing == 5
    settle(db)
    assert units(db, shoe) == (0, 0, 0, 0, 0, 0)


def test_a_withdrawal_that_rolls_back_withdraws_nothing(db: Connection) -> None:
    shoe = item(db, stock=1_000)
    with db.transaction(force_rollback=True):
        call(db, "withdraw", shoe, 990)
    assert value(db, "select count(*) from flashsale_data.withdrawn_tickets") == 0
    settle(db)
    assert units(db, shoe) == (1_000, 1_000, 0, 0, 0, 0)


@pytest.mark.parametrize("verb", ["restock", "withdraw"])
@pytest.mark.parametrize("count", [0, -1, None])
def test_units_are_at_least_one(db: Connection, verb: str, count: int | None) -> None:
    shoe = item(db, stock=3)
    with pytest.raises(psycopg.Error) as error:
        call(db, verb, shoe, count)
    assert error.value.sqlstate == "RV302"


def test_a_change_is_all_or_nothing(db: Connection) -> None:
    shoe = item(db, stock=3)
    for changes in [
        {"hold_seconds": 90, "withdraw_stock": 4},
        {"hold_seconds": 90, "sku": "boot"},
        {"hold_seconds": 0, "add_stock": 1},
        {"hold_seconds": None},
        {"add_stock": 10_000_000},
    ]:
        with pytest.raises(psycopg.Error) as error:
            call(db, "change_item", shoe, Jsonb(changes))
        assert (error.value.sqlstate or "").startswith("RV"), changes
    assert (item_status(db, shoe).hold_seconds, item_status(db, shoe).stock) == (60, 3)


def test_a_change_sets_what_it_names_and_null_removes(db: Connection, clock: Clock) -> None:
    shoe = item(db, max_waiting=5, closes_at=clock.at(60))
    changed = call(
        db,
        "change_item",
        shoe,
        Jsonb({"max_waiting": None, "closes_at": None, "hold_seconds": 5, "paused": True}),
    )
    assert (changed.max_waiting, changed.closes_at, changed.hold_seconds, changed.state) == (
        None,
        None,
        5,
        "paused",
    )


def test_a_shorter_hold_leaves_running_holds_alone(db: Connection) -> None:
    shoe = item(db, stock=2, hold_seconds=60)
    (ann,) = many(db, shoe, ["ann"])
    call(db, "change_item", shoe, Jsonb({"hold_seconds": 5}))
    (bob,) = many(db, shoe, ["bob"])
    assert call(db, "order_status", ann.order_id).expires_at == ann.expires_at
    assert (bob.expires_at - bob.reserved_at).total_seconds() == 5


def test_an_unknown_item_is_an_error_for_every_verb(db: Connection) -> None:
    for verb, args in [
        ("item_status", ()),
        ("restock", (1,)),
        ("withdraw", (1,)),
        ("open_item", ()),
        ("close_item", ()),
        ("pause_item", ()),
        ("resume_item", ()),
        ("change_item", (Jsonb({}),)),
    ]:
        with pytest.raises(psycopg.Error) as error:
            call(db, verb, 999, *args)
        assert error.value.sqlstate == "RV101", verb


def test_a_sale_that_never_opened_can_be_closed_and_opened(db: Connection, clock: Clock) -> None:
    shoe = item(db, opens_at=clock.at(60))
    assert call(db, "close_item", shoe).state == "closed"
    assert call(db, "open_item", shoe).state == "open"


def test_customers_do_not_wait_for_an_operator(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=2)
    with connect(database_url, autocommit=False) as operator:
        call(operator, "withdraw", shoe, 1)
        (ann,) = Call(lambda: many(db, shoe, ["ann"])).result()
        assert ann.outcome == "reserved"
        assert Call(lambda: sweep(db)).result().promoted == 0
        operator.commit()
    assert units(db, shoe) == (1, 0, 1, 0, 0, 0)


def test_items_are_listed_page_by_page(db: Connection) -> None:
    ids = [item(db, f"i{n}") for n in range(5)]
    assert [r.item_id for r in rows(db, "select * from flashsale.items(2)")] == ids[:2]
    assert [r.item_id for r in rows(db, "select * from flashsale.items(9, %s)", ids[2])] == ids[3:]
