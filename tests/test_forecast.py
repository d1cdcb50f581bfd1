"""The chance to be served: its edges, its computation, and what simulated sales say to it."""

from __future__ import annotations

import math
import random

import pytest
from bench import forecast

from flashsale.testing.clock import Clock
from support import Connection, call, connect, item, many, one, pay, rows, settle, status, value


def chance(conn: Connection, place: int, units: int, sold: int = 0, lost: int = 0) -> float:
    told = value(conn, "select flashsale.chance(%s, %s, %s, %s)", place, units, sold, lost)
    return float(told)


def by_definition(place: int, units: int, sold: int, lost: int) -> float:
    """1 minus the sum of the beta negative binomial distribution below `place`."""
    a, b = 4 + sold, 2 + lost

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return 1 - math.fsum(
        math.exp(
            math.lgamma(units + x)
            - math.lgamma(units)
            - math.lgamma(x + 1)
            + log_beta(a + units, b + x)
            - log_beta(a, b)
        )
        for x in range(place)
    )


def told(conn: Connection, order_id: int) -> float:
    """What a read of the order says, and all other reads."""
    row = status(conn, order_id)
    (by_id,) = rows(conn, "select * from flashsale.orders_by_id(array[%s])", order_id)
    (mine,) = rows(
        conn,
        "select chance from flashsale.orders_of(%s) where order_id = %s",
        row.customer_id,
        order_id,
    )
    assert row.chance == by_id.chance == mine.chance
    assert row.forecast_as_of == by_id.forecast_as_of
    return float(row.chance)


@pytest.mark.parametrize("place", [1, 2, 20, 21, 300])
@pytest.mark.parametrize("units", [1, 3, 20, 21, 500])
@pytest.mark.parametrize(("sold", "lost"), [(0, 0), (7, 0), (0, 9), (60, 30), (400, 25)])
def test_the_chance_is_that_of_the_definition(
    db: Connection, place: int, units: int, sold: int, lost: int
) -> None:
    error = abs(chance(db, place, units, sold, lost) - by_definition(place, units, sold, lost))
    assert error < (0.002 if min(place, units, 4 + sold, 2 + lost) > 20 else 1e-7)


def test_numbers_of_any_size_have_a_chance(db: Connection) -> None:
    sizes = [1, 21, 1_000, 10_000_000]
    for place in sizes:
        for units in sizes:
            for sold in [-5, 0, *sizes]:
                for lost in [0, *sizes]:
                    assert 0 <= chance(db, place, units, sold, lost) <= 1


def test_the_chance_falls_with_the_place_and_grows_with_what_is_held(db: Connection) -> None:
    by_place = [chance(db, place, 40, 100, 50) for place in range(1, 80)]
    assert by_place == sorted(by_place, reverse=True)
    by_units = [chance(db, 15, units, 100, 50) for units in range(80)]
    assert by_units == sorted(by_units)
    assert chance(db, 15, 40, 100, 80) > chance(db, 15, 40, 100, 50) > chance(db, 15, 40, 180, 50)


def test_only_a_waiting_order_has_a_forecast(db: Connection) -> None:
    shoe = item(db)
    ann, bob, cid = many(db, shoe, ["ann", "bob", "cid"])
    assert [o.chance for o in (ann, bob, cid)] == [None] * 3
    call(db, "cancel", cid.order_id)
    for order in (ann, cid):
        assert status(db, order.order_id).chance is None
        assert status(db, order.order_id).forecast_as_of is None
    assert status(db, bob.order_id).chance == pytest.approx(chance(db, 1, 1), abs=0.005)


def test_those_further_behind_have_no_better_chance(db: Connection) -> None:
    shoe = item(db, stock=10)
    orders = many(db, shoe, [f"c{n}" for n in range(60)])[10:]
    chances = [told(db, o.order_id) for o in orders]
    assert chances == sorted(chances, reverse=True)
    assert chances == [round(chance(db, place, 10), 2) for place in range(1, 51)]
    assert chances[0] == 0.9 > 0.1 > chances[-1]


def test_the_chance_follows_the_holds_of_this_item_that_have_ended(db: Connection) -> None:
    shoe, hat = item(db, stock=20), item(db, "hat", stock=20)
    shoes = many(db, shoe, [f"c{n}" for n in range(90)])
    hats = many(db, hat, [f"c{n}" for n in range(40)])
    for order in shoes[:10]:
        call(db, "cancel", order.order_id)
    for order in hats[:10]:
        pay(db, order)
    settle(db)
    (counted, other) = rows(
        db, "select holds_sold, holds_lost from flashsale_data.items order by item_id"
    )
    assert (counted.holds_sold, counted.holds_lost) == (0, 10)
    assert (other.holds_sold, other.holds_lost) == (10, 0)
    assert told(db, shoes[69].order_id) == round(chance(db, 40, 20, 0, 10), 2)
    assert told(db, hats[24].order_id) == round(chance(db, 5, 10, 10, 0), 2)


def test_those_who_leave_the_line_are_no_holds(db: Connection) -> None:
    shoe = item(db)
    orders = many(db, shoe, [f"c{n}" for n in range(6)])
    for order in orders[1:4]:
        call(db, "cancel", order.order_id)
    call(db, "cancel", orders[0].order_id)
    settle(db)
    assert value(db, "select holds_lost from flashsale_data.items") == 1


def test_a_refund_turns_a_sale_into_a_hold_that_ended_without_one(db: Connection) -> None:
    shoe = item(db)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    pay(db, ann)
    settle(db)
    call(db, "refund_order", ann.order_id, "x")
    settle(db)
    counted = one(db, "select holds_sold, holds_lost from flashsale_data.items")
    assert (counted.holds_sold, counted.holds_lost) == (0, 1)


def test_nobody_has_a_chance_when_nothing_is_held(db: Connection) -> None:
    shoe = item(db, stock=0)
    (ann,) = many(db, shoe, ["ann"])
    assert told(db, ann.order_id) == 0


def test_nobody_has_a_chance_when_all_is_paid(db: Connection) -> None:
    shoe = item(db, stock=2)
    *buyers, ann = many(db, shoe, ["bob", "cid", "ann"])
    for order in buyers:
        pay(db, order)
    settle(db)
    assert told(db, ann.order_id) == 0
    call(db, "restock", shoe, 1)
    assert told(db, ann.order_id) == 1


def test_units_that_leave_the_sale_as_they_come_back_are_nobody_s_chance(db: Connection) -> None:
    shoe = item(db, stock=3)
    orders = many(db, shoe, [f"c{n}" for n in range(5)])
    before = told(db, orders[3].order_id)
    call(db, "withdraw", shoe, 2)
    assert 0 < told(db, orders[3].order_id) < before
    call(db, "withdraw", shoe, 1)
    assert told(db, orders[3].order_id) == 0


def test_the_entitled_are_served_for_certain_also_in_a_pause(db: Connection) -> None:
    shoe = item(db, stock=2)
    ann, _bob, cid, dan = many(db, shoe, ["ann", "bob", "cid", "dan"])
    call(db, "pause_item", shoe)
    call(db, "cancel", ann.order_id)
    settle(db)
    assert status(db, cid.order_id).status == "waiting"
    assert told(db, cid.order_id) == 1
    assert status(db, dan.order_id).position == 2
    # The unit of the order before is on its way, so one has to come back, of the two that are held.
    assert told(db, dan.order_id) == pytest.approx(chance(db, 1, 2, 0, 1), abs=0.005)


def test_the_chance_shrinks_as_the_sale_comes_to_its_close(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=20, hold_seconds=100, closes_at=clock.at(10_000))
    orders = many(db, shoe, [f"c{n}" for n in range(30)])
    chances = []
    for seconds in (9_000, 900, 80, 15, 5):
        chances.append(told(db, orders[25].order_id))
        clock.advance(seconds)
    assert chances[0] == pytest.approx(chance(db, 6, 20), abs=0.005)
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.1
    assert told(db, orders[25].order_id) == 0
    assert [o.chance for o in rows(db, "select chance from flashsale.orders_of('c25')")] == [0]


def test_the_entitled_of_a_closed_sale_are_not_served(db: Connection) -> None:
    shoe = item(db)
    ann, bob = many(db, shoe, ["ann", "bob"])
    call(db, "pause_item", shoe)
    call(db, "cancel", ann.order_id)
    settle(db)
    assert told(db, bob.order_id) == 1
    call(db, "close_item", shoe)
    assert told(db, bob.order_id) == 0


def test_a_forecast_is_as_of_the_last_sweep(db: Connection, clock: Clock) -> None:
    shoe = item(db)
    _ann, bob = many(db, shoe, ["ann", "bob"])
    assert status(db, bob.order_id).forecast_as_of == clock.at()
    settle(db)
    swept_at = clock.at()
    clock.advance(3)
    assert status(db, bob.order_id).forecast_as_of == swept_at


def test_a_customer_far_behind_has_a_forecast(db: Connection) -> None:
    shoe = item(db, stock=900)
    orders = []
    for n in range(0, 3_000, 1_000):
        orders += many(db, shoe, [f"c{n + m}" for m in range(1_000)])
    assert 0 < told(db, orders[1_400].order_id) < 0.99
    assert told(db, orders[-1].order_id) <= 0.05


def test_an_order_for_several_units_needs_as_many(db: Connection) -> None:
    shoe = item(db, stock=10, max_per_order=4)
    many(db, shoe, [f"c{n}" for n in range(10)])
    all_four = call(db, "reserve", shoe, "ann", None, True, 4)
    at_least_two = call(db, "reserve", shoe, "bob", None, True, 4, 2)
    one_unit = call(db, "reserve", shoe, "cid")
    places = {all_four: 4, at_least_two: 6, one_unit: 9}
    for order, place in places.items():
        assert told(db, order.order_id) == round(chance(db, place, 10), 2)
    call(db, "cancel", all_four.order_id)
    assert told(db, at_least_two.order_id) == round(chance(db, 2, 10), 2)
    assert told(db, one_unit.order_id) == round(chance(db, 5, 10), 2)


def test_an_order_whose_units_are_set_aside_is_served_for_certain(db: Connection) -> None:
    shoe = item(db, stock=3, max_per_order=2)
    ann, bob, _cid = many(db, shoe, ["ann", "bob", "cid"])
    pair = call(db, "reserve", shoe, "dan", None, True, 2)
    call(db, "cancel", ann.order_id)
    settle(db)
    assert status(db, pair.order_id).status == "waiting"
    # One of its two units is set aside for it, and one has to come back.
    assert told(db, pair.order_id) == round(chance(db, 1, 3, 0, 1), 2)
    call(db, "pause_item", shoe)
    call(db, "cancel", bob.order_id)
    settle(db)
    assert status(db, pair.order_id).status == "waiting"
    assert told(db, pair.order_id) == 1


@pytest.mark.parametrize("expire", [False, True])
def test_chances_are_calibrated_on_simulated_sales(database_url: str, expire: bool) -> None:
    with connect(database_url) as conn:
        outcomes = forecast.simulate(conn, random.Random(14), 800, expire=expire)
    told, served = forecast.calibration(outcomes)[6]
    assert told > 200
    assert 0.55 <= served / told <= 0.75
