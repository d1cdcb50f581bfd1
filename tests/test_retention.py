"""What only grows is deleted by age, some rows at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from erasing_support import buy, work
from flashsale.testing import Clock
from support import Connection, call, connect, item, reserve, rows, settle, sweep, value

DAY = 86400.0


def purge_all(db: Connection, limit: int = 1000) -> int:
    """Purges until today's walks have ended; returns how many rows were deleted."""
    purged = 0
    while (told := call(db, "purge", limit)).more:
        purged += told.purged
    return purged


def keys(db: Connection) -> list[str]:
    found = rows(db, "select idempotency_key from flashsale_data.order_keys order by 1")
    return [row[0] for row in found]


def test_the_defaults_are_what_the_docs_say(db: Connection) -> None:
    kept = {r.kind: r.days for r in rows(db, "select kind, days from flashsale.retention")}
    assert kept == {
        "keys": 90,
        "request_keys": 90,
        "payment_events": 180,
        "dead_mail": 90,
        "events": 90,
        "history": None,
    }


def test_keys_go_so_long_after_their_orders_have_ended(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2)
    buy(db, shoe, "ann", "paid")
    call(db, "cancel", reserve(db, shoe, "bob", "ended").order_id)
    reserve(db, item(db, "hat", hold_seconds=604800), "cid", "later")
    waits = item(db, "coat", stock=0)
    reserve(db, waits, "dan", "waits")
    work(db)
    clock.advance(90 * DAY - 1)
    assert (purge_all(db), keys(db)) == (0, ["ended", "later", "paid", "waits"])
    clock.advance(DAY)
    assert purge_all(db) == 2
    assert keys(db) == ["later", "waits"], "those of orders that have not ended stay"
    assert reserve(db, waits, "dan", "waits").outcome == "existing"


def test_the_key_of_an_entry_goes_with_the_order_that_was_drawn_from_it(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=1, draw=True, opens_at=clock.at() + timedelta(seconds=60))
    entered = [reserve(db, shoe, customer, customer).order_id for customer in ("ann", "bob")]
    clock.advance(61)
    settle(db)
    call(db, "cancel", entered[0])
    call(db, "cancel", entered[1])
    work(db)
    clock.advance(90 * DAY - 1)
    assert (purge_all(db), keys(db)) == (0, ["ann", "bob"])
    clock.advance(DAY)
    assert (purge_all(db), keys(db)) == (2, [])


def test_a_retry_with_an_old_key_is_a_new_request(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2)
    first = reserve(db, shoe, "ann", "k")
    call(db, "cancel", first.order_id)
    assert reserve(db, shoe, "ann", "k").order_id == first.order_id
    clock.advance(91 * DAY)
    purge_all(db)
    assert reserve(db, shoe, "ann", "k").order_id != first.order_id


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_walk_sees_every_key_whatever_the_size_of_its_steps(
    db: Connection, clock: Clock, limit: int
) -> None:
    shoe, hat = item(db, stock=20), item(db, "hat", stock=20)
    for customer in ("b", "a", "B", "z z", "~"):
        for of in (shoe, hat):
            for key in ("k2", "k1"):
                order = reserve(db, of, customer, key)
            if customer != "a":
                call(db, "cancel", order.order_id)
    clock.advance(91 * DAY)
    steps = []
    while (told := call(db, "purge", limit)).more:
        assert told.purged <= limit
        steps.append(told.purged)
    assert sum(steps) == 16
    assert {row[0] for row in rows(db, "select customer_id from flashsale_data.order_keys")} == {
        "a"
    }


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_keys_of_other_calls_go_too(db: Connection, clock: Clock, limit: int) -> None:
    shoe = item(db)
    restock = "select flashsale.restock(%s, 1, p_idempotency_key => %s)::text"
    for key in "abc":
        value(db, restock, shoe, key)
    clock.advance(45 * DAY)
    value(db, restock, shoe, "d")
    clock.advance(46 * DAY)
    assert purge_all(db, limit) == 3
    value(db, restock, shoe, "d")
    assert call(db, "item_status", shoe).stock == 5, "this one is known"


def test_payment_events_go_and_the_same_event_finds_its_payment(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    work(db)
    event = ["payment.succeeded", f"s{order.payment_id}", str(order.payment_id), 1000, "EUR"]
    record = "select flashsale.record_payment_event(%s, %s, %s, %s, %s, %s, null)"
    assert value(db, record, "e1", *event) == "paid"
    clock.advance(180 * DAY - 1)
    assert value(db, record, "e2", *event) == "already_paid"
    assert purge_all(db) == 0
    clock.advance(DAY)
    assert purge_all(db) == 1
    assert [r[0] for r in rows(db, "select event_id from flashsale_data.payment_events")] == ["e2"]
    assert value(db, record, "e1", *event) == "already_paid", "no money goes back"


def test_undeliverable_e_mails_go_and_what_is_about_money_stays(
    db: Connection, clock: Clock
) -> None:
    for queue in ("notifications", "payments"):
        db.execute(
            "insert into flashsale_data.dead_letters (queue, message, tries, enqueued_at, died_at) "
            "select %s, '{}', 1, flashsale.clock(), flashsale.clock()",
            [queue],
        )
    clock.advance(91 * DAY)
    assert purge_all(db) == 1
    assert [r[0] for r in rows(db, "select queue from flashsale_data.dead_letters")] == ["payments"]


def test_history_stays_unless_somebody_says_otherwise(db: Connection, clock: Clock) -> None:
    call(db, "extend_holds", item(db), 60, "outage")
    clock.advance(3000 * DAY)
    assert purge_all(db) == 0
    set_to = call(db, "set_retention", "history", 2000, "as the law wants it", "eve")
    assert (set_to.kind, set_to.days) == ("history", 2000)
    assert purge_all(db) == 1
    (noted,) = rows(db, "select * from flashsale.history")
    assert (noted.action, noted.staff) == ("set_retention", "eve")
    assert (noted.before["days"], noted.after["days"]) == (None, 2000)


def test_for_ever_means_for_ever(db: Connection, clock: Clock) -> None:
    call(db, "cancel", reserve(db, item(db), "ann", "k").order_id)
    call(db, "set_retention", "keys", None, "we keep them")
    clock.advance(30000 * DAY)
    assert (purge_all(db), keys(db)) == (0, ["k"])


@pytest.mark.parametrize(
    ("kind", "days"), [("keys", 0), ("keys", -1), ("keys", 36501), ("other", 1), (None, 1)]
)
def test_what_is_not_possible_is_refused(db: Connection, kind: str | None, days: int) -> None:
    before = rows(db, "select * from flashsale_data.retention order by kind")
    with pytest.raises(psycopg.Error) as error:
        call(db, "set_retention", kind, days, "why")
    assert error.value.sqlstate == "RV302"
    assert rows(db, "select * from flashsale_data.retention order by kind") == before


def test_the_runners_purge_once_a_day(db: Connection, clock: Clock) -> None:
    call(db, "cancel", reserve(db, item(db), "ann", "k").order_id)

    def rounds() -> None:
        for _ in range(5):
            rows(db, "select * from flashsale.begin_sweep('runner')")

    rounds()
    clock.advance(91 * DAY)
    rounds()
    assert keys(db) == []
    call(db, "cancel", reserve(db, item(db, "hat"), "ann", "k").order_id)
    db.execute("update flashsale_data.orders set ended_at = ended_at - interval '100 days', "
               "created_at = created_at - interval '100 days' where ended_at > %s",
               [clock.at(-10)])  # fmt: skip
    rounds()
    assert keys(db) == ["k"], "today's walk has ended"
    clock.advance(DAY)
    rounds()
    assert keys(db) == []
    db.execute("delete from flashsale_data.orders")
    db.execute("delete from pgmq.q_payments")


def test_nobody_waits_for_a_purge_and_it_waits_for_nobody(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=3)
    for customer in ("ann", "bob"):
        call(db, "cancel", reserve(db, shoe, customer, customer).order_id)
    clock.advance(91 * DAY)
    db.execute("set lock_timeout = '1ms'")
    with connect(database_url, autocommit=False) as other:
        call(other, "purge", 1)
        assert call(db, "purge", 100).more is True, "another kind"
        sweep(db)
        assert reserve(db, shoe, "cid", "new").outcome == "reserved"
        other.rollback()
    with connect(database_url, autocommit=False) as other:
        other.execute("select from flashsale_data.order_keys where customer_id = 'ann' for update")
        call(db, "forget_events", "1 day")
        purged: Any = purge_all(db)
        assert (purged, keys(db)) == (1, ["ann", "new"]), "what is locked has its turn tomorrow"
        other.rollback()
    db.execute("set lock_timeout = 0")
    clock.advance(DAY)
    assert purge_all(db) == 1
