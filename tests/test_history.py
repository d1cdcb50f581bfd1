"""The history: everything that staff do, with who, when, before and after, and why."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from support import (
    Connection,
    call,
    connect,
    item,
    item_status,
    pay,
    reserve,
    rows,
    value,
)
from test_contract import EXPECTED_GRANTS

SWEEPS = {"expire", "fill", "forget_events", "promote", "publish_events", "purge", "sweep"}
"""They do what is due in any case, and decide nothing."""

OF_NO_ITEM = {
    "retry_dead_letter",
    "forget_customer",
    "set_retention",
    "move_event_cursor",
    "skip_event",
}


@pytest.fixture
def staff(database_url: str) -> Any:
    with connect(database_url, "flashsale_operator") as conn:
        yield conn


def verbs_of_staff(db: Connection) -> set[str]:
    """What operators may call, and what changes something."""
    changing = rows(
        db,
        "select distinct proname from pg_proc where pronamespace = 'flashsale'::regnamespace "
        "and provolatile = 'v' and has_function_privilege('flashsale_operator', oid, 'execute')",
    )
    operators = set(EXPECTED_GRANTS["flashsale_operator"].split())
    return {row.proname for row in changing} & operators - SWEEPS


def history(db: Connection) -> list[Any]:
    return rows(db, "select * from flashsale.history order by history_id")


def dead_letter(db: Connection) -> int:
    return int(
        value(
            db,
            "insert into flashsale_data.dead_letters (queue, message, tries, error, "
            "enqueued_at, died_at) values ('notifications', '{\"kind\": \"paid\"}', 9, 'x', "
            "flashsale.clock(), flashsale.clock()) returning dead_letter_id",
        )
    )


def somebody(db: Connection) -> str:
    """A customer of whom nothing is open."""
    call(db, "cancel", reserve(db, item(db, "hat"), "dan").order_id)
    db.execute("delete from pgmq.q_payments where message ? 'order_id'")
    db.execute("delete from pgmq.q_payments where message ->> 'payment_id' = ("
               "select max(order_id)::text from flashsale_data.orders)")  # fmt: skip
    db.execute("delete from pgmq.q_notifications")
    return "dan"


def closed_item(db: Connection) -> int:
    closed = item(db, "coat")
    call(db, "close_item", closed)
    return closed


def first_event(db: Connection) -> int:
    """The event that is to be delivered next."""
    call(db, "publish_events")
    return int(value(db, "select event_id from flashsale.events(0, 1)"))


def calls_of(db: Connection, shoe: int) -> dict[str, tuple[str, list[Any]]]:
    """A call of each verb that changes something: its arguments, and their values."""
    ann, bob, cem = (reserve(db, shoe, customer).order_id for customer in ("ann", "bob", "cem"))
    pay(db, call(db, "order_status", cem))
    return {
        "create_item": (
            "'boot', 'Boot', 1000, 'EUR', 1, 60, p_staff => 'eve', p_reason => 'why'",
            [],
        ),
        "change_item": ("%s, '{\"hold_seconds\": 9}', p_staff => 'eve', p_reason => 'why'", [shoe]),
        "restock": ("%s, 5, p_staff => 'eve', p_reason => 'why'", [shoe]),
        "withdraw": ("%s, 2, p_staff => 'eve', p_reason => 'why'", [shoe]),
        "pause_item": ("%s, p_staff => 'eve', p_reason => 'why'", [shoe]),
        "resume_item": ("%s, p_staff => 'eve', p_reason => 'why'", [shoe]),
        "close_item": ("%s, p_staff => 'eve', p_reason => 'why'", [shoe]),
        "open_item": ("%s, p_staff => 'eve', p_reason => 'why'", [shoe]),
        "extend_holds": ("%s, 5, p_staff => 'eve', p_reason => 'why'", [shoe]),
        "cancel": ("%s, p_staff => 'eve', p_reason => 'why'", [ann]),
        "pay_offline": ("%s, 'r1', p_staff => 'eve', p_reason => 'why'", [bob]),
        "refund_order": ("%s, p_staff => 'eve', p_reason => 'why'", [cem]),
        "retry_dead_letter": ("%s, p_staff => 'eve', p_reason => 'why'", [dead_letter(db)]),
        "forget_customer": ("%s, p_staff => 'eve', p_reason => 'why'", [somebody(db)]),
        "delete_item": ("%s, p_staff => 'eve', p_reason => 'why'", [closed_item(db)]),
        "move_event_cursor": ("0, p_staff => 'eve', p_reason => 'why'", []),
        "skip_event": ("%s, p_staff => 'eve', p_reason => 'why'", [first_event(db)]),
        "set_retention": ("'keys', 7, p_staff => 'eve', p_reason => 'why'", []),
    }


def test_every_verb_of_staff_is_in_history(db: Connection, staff: Connection) -> None:
    shoe = item(db, stock=9)
    calls = calls_of(db, shoe)
    assert set(calls) >= verbs_of_staff(db), "a verb of staff is not tried here"
    for verb, (arguments, values) in calls.items():
        before = len(history(db))
        rows(staff, f"select * from flashsale.{verb}({arguments})", *values)
        (noted,) = history(db)[before:]
        assert (noted.action, noted.staff, noted.reason) == (verb, "eve", "why")
        assert noted.item_id is not None or noted.order_id is not None or verb in OF_NO_ITEM
        assert noted.after, verb


def test_every_verb_of_staff_takes_who_and_why(db: Connection) -> None:
    for verb in verbs_of_staff(db):
        forms = rows(
            db,
            "select proargnames from pg_proc where pronamespace = 'flashsale'::regnamespace "
            "and proname = %s",
            verb,
        )
        for form in forms:
            assert {"p_staff", "p_reason"} <= set(form.proargnames), verb


def test_without_a_name_it_is_the_login(db: Connection, staff: Connection) -> None:
    shoe = item(db)
    call(staff, "pause_item", shoe)
    noted = history(db)[-1]
    assert (noted.staff, noted.reason) == (value(staff, "select session_user::text"), None)


def test_only_what_has_changed_is_noted(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=5)
    call(db, "change_item", shoe, '{"hold_seconds": 60, "add_stock": 2, "name": "Boot"}')
    noted = history(db)[-1]
    assert noted.before == {"stock": 5, "name": "Shoe"}
    assert noted.after == {"stock": 7, "name": "Boot"}
    assert (noted.at, noted.item_id, noted.order_id) == (clock.at(), shoe, None)
    call(db, "withdraw", shoe, 7)
    assert (history(db)[-1].before, history(db)[-1].after) == ({"stock": 7}, {"stock": 0})


def test_a_new_item_is_noted_with_its_terms(db: Connection) -> None:
    item(db, stock=5)
    (noted,) = history(db)
    assert (noted.action, noted.before) == ("create_item", None)
    assert (noted.after["sku"], noted.after["price"], noted.after["stock"]) == ("shoe", 1000, 5)
    assert not {"forfeited", "now_serving", "settled", "line"} & set(noted.after)


def test_what_changes_nothing_is_not_noted(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=5)
    order = reserve(db, shoe, "ann")
    for _ in range(2):
        call(db, "cancel", order.order_id)
        call(db, "pause_item", shoe)
        call(db, "extend_holds", shoe, 5, "why")
        call(db, "change_item", shoe, '{"price": 1000, "hold_seconds": 60}')
        call(db, "change_item", shoe, "{}")
        clock.advance(1)
    assert [h.action for h in history(db)] == ["create_item", "cancel", "pause_item"]
    for _ in range(2):
        call(db, "open_item", shoe)
        clock.advance(1)
    for _ in range(2):
        call(db, "close_item", shoe)
        clock.advance(1)
    assert [h.action for h in history(db)][3:] == ["open_item", "close_item"]


def test_what_customers_do_is_not_noted(db: Connection) -> None:
    shoe = item(db, stock=5)
    call(db, "cancel", reserve(db, shoe, "ann").order_id, "ann")
    assert [h.action for h in history(db)] == ["create_item"]


def test_what_is_refused_is_not_noted(db: Connection) -> None:
    shoe = item(db, stock=5)
    for verb, args in (("restock", (0,)), ("withdraw", (6,)), ("change_item", ('{"stock": 1}',))):
        with pytest.raises(psycopg.Error):
            call(db, verb, shoe, *args)
    assert [h.action for h in history(db)] == ["create_item"]


@pytest.mark.parametrize("named", [{"staff": ""}, {"staff": "x" * 129}, {"reason": ""}])
@pytest.mark.parametrize("verb", ["restock", "withdraw", "pause_item", "open_item", "close_item"])
def test_names_and_reasons_have_a_length(db: Connection, verb: str, named: dict[str, str]) -> None:
    shoe = item(db, stock=5)
    units = ", 1" if verb in ("restock", "withdraw") else ""
    ((name, text),) = named.items()
    with pytest.raises(psycopg.Error) as error:
        rows(db, f"select * from flashsale.{verb}(%s{units}, p_{name} => %s)", shoe, text)
    assert error.value.sqlstate == "RV302"
    assert item_status(db, shoe).stock == 5
