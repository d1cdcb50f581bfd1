"""The place in the line: exact up to 1,000, and never more than the number who wait."""

from __future__ import annotations

import pytest

from support import (
    Connection,
    call,
    connect,
    item,
    many,
    reserve,
    rows,
    settle,
    status,
    sweep,
    value,
)


def leave(conn: Connection, order_ids: list[int]) -> None:
    conn.execute("select flashsale.cancel(o) from unnest(%s::bigint[]) o", [order_ids])


def line(conn: Connection, item_id: int, waiting: int) -> list[int]:
    """The ids of so many waiting orders of an item with one unit, which somebody holds."""
    orders = many(conn, item_id, ["holder"])
    for start in range(0, waiting, 1000):
        crowd = [f"c{n}" for n in range(start, min(waiting, start + 1000))]
        orders += many(conn, item_id, crowd)
    return [o.order_id for o in orders[1:]]


def positions(conn: Connection, order_ids: list[int]) -> list[int]:
    """The positions as a single read of each order says, after a look at the reads of many."""
    single = [status(conn, o).position for o in order_ids]
    at_once = rows(conn, "select * from flashsale.orders_by_id(%s)", order_ids)
    by_id = {row.order_id: row.position for row in at_once}
    assert [by_id[o] for o in order_ids] == single
    return single


def test_who_leaves_the_line_is_before_nobody(db: Connection) -> None:
    shoe = item(db)
    orders = line(db, shoe, 200)
    leave(db, orders[:150])
    assert positions(db, [orders[150], orders[151], orders[199]]) == [1, 2, 50]
    settle(db)
    assert positions(db, [orders[150], orders[151], orders[199]]) == [1, 2, 50]
    (mine,) = rows(db, "select * from flashsale.orders_of('c150')")
    assert mine.position == 1
    assert rows(
        db, "select position from flashsale.waiting_line where item_id = %s order by ticket", shoe
    ) == [(n,) for n in range(1, 51)]
    (told,) = rows(
        db, "select position from flashsale.order_status where order_id = %s", orders[199]
    )
    assert told.position == 50


@pytest.mark.parametrize("swept", [False, True])
def test_999_1000_1001(db: Connection, swept: bool) -> None:
    shoe = item(db)
    orders = line(db, shoe, 1_500)
    left = orders[:400:4]
    leave(db, left)
    if swept:
        settle(db)
    stay = [o for o in orders if o not in set(left)]
    assert positions(db, [stay[n - 1] for n in (1, 2, 998, 999, 1000)]) == [1, 2, 998, 999, 1000]
    for n in (1001, 1002, 1400):
        (told,) = positions(db, [stay[n - 1]])
        assert 1001 <= told <= 1400
        assert told >= n


@pytest.mark.parametrize("swept", ["never", "before", "after"])
@pytest.mark.parametrize("leavers", [slice(0, 1_200), slice(1_000, 2_200), slice(300, 2_300, 2)])
def test_a_position_is_never_more_than_the_number_who_wait(
    db: Connection, leavers: slice, swept: str
) -> None:
    shoe = item(db)
    with db.transaction(force_rollback=True):
        many(db, shoe, [f"hole{n}" for n in range(20)])
    orders = line(db, shoe, 2_400)
    with db.transaction(force_rollback=True):
        many(db, shoe, [f"another hole{n}" for n in range(300)])
    orders.append(reserve(db, shoe, "the last").order_id)
    if swept == "before":
        settle(db)
    leave(db, orders[leavers])
    if swept == "after":
        sweep(db)
    stay = [o for o in orders if o not in set(orders[leavers])]
    waiting = value(db, "select count(*) from flashsale.waiting_line where item_id = %s", shoe)
    told = positions(db, stay[:: len(stay) // 40] + stay[-3:])
    assert max(told) <= waiting
    assert told == sorted(told)
    assert told[0] == waiting - len(stay) + 1


def test_the_answer_to_a_request_counts_those_who_left_as_of_the_last_sweep(
    db: Connection,
) -> None:
    shoe = item(db)
    orders = line(db, shoe, 20)
    leave(db, orders[5:])
    settle(db)
    assert reserve(db, shoe, "next").position == 6
    assert [o.position for o in many(db, shoe, ["after", "that"])] == [7, 8]


def test_a_place_counts_the_entitled_who_still_wait(db: Connection) -> None:
    shoe = item(db, stock=3)
    orders = many(db, shoe, [f"c{n}" for n in range(8)])
    call(db, "pause_item", shoe)
    leave(db, [o.order_id for o in orders[:3]])
    settle(db)
    assert positions(db, [o.order_id for o in orders[3:]]) == [1, 2, 3, 4, 5]


def test_a_read_in_the_middle_of_a_cancellation_counts_the_leaver(
    db: Connection, database_url: str
) -> None:
    shoe = item(db)
    first, second = line(db, shoe, 2)
    with connect(database_url, autocommit=False) as leaver:
        call(leaver, "cancel", first)
        assert positions(db, [second]) == [2]
        leaver.commit()
    assert positions(db, [second]) == [1]


def test_lines_of_other_items_do_not_count(db: Connection) -> None:
    shoe, hat = item(db), item(db, "hat")
    shoes, hats = line(db, shoe, 5), line(db, hat, 5)
    leave(db, shoes[:2])
    assert positions(db, [hats[4], shoes[4], hats[0]]) == [5, 3, 1]


def test_an_order_for_several_units_has_one_place(db: Connection) -> None:
    shoe = item(db, max_per_order=3)
    quantities = [1, 3, 1, 2, 3, 1]
    orders = [
        call(db, "reserve", shoe, f"c{n}", None, True, quantity).order_id
        for n, quantity in enumerate(quantities)
    ]
    assert positions(db, orders[1:]) == [1, 2, 3, 4, 5]
    assert [status(db, o).ticket for o in orders] == [1, 2, 5, 6, 8, 11]
    leave(db, [orders[1], orders[3]])
    assert positions(db, [orders[2], orders[4], orders[5]]) == [1, 2, 3]
    settle(db)
    assert positions(db, [orders[2], orders[4], orders[5]]) == [1, 2, 3]


@pytest.mark.parametrize("swept", [False, True])
def test_orders_for_several_units_far_behind(db: Connection, swept: bool) -> None:
    shoe = item(db, max_per_order=4)
    told = rows(
        db,
        "select order_id from flashsale.reserve_many("
        "  array_fill(%s, array[1000]), array(select 'a' || n from generate_series(1, 1000) n),"
        "  p_quantities => array_fill(4, array[1000]))"
        " union all "
        "select order_id from flashsale.reserve_many("
        "  array_fill(%s, array[300]), array(select 'b' || n from generate_series(1, 300) n),"
        "  p_quantities => array_fill(2, array[300]))",
        shoe,
        shoe,
    )
    if swept:
        settle(db)
    orders = sorted(row.order_id for row in told)
    assert positions(db, [orders[n - 1] for n in (1, 500, 999, 1000)]) == [1, 500, 999, 1000]
    far = positions(db, [orders[1001], orders[1200], orders[1299]])
    assert far == sorted(far)
    assert all(1001 <= place <= 1300 for place in far)
