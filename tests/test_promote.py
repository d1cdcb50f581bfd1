"""A free unit goes to the customer with the lowest waiting ticket."""

from __future__ import annotations

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
    settle,
    status,
    statuses,
    sweep,
    value,
)


def test_units_are_granted_strictly_by_ticket(db: Connection) -> None:
    shoe = item(db, stock=3)
    orders = many(db, shoe, [f"c{n}" for n in range(10)])
    for order in (orders[1], orders[2]):
        call(db, "cancel", order.order_id)
    sweep(db)
    reserved = rows(db, "select ticket from flashsale.open_reservation order by ticket")
    assert [r.ticket for r in reserved] == [1, 4, 5]


def test_payment_jobs_are_queued_in_ticket_order_with_the_grant(db: Connection) -> None:
    shoe = item(db, stock=2)
    orders = many(db, shoe, [f"c{n}" for n in range(6)])
    for order in orders[:2]:
        call(db, "cancel", order.order_id)
    sweep(db)
    jobs = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    assert [(j.kind, j.customer_id) for j in jobs] == [("open", "c2"), ("open", "c3")]


def test_now_serving_passes_those_who_left_the_line(db: Connection) -> None:
    shoe = item(db)
    orders = many(db, shoe, [f"c{n}" for n in range(8)])
    for n in (1, 2, 3, 5):
        call(db, "cancel", orders[n].order_id)
    call(db, "cancel", orders[0].order_id)
    sweep(db)
    assert status(db, orders[4].order_id).status == "reserved"
    assert item_status(db, shoe).now_serving == 5
    assert [status(db, orders[n].order_id).position for n in (6, 7)] == [1, 2]


def test_a_paused_item_promotes_nobody_until_it_resumes(db: Connection) -> None:
    shoe = item(db)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    call(db, "pause_item", shoe)
    call(db, "cancel", ann.order_id)
    assert sweep(db).promoted == 0
    call(db, "resume_item", shoe)
    assert sweep(db).promoted == 1


def test_after_the_close_the_line_ends_and_holds_may_still_be_paid(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=2, closes_at=clock.at(30))
    orders = many(db, shoe, ["ann", "bob", "cid", "dan"])
    clock.advance(30)
    call(db, "cancel", orders[1].order_id)
    swept = sweep(db)
    assert (swept.unserved, swept.promoted) == (2, 0)
    assert statuses(db, shoe) == {
        "ann": "reserved",
        "bob": "cancelled",
        "cid": "unserved",
        "dan": "unserved",
    }
    assert pay(db, orders[0]).outcome == "paid"
    told = rows(db, "select message->>'kind' as kind from flashsale.take_notifications(10, 30)")
    assert [t.kind for t in told] == ["cancelled", "unserved", "unserved", "paid"]


def test_a_reopened_sale_goes_on_where_it_stopped(db: Connection) -> None:
    shoe = item(db)
    ann, _bob, _cid = many(db, shoe, ["ann", "bob", "cid"])
    call(db, "close_item", shoe)
    sweep(db)
    call(db, "cancel", ann.order_id)
    call(db, "open_item", shoe)
    (new,) = many(db, shoe, ["bob"])
    assert (new.outcome, new.ticket) == ("waiting", 4)
    sweep(db)
    assert status(db, new.order_id).status == "reserved"


def test_a_sweep_skips_an_item_that_another_sweep_has_locked(
    db: Connection, database_url: str
) -> None:
    shoe, hat = item(db), item(db, "hat")
    for thing in (shoe, hat):
        ann, _ = many(db, thing, ["ann", "bob"])
        call(db, "cancel", ann.order_id)
    with connect(database_url, autocommit=False) as other:
        assert call(other, "promote", shoe).promoted == 1
        assert Call(lambda: sweep(db)).result().promoted == 1  # the hat's, without waiting
    assert statuses(db, shoe)["bob"] == "reserved"
    assert statuses(db, hat)["bob"] == "reserved"


def test_a_place_in_the_line_that_is_just_being_cancelled_is_skipped(
    db: Connection, database_url: str
) -> None:
    shoe = item(db)
    ann, bob, cid = many(db, shoe, ["ann", "bob", "cid"])
    call(db, "cancel", ann.order_id)
    with connect(database_url, autocommit=False) as leaver:
        call(leaver, "cancel", bob.order_id)
        assert Call(lambda: sweep(db)).result().promoted == 0
        leaver.commit()
    assert sweep(db).promoted == 1
    assert status(db, cid.order_id).status == "reserved"


def test_a_hole_in_the_line_is_found_and_its_unit_sold(db: Connection) -> None:
    shoe = item(db, stock=2)
    with db.transaction(force_rollback=True):
        many(db, shoe, ["eve", "fay"])
    _bob, _cid, _dan = many(db, shoe, ["bob", "cid", "dan"])
    settle(db)
    assert statuses(db, shoe) == {"bob": "reserved", "cid": "reserved", "dan": "waiting"}
    assert value(db, "select count(*) from flashsale.order_status where status = 'void'") == 2


def test_a_ticket_in_flight_is_no_hole(db: Connection, database_url: str) -> None:
    shoe = item(db)
    with connect(database_url, autocommit=False) as slow:
        (_ann,) = many(slow, shoe, ["ann"])
        many(db, shoe, ["bob"])
        for _ in range(5):
            Call(lambda: sweep(db)).result()
        assert value(db, "select count(*) from flashsale.order_status where status = 'void'") == 0
        slow.commit()
    settle(db)
    assert statuses(db, shoe) == {"ann": "reserved", "bob": "waiting"}


def test_idle_sweeps_change_nothing(db: Connection) -> None:
    shoe = item(db)
    many(db, shoe, ["ann", "bob"])
    settle(db)
    before = rows(db, "select xmin, * from flashsale_data.items")
    settle(db)
    assert rows(db, "select xmin, * from flashsale_data.items") == before


def test_more_items_than_a_round_are_examined_in_turn(db: Connection) -> None:
    db.execute(
        "select flashsale.create_item('i' || n, 'i', 1, 'EUR', 1, 60) "
        "from generate_series(1, 700) n"
    )
    last = value(db, "select max(item_id) from flashsale.item_status")
    with db.transaction(force_rollback=True):
        many(db, last, ["eve"])
    many(db, last, ["ann"])
    settle(db)
    settle(db)
    assert statuses(db, last) == {"ann": "reserved"}


def test_a_hold_never_begins_before_its_customers_request(db: Connection, clock: Clock) -> None:
    """Orders may be committed while promote reads the clock; the clock of this test does that."""
    shoe = item(db, stock=2)
    db.execute(
        """
        create or replace function flashsale.clock() returns timestamptz
        language plpgsql volatile security definer as $$
        declare
          v_at timestamptz := (select at from flashsale_data.test_clock);
        begin
          if (select count(*) from flashsale_data.orders) < 2 then
            insert into flashsale_data.orders (
              order_id, item_id, ticket, customer_id, status, created_at)
            select
              flashsale.order_id_of(i.item_id, t.ticket), i.item_id, t.ticket, 'late ' || t.ticket,
              'waiting',
              v_at + interval '1 ms'
            from flashsale_data.items i, lateral (select nextval(i.line)::int as ticket) t;
            update flashsale_data.test_clock set at = v_at + interval '1 ms';
          end if;
          return v_at;
        end $$
        """
    )
    assert call(db, "promote", shoe).promoted == 1
    (order,) = rows(db, "select * from flashsale.orders_of('late 1')")
    assert order.status == "reserved"
    assert order.created_at <= order.reserved_at


def test_no_hold_is_granted_if_the_sale_closes_meanwhile(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=0, closes_at=clock.at(5))
    reserve(db, shoe, "ann")
    call(db, "restock", shoe, 1)
    db.execute(
        """
        create or replace function flashsale.clock() returns timestamptz
        language sql volatile security definer as $$
          update flashsale_data.test_clock set at = at + interval '10 s'
          returning at - interval '10 s'
        $$
        """
    )
    assert call(db, "promote", shoe).promoted == 0
    assert call(db, "promote", shoe).unserved == 1
