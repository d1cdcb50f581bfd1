"""The draw: customers enter before an item opens, and are shuffled when it opens."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest

from flashsale.testing import Clock
from support import (
    Connection,
    call,
    item,
    item_status,
    many,
    one,
    reserve,
    rows,
    status,
    statuses,
    sweep,
    value,
)

MINUTE = timedelta(minutes=1)


def draw_item(db: Connection, clock: Clock, **terms: Any) -> int:
    """An item with a draw that opens in a minute."""
    return item(db, draw=True, opens_at=clock.at() + MINUTE, **terms)


def draw(db: Connection, clock: Clock) -> None:
    """Opens what opens within a minute, and sweeps until all is drawn."""
    clock.advance(61)
    finish(db)


def finish(db: Connection) -> None:
    for _ in range(4):  # the first one notes an id, the others draw
        while sweep(db).more:
            pass


def drawn(db: Connection, item_id: int) -> Any:
    return call(db, "draw_status", item_id)


def places(secret: str, list_hash: str, entries: list[int]) -> dict[int, int]:
    """The ticket of each entry for one unit, computed from what is public."""
    seed = bytes.fromhex(secret) + bytes.fromhex(list_hash)
    order = sorted(entries, key=lambda e: hashlib.sha256(seed + str(e).encode()).digest())
    return {entry: place for place, entry in enumerate(order, 1)}


def test_a_customer_enters_before_the_item_opens(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entry = reserve(db, shoe, "ann")
    assert (entry.outcome, entry.status, entry.ticket) == ("entered", "entered", None)
    assert (entry.position, entry.reserved_at, entry.payment_id) == (None, None, None)
    assert status(db, entry.order_id).status == "entered"
    assert entry.order_id & 0xFFFFFFFF > 2_000_000_000


def test_entering_is_idempotent(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entry = reserve(db, shoe, "ann")
    again = reserve(db, shoe, "ann")
    assert (again.outcome, again.order_id) == ("existing", entry.order_id)
    keyed = reserve(db, shoe, "ann", "k1")
    assert (keyed.outcome, keyed.order_id) == ("existing", entry.order_id)
    bob = reserve(db, shoe, "bob", "k1")
    assert bob.outcome == "entered"
    assert reserve(db, shoe, "bob", "k1").order_id == bob.order_id
    assert len(statuses(db, shoe)) == 2


def test_a_batch_enters_each_customer_once(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    answers = many(db, shoe, ["ann", "bob", "ann"])
    assert [a.outcome for a in answers] == ["entered", "entered", "existing"]
    assert answers[0].order_id == answers[2].order_id


def test_a_request_that_does_not_wait_does_not_enter(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    refused = call(db, "reserve", shoe, "ann", None, False)
    assert (refused.outcome, refused.order_id) == ("not_open", None)
    assert statuses(db, shoe) == {}


def test_an_entry_can_be_cancelled(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entry = reserve(db, shoe, "ann")
    assert call(db, "cancel", entry.order_id, "ann").outcome == "cancelled"
    assert reserve(db, shoe, "ann").order_id != entry.order_id
    draw(db, clock)
    assert drawn(db, shoe).entries == 1


def test_the_commitment_is_public_from_the_beginning(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    before = drawn(db, shoe)
    assert (before.state, before.entries, before.secret) == ("entering", 0, None)
    assert (before.list_hash, before.units, before.drawn_at) == (None, None, None)
    assert item_status(db, shoe).draw
    reserve(db, shoe, "ann")
    draw(db, clock)
    after = drawn(db, shoe)
    assert after.state == "drawn"
    assert after.commitment == before.commitment
    assert hashlib.sha256(bytes.fromhex(after.secret)).hexdigest() == before.commitment
    assert len(bytes.fromhex(after.secret)) == 32


def test_everybody_has_the_place_that_the_secret_gives_them(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=3)
    entries = [a.order_id for a in many(db, shoe, [f"c{n}" for n in range(20)])]
    draw(db, clock)
    public = drawn(db, shoe)
    assert (public.entries, public.units) == (20, 20)
    expected = places(public.secret, public.list_hash, entries)
    assert {e: status(db, e).ticket for e in entries} == expected
    assert {e for e in entries if status(db, e).status == "reserved"} == {
        e for e, place in expected.items() if place <= 3
    }
    listed = rows(db, "select * from flashsale.draw_entries(%s)", shoe)
    assert {r.entry_id: r.ticket for r in listed} == expected


def test_the_list_hash_is_that_of_the_entries_in_order(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entries = [a.order_id for a in many(db, shoe, ["ann", "bob", "cat"])]
    draw(db, clock)
    public = drawn(db, shoe)
    list_hash = bytes.fromhex(public.commitment)
    for entry in sorted(entries):
        list_hash = hashlib.sha256(list_hash + f"{entry} 1".encode()).digest()
    assert public.list_hash == list_hash.hex()


def test_later_customers_stand_behind_the_entries(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=1)
    many(db, shoe, ["ann", "bob", "cat"])
    draw(db, clock)
    dan = reserve(db, shoe, "dan")
    assert (dan.status, dan.ticket, dan.position) == ("waiting", 4, 3)


def test_an_entry_keeps_its_id_for_ever(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=1)
    entry = reserve(db, shoe, "ann", "k1")
    draw(db, clock)
    order = status(db, entry.order_id)
    assert (order.order_id, order.ticket, order.status) == (entry.order_id, 1, "reserved")
    assert call(db, "order_status", order.payment_id).order_id == entry.order_id
    assert reserve(db, shoe, "ann").order_id == entry.order_id
    by_key = reserve(db, shoe, "ann", "k1")
    assert (by_key.outcome, by_key.order_id) == ("existing", entry.order_id)
    assert [o.order_id for o in rows(db, "select * from flashsale.orders_of('ann')")] == [
        entry.order_id
    ]
    (by_id,) = rows(db, "select * from flashsale.orders_by_id(%s)", [entry.order_id])
    assert by_id.order_id == entry.order_id
    assert call(db, "cancel", entry.order_id, "ann").order_id == entry.order_id
    assert status(db, entry.order_id).status == "cancelled"
    assert reserve(db, shoe, "ann", "k1").order_id == entry.order_id


@pytest.mark.parametrize("verb", ["request_payment", "pay_offline", "refund_order"])
def test_verbs_take_the_id_of_an_entry(db: Connection, clock: Clock, verb: str) -> None:
    shoe = draw_item(db, clock, stock=1)
    entry = reserve(db, shoe, "ann").order_id
    draw(db, clock)
    if verb == "request_payment":
        assert call(db, "request_payment", entry, "ann").order_id == entry
        return
    assert call(db, "pay_offline", entry, "R1").status == "paid"
    if verb == "refund_order":
        refunded = call(db, "refund_order", entry, "why")
        assert (refunded.order_id, refunded.status) == (entry, "refunded")


def test_who_cancels_after_the_list_was_made_keeps_the_place(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=1)
    entries = {a.customer_id: a.order_id for a in many(db, shoe, ["ann", "bob", "cat"])}
    clock.advance(61)
    while drawn(db, shoe).state != "drawing":
        sweep(db)
    call(db, "cancel", entries["bob"], "bob")
    finish(db)
    public = drawn(db, shoe)
    expected = places(public.secret, public.list_hash, list(entries.values()))
    assert {e: status(db, e).ticket for e in entries.values()} == expected
    assert status(db, entries["bob"]).status == "cancelled"
    assert sum(s == "reserved" for s in statuses(db, shoe).values()) == 1


def test_nobody_enters_once_the_item_opens(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=1)
    reserve(db, shoe, "ann")
    clock.advance(61)
    assert reserve(db, shoe, "bob").outcome == "not_open"
    sweep(db)
    assert reserve(db, shoe, "bob").outcome == "not_open"
    finish(db)
    assert reserve(db, shoe, "bob").ticket == 2


def test_a_draw_without_entries_opens_the_sale(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    draw(db, clock)
    public = drawn(db, shoe)
    assert (public.state, public.entries, public.list_hash) == ("drawn", 0, public.commitment)
    assert reserve(db, shoe, "ann").ticket == 1


def test_a_draw_needs_an_opening_in_the_future(db: Connection, clock: Clock) -> None:
    for opens_at in (None, clock.at() - MINUTE):
        with pytest.raises(Exception, match="opens_at must be in the future"):
            item(db, draw=True, opens_at=opens_at)


def test_the_opening_can_be_moved_until_it_comes(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    reserve(db, shoe, "ann")
    change = "select * from flashsale.change_item(%s, jsonb_build_object('opens_at', %s::text))"
    one(db, change, shoe, str(clock.at() + 2 * MINUTE))
    clock.advance(61)
    assert reserve(db, shoe, "bob").outcome == "entered"
    clock.advance(61)
    with pytest.raises(Exception, match="has begun") as refused:
        one(db, change, shoe, str(clock.at() + MINUTE))
    assert refused.value.diag.constraint_name == "draw_has_begun"  # type: ignore[attr-defined]
    finish(db)
    with pytest.raises(Exception, match="has begun"):
        one(db, change, shoe, str(clock.at() + MINUTE))
    assert drawn(db, shoe).entries == 2


def test_a_paused_draw_begins_when_the_pause_ends(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    reserve(db, shoe, "ann")
    call(db, "pause_item", shoe)
    assert reserve(db, shoe, "bob").outcome == "paused"
    draw(db, clock)
    assert drawn(db, shoe).state == "entering"
    call(db, "resume_item", shoe)
    finish(db)
    assert statuses(db, shoe) == {"ann": "reserved"}


def test_open_item_begins_the_draw_now(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    reserve(db, shoe, "ann")
    call(db, "open_item", shoe)
    finish(db)
    assert statuses(db, shoe) == {"ann": "reserved"}


def test_closing_before_the_opening_calls_the_draw_off(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entry = reserve(db, shoe, "ann", "k1")
    call(db, "close_item", shoe)
    assert drawn(db, shoe).state == "called_off"
    assert reserve(db, shoe, "bob").outcome == "closed"
    finish(db)
    assert statuses(db, shoe) == {"ann": "unserved"}
    public = drawn(db, shoe)
    assert (public.state, public.secret) == ("called_off", None)
    assert reserve(db, shoe, "ann", "k1").order_id == entry.order_id
    call(db, "open_item", shoe)
    assert reserve(db, shoe, "ann").ticket == 1


def test_closing_during_the_draw_does_not_stop_it(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entries = [a.order_id for a in many(db, shoe, ["ann", "bob"])]
    clock.advance(61)
    while drawn(db, shoe).state != "drawing":
        sweep(db)
    call(db, "close_item", shoe)
    finish(db)
    public = drawn(db, shoe)
    assert public.state == "drawn"
    assert {e: status(db, e).ticket for e in entries} == places(
        public.secret, public.list_hash, entries
    )
    assert set(statuses(db, shoe).values()) == {"unserved"}


def test_stock_can_change_while_customers_enter(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=5)
    many(db, shoe, [f"c{n}" for n in range(4)])
    call(db, "withdraw", shoe, 4)
    call(db, "restock", shoe, 1)
    draw(db, clock)
    held = item_status(db, shoe)
    assert (held.stock, held.reserved, held.waiting, held.issued) == (2, 2, 2, 4)


def test_drawing_goes_on_in_bounded_steps(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=2)
    entries = [a.order_id for a in many(db, shoe, [f"c{n}" for n in range(10)])]
    clock.advance(61)
    states = []
    for _ in range(40):
        call(db, "sweep", "test", 3)
        states.append(drawn(db, shoe).state)
    assert states[-1] == "drawn"
    assert states.count("listing") >= 3 and states.count("drawing") >= 6
    public = drawn(db, shoe)
    assert {e: status(db, e).ticket for e in entries} == places(
        public.secret, public.list_hash, entries
    )


def test_nobody_can_read_the_secret_before(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    secret = value(db, "select encode(secret, 'hex') from flashsale_data.draws")
    reserve(db, shoe, "ann")
    clock.advance(61)
    while drawn(db, shoe).state != "drawn":
        assert drawn(db, shoe).secret is None
        sweep(db)
    assert drawn(db, shoe).secret == secret


def test_the_story_of_an_entry(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=1)
    entry = reserve(db, shoe, "ann").order_id
    story = rows(db, "select what from flashsale.explain_order(%s)", entry)
    assert [r.what for r in story] == [
        "Customer ann entered the draw of 'Shoe'.",
        "Now: entered; they get their place when the item opens and its draw is done.",
    ]
    draw(db, clock)
    story = rows(db, "select what from flashsale.explain_order(%s)", entry)
    assert "The draw was done: they got ticket 1 of 1." in [r.what for r in story]


def test_an_item_without_a_draw_says_so(db: Connection) -> None:
    shoe = item(db)
    for function in ("draw_status", "draw_entries"):
        with pytest.raises(Exception, match="no draw") as refused:
            rows(db, f"select * from flashsale.{function}(%s)", shoe)
        assert refused.value.diag.constraint_name == "no_draw"  # type: ignore[attr-defined]


# Orders for several units


def group_item(db: Connection, clock: Clock, **terms: Any) -> int:
    """An item with a draw and orders of up to 4 units."""
    return draw_item(db, clock, max_per_order=4, **terms)


def test_a_group_has_consecutive_tickets(db: Connection, clock: Clock) -> None:
    shoe = group_item(db, clock, stock=20)
    quantities = {"ann": 1, "bob": 3, "cat": 2, "dan": 4}
    entries = {
        name: call(db, "reserve", shoe, name, "k", True, quantity).order_id
        for name, quantity in quantities.items()
    }
    assert call(db, "reserve", shoe, "bob", "k", True, 3).order_id == entries["bob"]
    assert call(db, "reserve", shoe, "bob", "k", True, 2).outcome == "key_reused"
    draw(db, clock)
    public = drawn(db, shoe)
    assert (public.entries, public.units) == (4, 10)
    seed = bytes.fromhex(public.secret) + bytes.fromhex(public.list_hash)
    place = 1
    for name in sorted(
        entries, key=lambda n: hashlib.sha256(seed + str(entries[n]).encode()).digest()
    ):
        order = status(db, entries[name])
        assert (order.ticket, order.quantity) == (place, quantities[name])
        place += quantities[name]
    assert reserve(db, shoe, "eve").ticket == 11
    assert call(db, "reserve", shoe, "bob", "k", True, 3).order_id == entries["bob"]


def test_a_group_that_cancels_after_the_list_was_made_leaves_gaps(
    db: Connection, clock: Clock
) -> None:
    shoe = group_item(db, clock, stock=1)
    bob = call(db, "reserve", shoe, "bob", None, True, 3).order_id
    reserve(db, shoe, "ann")
    clock.advance(61)
    while drawn(db, shoe).state != "drawing":
        sweep(db)
    call(db, "cancel", bob, "bob")
    finish(db)
    assert statuses(db, shoe)["ann"] == "reserved"
    assert item_status(db, shoe).waiting == 0


def test_more_than_the_limit_does_not_enter(db: Connection, clock: Clock) -> None:
    shoe = group_item(db, clock)
    assert call(db, "reserve", shoe, "ann", None, True, 5).outcome == "too_many"
    assert call(db, "reserve", shoe, "ann", None, True, 2, 2).outcome == "entered"
    clock.advance(61)
    assert call(db, "reserve", shoe, "bob", None, True, 2).outcome == "not_open"
