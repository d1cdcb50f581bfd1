"""The feed: each change is told once, in one order, and never behind what was read already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from flashsale.testing import call_all
from flashsale.testing.clock import Clock
from support import (
    Connection,
    call,
    connect,
    item,
    many,
    one,
    pay,
    reserve,
    rows,
    settle,
    value,
)


def publish(db: Connection) -> None:
    while call(db, "publish_events").more:
        pass


def feed(db: Connection, after: int = 0) -> list[Any]:
    """Publishes, and reads everything after an event."""
    publish(db)
    return call_all(db, "events", after, 1000)


def story(db: Connection, order: Any) -> list[str]:
    """What the feed tells of an order."""
    return [event.type for event in feed(db) if event.order_id == order.order_id]


def new_order(db: Connection, **terms: Any) -> Any:
    return reserve(db, item(db, **terms), "ann")


# Every change is told


def paid(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    pay(db, order)
    return order


def paid_at_a_till(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    call(db, "pay_offline", order.order_id, "till 1")
    return order


def cancelled(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    call(db, "cancel", order.order_id)
    return order


def left_the_line(db: Connection, clock: Clock) -> Any:
    order = new_order(db, stock=0)
    call(db, "cancel", order.order_id)
    return order


def expired(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    clock.advance(60)
    call(db, "expire")
    return order


def promoted(db: Connection, clock: Clock) -> Any:
    order = new_order(db, stock=0)
    call(db, "restock", order.item_id, 1)
    settle(db)
    return order


def unserved(db: Connection, clock: Clock) -> Any:
    order = new_order(db, stock=0)
    call(db, "close_item", order.item_id)
    settle(db)
    return order


def refunded(db: Connection, clock: Clock) -> Any:
    order = paid(db, clock)
    call(db, "refund_order", order.order_id, "broken")
    return order


def given_back(db: Connection, clock: Clock) -> Any:
    order = new_order(db, refund_seconds=60)
    pay(db, order)
    call(db, "cancel", order.order_id, "ann")
    return order


def extended(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    call(db, "extend_holds", order.item_id, 60, "slow bank")
    return order


def settling(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    job = one(db, "select * from flashsale.take_payment_jobs(1, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "https://pay/1")
    clock.advance(60)
    call(db, "expire")
    return order


def paid_while_settling(db: Connection, clock: Clock) -> Any:
    order = settling(db, clock)
    db.execute("select flashsale.pay(%s, 's1', 1000, 'EUR', %s)", [order.payment_id, clock.at(-30)])
    return order


def settled_for_too_long(db: Connection, clock: Clock) -> Any:
    order = settling(db, clock)
    clock.advance(2)
    call(db, "expire")
    return order


def voided_while_settling(db: Connection, clock: Clock) -> Any:
    order = settling(db, clock)
    job = one(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_voided", job.job_id, job.tries, job.payment_id)
    return order


def lost_to_an_outage(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    db.execute("select flashsale.note_provider(true)")
    clock.advance(60)
    call(db, "expire")
    return order


STORIES: dict[Callable[[Connection, Clock], Any], str] = {
    paid: "created paid",
    paid_at_a_till: "created paid",
    cancelled: "created cancelled",
    left_the_line: "created cancelled",
    expired: "created expired",
    promoted: "created reserved",
    unserved: "created unserved",
    refunded: "created paid refunded",
    given_back: "created paid refunded",
    extended: "created extended",
    settling: "created settling",
    paid_while_settling: "created settling paid",
    settled_for_too_long: "created settling expired",
    voided_while_settling: "created settling expired",
    lost_to_an_outage: "created waiting",
}


@pytest.mark.parametrize("happens", STORIES, ids=lambda happens: happens.__name__)
def test_each_change_of_an_order_is_told_once_and_in_order(
    db: Connection, clock: Clock, happens: Callable[[Connection, Clock], Any]
) -> None:
    order = happens(db, clock)
    told = [f"order.{change}" for change in STORIES[happens].split()]
    assert story(db, order) == told
    settle(db)
    assert story(db, order)[: len(told)] == told


# An order's event of creation


def test_a_new_order_says_whether_it_has_a_unit(db: Connection) -> None:
    shoe = item(db, stock=1)
    many(db, shoe, ["ann", "bob"])
    created = [event for event in feed(db) if event.type == "order.created"]
    assert [(event.data, event.item_id) for event in created] == [
        (
            {
                "customer_id": "ann",
                "status": "reserved",
                "ticket": 1,
                "quantity": 1,
                "units": 1,
            },
            shoe,
        ),
        (
            {
                "customer_id": "bob",
                "status": "waiting",
                "ticket": 2,
                "quantity": 1,
                "units": None,
            },
            shoe,
        ),
    ]


@pytest.mark.parametrize(("happens", "status"), [(promoted, "waiting"), (extended, "reserved")])
def test_an_order_is_announced_as_it_was_at_first(
    db: Connection, clock: Clock, happens: Callable[[Connection, Clock], Any], status: str
) -> None:
    """Although it is announced after its next change, and the clock stands still."""
    order = happens(db, clock)
    (created,) = [e for e in feed(db) if e.order_id == order.order_id and e.type == "order.created"]
    assert created.data["status"] == status


def test_an_order_for_several_units_is_one_order(db: Connection) -> None:
    """Its parts have rows of their own, and no events."""
    shoe = item(db, stock=2, max_per_order=6)
    group = one(
        db, "select * from flashsale.reserve(%s, 'ann', p_quantity => 3, p_min_quantity => 2)", shoe
    )
    settle(db)
    paid = one(db, "select * from flashsale.order_status(%s)", group.order_id)
    pay(db, paid)
    call(db, "refund_order", group.order_id, "broken")
    settle(db)
    told = [e for e in feed(db) if e.order_id]
    assert {e.order_id for e in told} == {group.order_id}
    assert [(e.type, e.data.get("quantity"), e.data.get("units")) for e in told] == [
        ("order.created", 3, 2),
        ("order.paid", None, 2),
        ("order.refunded", None, 2),
    ]
    assert told[1].data["amount"] == 2000


def test_a_group_that_gets_its_units_later_is_told(db: Connection) -> None:
    shoe = item(db, stock=0, max_per_order=6)
    group = one(db, "select * from flashsale.reserve(%s, 'ann', p_quantity => 3)", shoe)
    call(db, "restock", shoe, 3)
    settle(db)
    told = [e for e in feed(db) if e.order_id == group.order_id]
    assert [e.type for e in told] == ["order.created", "order.reserved"]
    assert (told[0].data["status"], told[1].data["units"]) == ("waiting", 3)


def test_a_group_whose_units_do_not_come_is_told(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=1, max_per_order=6)
    group = one(db, "select * from flashsale.reserve(%s, 'ann', p_quantity => 3)", shoe)
    settle(db)
    clock.advance(61)
    settle(db)
    assert story(db, group) == ["order.created", "order.unserved"]


def test_a_hole_is_told_to_nobody(db: Connection) -> None:
    shoe = item(db, stock=3)
    with db.transaction(force_rollback=True):
        reserve(db, shoe, "eve")
    reserve(db, shoe, "ann")
    settle(db)
    assert [e.data["customer_id"] for e in feed(db) if e.order_id] == ["ann"]
    assert gaps(db) == ["{}"]


def test_withdrawn_tickets_are_no_gaps_for_ever(db: Connection) -> None:
    """They have no orders, and never will."""
    shoe = item(db, stock=3)
    call(db, "withdraw", shoe, 2)
    reserve(db, shoe, "ann")
    publish(db)
    assert gaps(db) == ["{[1,3)}"]
    settle(db)
    assert gaps(db) == ["{}"]


def gaps(db: Connection) -> list[str]:
    return [row.gaps for row in rows(db, "select gaps::text from flashsale_data.feed_lines")]


def test_a_late_order_is_told_when_it_comes_and_keeps_nobody_back(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    publish(db)
    with connect(database_url, autocommit=False) as slow:
        late = reserve(slow, shoe, "late")
        ann = reserve(db, shoe, "ann")
        call(db, "cancel", ann.order_id)
        seen = feed(db)
        assert [e.type for e in seen] == ["item.created", "order.created", "order.cancelled"]
        settle(db)
        slow.commit()
    call(db, "cancel", late.order_id)
    news = feed(db, seen[-1].event_id)
    assert [(e.type, e.order_id) for e in news] == [
        ("order.created", late.order_id),
        ("order.cancelled", late.order_id),
    ]
    settle(db)
    assert gaps(db) == ["{}"]


def test_new_orders_are_announced_by_ticket_a_few_at_a_time(db: Connection) -> None:
    shoe = item(db, stock=3)
    orders = many(db, shoe, [f"c{n}" for n in range(7)])
    call(db, "cancel", orders[6].order_id)
    call(db, "publish_events", 1)
    found = []
    for _ in range(20):
        done = call(db, "publish_events", 2)
        found.append(done.published)
        if not done.more:
            break
    assert max(found) <= 4
    told = [(e.type, e.order_id) for e in feed(db)]
    created = [order_id for kind, order_id in told if kind == "order.created"]
    assert created == [order.order_id for order in orders]
    assert told[-1] == ("order.cancelled", orders[6].order_id)


def test_many_late_orders_are_announced_a_few_at_a_time(db: Connection, database_url: str) -> None:
    """A limit must not make the publisher forget the rest of a gap that has been filled."""
    shoe = item(db, stock=3)
    publish(db)
    with connect(database_url, autocommit=False) as slow:
        late = many(slow, shoe, [f"c{n}" for n in range(5)])
        reserve(db, shoe, "ann")
        publish(db)
        slow.commit()
    settle_lines(db, shoe)
    for _ in range(10):
        call(db, "publish_events", 2)
    created = {e.order_id for e in feed(db) if e.type == "order.created"}
    assert {order.order_id for order in late} < created


def settle_lines(db: Connection, item_id: int) -> None:
    """Fills holes without publishing, so that items.settled is ahead."""
    for _ in range(3):
        call(db, "fill", item_id)


def test_more_items_than_a_visit_looks_at_have_their_turn(db: Connection) -> None:
    db.execute(
        "create or replace function flashsale.feed_items_per_visit() returns integer "
        "language sql immutable parallel safe as 'select 2'"
    )
    shoes = [item(db, f"shoe {n}", stock=1) for n in range(5)]
    publish(db)
    for shoe in shoes:
        reserve(db, shoe, "ann")
    for _ in range(3):
        publish(db)
    assert len([e for e in feed(db) if e.type == "order.created"]) == 5


def test_what_is_kept_back_is_told_later(db: Connection) -> None:
    """Its transaction is older than what the publisher has seen by then."""
    shoe = item(db, stock=5)
    publish(db)
    ann = reserve(db, shoe, "ann")
    call(db, "cancel", ann.order_id)
    db.execute("select * from flashsale.move_events(100)")
    call(db, "pause_item", shoe)
    db.execute("select * from flashsale.move_events(100)")
    assert [e.type for e in call_all(db, "events")] == ["item.created", "item.changed"]
    assert [e.type for e in feed(db)][2:] == ["order.created", "order.cancelled"]


# Draws, and items that are deleted


def test_an_entry_is_told_as_one_order_from_its_entering_on(db: Connection, clock: Clock) -> None:
    """By the id that its customer has, although its row gets another one when it is drawn."""
    shoe = item(db, stock=1, draw=True, opens_at=clock.at(60))
    ann, bob = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    call(db, "cancel", bob.order_id)
    assert story(db, ann) == ["order.entered"]
    clock.advance(61)
    for _ in range(4):
        settle(db)
    assert story(db, ann) == ["order.entered", "order.placed", "order.reserved"]
    assert story(db, bob) == ["order.entered", "order.cancelled"]
    told = [e for e in feed(db) if e.order_id]
    assert {e.data["customer_id"] for e in told if e.order_id == ann.order_id} == {"ann"}
    pay(db, one(db, "select * from flashsale.order_status(%s)", ann.order_id))
    assert story(db, ann)[-1] == "order.paid"


def test_entries_of_a_sale_that_is_called_off_are_told(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=1, draw=True, opens_at=clock.at(60))
    ann = reserve(db, shoe, "ann")
    call(db, "close_item", shoe)
    for _ in range(3):
        settle(db)
    assert story(db, ann) == ["order.entered", "order.unserved"]


def test_a_deleted_item_keeps_nothing_back(db: Connection) -> None:
    """Its orders can't be announced any more, so nothing must wait for that."""
    shoe = item(db, stock=0)
    publish(db)
    reserve(db, shoe, "ann")
    call(db, "close_item", shoe)
    call(db, "promote", shoe)
    assert value(db, "select count(*) from flashsale_data.outbox where order_id is not null") == 1
    while call(db, "delete_item", shoe, "a rehearsal").more:
        pass
    publish(db)
    assert value(db, "select count(*) from flashsale_data.outbox") == 0
    assert gaps(db) == []


def test_the_purge_deletes_events_by_age(db: Connection, clock: Clock) -> None:
    new_order(db)
    assert len(feed(db)) == 2
    clock.advance(91 * 86400)
    while call(db, "purge").more:
        pass
    assert [e for e in call_all(db, "events") if e.type == "order.created"] == []


# Numbers


def test_what_commits_late_comes_behind_what_was_read(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=5)
    early, late = many(db, shoe, ["early", "late"])
    publish(db)
    with connect(database_url, autocommit=False) as slow:
        call(slow, "cancel", late.order_id)  # takes its number in the outbox first
        call(db, "cancel", early.order_id)
        seen = feed(db)
        assert seen[-1].order_id == early.order_id
        slow.commit()
    assert [e.order_id for e in feed(db, seen[-1].event_id)] == [late.order_id]


def test_what_was_rolled_back_is_never_told(db: Connection) -> None:
    order = new_order(db)
    with db.transaction(force_rollback=True):
        pay(db, order)
    assert story(db, order) == ["order.created"]


def test_nothing_is_told_twice(db: Connection) -> None:
    order = new_order(db)
    pay(db, order)
    first = feed(db)
    settle(db)
    assert feed(db) == first
    assert value(db, "select count(*) from flashsale_data.outbox") == 0


def test_two_publishers_never_wait_for_each_other(db: Connection, database_url: str) -> None:
    new_order(db)
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        assert call(first, "publish_events").published == 2
        second.execute("set lock_timeout = '2s'")
        assert call(second, "publish_events").published == 0
        assert call_all(second, "events") == []  # nothing can be read before it is sure
        first.commit()
    assert len(feed(db)) == 2


def test_a_transaction_may_go_on_after_it_has_published(db: Connection, database_url: str) -> None:
    """Its id is in no snapshot of its own: what it writes later must be found all the same."""
    shoe = item(db, stock=5)
    ann, bob = many(db, shoe, ["ann", "bob"])
    with connect(database_url, autocommit=False) as long:
        call(long, "cancel", ann.order_id)
        with connect(database_url) as other:  # so that the id is not the newest one
            reserve(other, shoe, "cid")
        call(long, "publish_events")
        call(long, "cancel", bob.order_id)
        long.commit()
    assert [e.order_id for e in feed(db) if e.type == "order.cancelled"] == [
        ann.order_id,
        bob.order_id,
    ]


def test_a_publisher_with_an_old_snapshot_is_refused(db: Connection, database_url: str) -> None:
    """It would not see what the last publisher has numbered."""
    shoe = item(db)
    with connect(database_url, autocommit=False) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        value(old, "select count(*) from flashsale_data.feed")
        reserve(db, shoe, "ann")
        publish(db)
        with pytest.raises(psycopg.errors.SerializationFailure):
            call(old, "publish_events")


def test_old_deleted_rows_are_not_read_again(db: Connection, database_url: str) -> None:
    """A backup keeps them in the index of the outbox."""
    shoe = item(db, stock=500)
    orders = many(db, shoe, [f"c{n}" for n in range(500)])
    publish(db)
    with connect(database_url, autocommit=False) as backup:
        backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        value(backup, "select count(*) from flashsale_data.orders")
        for order in orders:
            call(db, "cancel", order.order_id)
        publish(db)
        before = entries_read(db)
        publish(db)
        assert entries_read(db) - before < 10


def entries_read(db: Connection) -> int:
    """How many entries of the outbox's index were read so far, those of dead rows too."""
    db.execute("select pg_stat_force_next_flush()")
    return int(
        value(
            db,
            "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'outbox_pkey'",
        )
    )


def test_after_a_restore_no_number_is_given_out_again(db: Connection) -> None:
    """The clone runs in a server that started at another time, or under another name."""
    shoe = item(db, stock=9)
    reserve(db, shoe, "ann")
    lost = feed(db)[-1].event_id + 1000  # given out after the backup
    db.execute(
        "update flashsale_data.feed set branch = 'another server', seen_xmax = '99999999999', "
        "unseen = '{}'"
    )
    reserve(db, shoe, "bob")
    call(db, "restock", shoe, 1)
    news = feed(db, lost)
    assert [e.type for e in news] == ["item.changed", "order.created"]
    assert news[0].event_id == 2**32 + 1
    assert len(feed(db)) == 4


# Items


def test_an_item_s_changes_are_told(db: Connection) -> None:
    shoe = item(db, stock=5)
    call(db, "change_item", shoe, '{"closes_at": "2999-01-01T01:00:00+01:00", "add_stock": 2}')
    call(db, "change_item", shoe, '{"name": "Shoe"}')  # it has this name
    call(db, "withdraw", shoe, 1)
    call(db, "pause_item", shoe)
    call(db, "resume_item", shoe)
    call(db, "close_item", shoe)
    told = feed(db)
    assert [e.type for e in told] == ["item.created", *["item.changed"] * 4, "item.closed"]
    assert {e.item_id for e in told} == {shoe} and {e.order_id for e in told} == {None}
    assert (told[0].data["stock"], told[0].data["opens_at"]) == (5, None)
    assert [e.data for e in told[1:5]] == [
        {"closes_at": "2999-01-01T00:00:00+00:00", "stock": 7},
        {"stock": 6},
        {"paused": True},
        {"paused": False},
    ]
    assert set(told[5].data) == {"closes_at"}


def test_an_item_is_created_before_anything_happens_to_it(db: Connection) -> None:
    first, second = item(db, "first"), item(db, "second")
    reserve(db, second, "ann")
    reserve(db, first, "bob")
    seen: set[int] = set()
    for event in feed(db):
        assert (event.type == "item.created") == (event.item_id not in seen)
        seen.add(event.item_id)


# Reading and forgetting


@pytest.mark.parametrize(("after", "limit"), [(-1, 1), (0, 0), (0, 1001), (None, 1), (0, None)])
def test_nonsense_is_refused(db: Connection, after: int | None, limit: int | None) -> None:
    with pytest.raises(psycopg.Error) as refused:
        call_all(db, "events", after, limit)
    assert refused.value.sqlstate == "RV302"


def test_forgetting_deletes_the_beginning_and_refuses_older_cursors(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=9)
    for customer in ("ann", "bob", "cid"):
        clock.advance(60)
        reserve(db, shoe, customer)
    told = feed(db)
    assert call(db, "forget_events", "30 seconds", 2)[0] == 2
    assert call(db, "forget_events", "30 seconds", 2)[0] == 1
    assert call(db, "forget_events", "30 seconds", 2)[0] == 0
    kept = call_all(db, "events")
    assert kept == told[3:]
    assert call_all(db, "events", told[2].event_id) == kept
    with pytest.raises(psycopg.Error) as refused:
        call_all(db, "events", told[1].event_id)
    assert refused.value.sqlstate == "RV214"


def test_forgetting_never_leaves_a_hole_in_the_feed(db: Connection, clock: Clock) -> None:
    """An event may be older than the one before it."""
    shoe = item(db, stock=9)
    clock.advance(100)
    reserve(db, shoe, "ann")
    publish(db)
    clock.advance(-50)
    reserve(db, shoe, "bob")
    publish(db)
    clock.advance(100)
    assert call(db, "forget_events", "70 seconds")[0] == 1


def test_a_cursor_at_the_end_outlives_all_events(db: Connection, clock: Clock) -> None:
    order = new_order(db)
    last = feed(db)[-1].event_id
    clock.advance(10)
    assert call(db, "forget_events", "1 second")[0] == 2
    call(db, "cancel", order.order_id)
    assert [e.type for e in feed(db, last)] == ["order.cancelled"]
