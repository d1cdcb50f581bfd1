"""The report of fairness: by ticket, and only one's own id can be read in it."""

from __future__ import annotations

import psycopg
import pytest

from flashsale.testing.clock import Clock
from support import Connection, call, connect, item, many, pay, reserve, rows, settle, value

NAMES = ["annabelle@example.org", "annabelle@example.com", "bo", "x", "c-0001"]


def test_everybody_finds_themselves_and_nobody_else(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=2)
    many(db, shoe, NAMES)
    for role in ("flashsale_tool", "flashsale_operator"):
        with connect(database_url, role) as conn:
            for n, name in enumerate(NAMES, 1):
                report = rows(conn, "select * from flashsale.fairness(%s, %s)", shoe, name)
                assert [row.ticket for row in report] == [1, 2, 3, 4, 5]
                assert [row.ticket for row in report if row.is_you] == [n]
                assert report[n - 1].customer == name
                others = [row.customer for row in report if not row.is_you]
                assert not set(others) & set(NAMES)
                assert all(len(other) <= 4 for other in others)
    shown = [row.customer for row in rows(db, "select * from flashsale.fairness(%s)", shoe)]
    assert shown == ["ann…", "ann…", "…", "…", "c-…"]


def test_the_report_says_who_was_served_when(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=1)
    ann = reserve(db, shoe, "ann")
    clock.advance(10)
    reserve(db, shoe, "bob")
    pay(db, ann)
    reserve(db, shoe, "cem")
    clock.advance(10)
    call(db, "refund_order", ann.order_id, "torn")
    settle(db)
    report = rows(db, "select * from flashsale.fairness(%s)", shoe)
    assert [row.status for row in report] == ["refunded", "reserved", "waiting"]
    assert [row.asked_at for row in report] == [clock.at(-20), clock.at(-10), clock.at(-10)]
    assert [row.served_at for row in report] == [clock.at(-20), clock.at(), None]
    assert [row.ended_at for row in report] == [clock.at(), None, None]


def test_the_report_has_pages(db: Connection) -> None:
    boot, shoe = item(db, "boot"), item(db, stock=0)
    reserve(db, boot, "ann")
    many(db, shoe, [f"c{n}" for n in range(5)])
    tickets, after = [], 0
    while found := rows(db, "select * from flashsale.fairness(%s, null, %s, 2)", shoe, after):
        assert len(found) <= 2
        tickets += [row.ticket for row in found]
        after = tickets[-1]
    assert tickets == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("limit", [0, 1001, None])
def test_a_page_is_bounded(db: Connection, limit: int | None) -> None:
    shoe = item(db)
    with pytest.raises(psycopg.Error) as error:
        rows(db, "select * from flashsale.fairness(%s, null, 0, %s)", shoe, limit)
    assert error.value.sqlstate == "RV302"
    with pytest.raises(psycopg.Error) as error:
        rows(db, "select * from flashsale.fairness(%s)", shoe + 1)
    assert error.value.sqlstate == "RV101"


def test_customers_service_may_not_read_it(db: Connection) -> None:
    for role in ("flashsale_api", "flashsale_worker"):
        assert not value(
            db,
            "select has_function_privilege(%s, 'flashsale.fairness(integer, text, integer, "
            "integer)', 'execute')",
            role,
        )
