"""The HTTP service, the SQL functions and the tables have the same limits.

The limits are in the models, in check_terms (and in reserve and pay) and in CHECKs. Values on both
sides of each limit are tried in all places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest

from flashsale import models
from flashsale.api import parameters
from flashsale.simulator import messages as simulated
from support import Connection, call, item, rows, value

TERMS: dict[str, Any] = {
    "sku": "s",
    "name": "n",
    "price": 1,
    "currency": "EUR",
    "stock": 1,
    "hold_seconds": 60,
    "max_waiting": None,
    "late_payment": "refund",
}


STOCKS = {"withdraw_stock": 1_000_000}
"""So many units there must be, so that the limit of the change itself is tried."""
VERBS = {"add_stock": "restock", "withdraw_stock": "withdraw"}

BAD_TERMS, BAD_REQUEST, BAD_PAYMENT = ("RV302",), ("RV301",), ("RV303",)
BY_THE_TABLE = ("23514", "22P02")
"""A CHECK, or no value of the enum."""


UNCHECKED = ("max_per_order", "max_per_customer", "product")
"""Terms without a CHECK, which would make each promotion slower: see migrations/0015.groups.sql."""


def allows(refusals: tuple[str, ...], attempt: Callable[..., Any], *args: Any) -> bool:
    """Whether a call succeeds. A refusal by the database must have one of these SQLSTATEs."""
    try:
        attempt(*args)
    except psycopg.Error as error:
        if error.sqlstate not in refusals:
            raise
        return False
    except msgspec.ValidationError:
        return False
    return True


def bounds(struct: type, field: str) -> tuple[int, int]:
    """The smallest and the largest value of a field, or its shortest and longest text."""
    schema = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"][field]
    schema = schema.get("anyOf", [schema])[0]
    if schema["type"] == "string":
        return schema["minLength"], schema["maxLength"]
    return schema["minimum"], schema["maximum"]


def around(struct: type, field: str) -> list[tuple[Any, bool]]:
    """Values beside and at both limits of a field, and whether each is inside."""
    low, high = bounds(struct, field)
    numbers = [(low - 1, False), (low, True), (high, True), (high + 1, False)]
    if field in ("sku", "name", "product", "session_id"):
        return [("x" * n, inside) for n, inside in numbers if n >= 0]
    return list(numbers)


def in_the_table(db: Connection, terms: dict[str, Any]) -> None:
    columns = [*terms, "line", "created_at"]
    values = ", ".join(["%s"] * len(terms))
    with db.transaction(force_rollback=True):
        db.execute(
            f"insert into flashsale_data.items ({', '.join(columns)}) "
            f"values ({values}, 'flashsale_data.items_item_id_seq', now())",
            list(terms.values()),
        )


def by_function(db: Connection, terms: dict[str, Any]) -> None:
    named = ", ".join(f"p_{name} => %s" for name in terms)
    with db.transaction(force_rollback=True):
        value(db, f"select flashsale.create_item({named})::text", *terms.values())


def test_terms_have_the_same_limits_everywhere(db: Connection) -> None:
    tried: list[tuple[str, Any, bool]] = [
        (field, found, inside)
        for field in (
            *("sku", "name", "price", "stock", "hold_seconds", "max_waiting"),
            *("max_per_order", "max_per_customer", "product"),
        )
        for found, inside in around(models.NewItem, field)
    ]
    tried += [("currency", text, text == "EUR") for text in ("EUR", "eur", "EU", "EURO", "E1R")]
    tried += [("late_payment", "keep_if_free", True), ("late_payment", "other", False)]
    tried += [("max_waiting", None, True)]
    for field, found, inside in tried:
        terms = TERMS | {field: found}
        if field == "max_per_order":
            terms["max_per_customer"] = 10_000
        case = f"{field} = {str(found)[:20]!r}"
        assert allows((), msgspec.convert, terms, models.NewItem) is inside, case
        assert allows(BAD_TERMS, by_function, db, terms) is inside, case
        if field not in UNCHECKED:
            assert allows(BY_THE_TABLE, in_the_table, db, terms) is inside, case


@pytest.mark.parametrize(
    ("opens", "closes", "inside"),
    [("12:00", "12:01", True), ("12:00", "12:00", False), ("12:01", "12:00", False)],
)
def test_a_sale_opens_before_it_closes(
    db: Connection, opens: str, closes: str, inside: bool
) -> None:
    terms = TERMS | {"opens_at": f"2030-01-01 {opens}Z", "closes_at": f"2030-01-01 {closes}Z"}
    assert allows(BAD_TERMS, by_function, db, terms) is inside
    assert allows(BY_THE_TABLE, in_the_table, db, terms) is inside


@pytest.mark.parametrize(
    ("time", "inside"),
    [
        ("1999-12-31T23:59:59.999999Z", False),
        ("2000-01-01T00:00:00Z", True),
        ("2000-01-01T00:30:00+01:00", False),
        ("2999-12-31T23:59:59.999999Z", True),
        ("2999-12-31T23:30:00-01:00", False),
        ("3000-01-01T00:00:00Z", False),
        ("20026-01-01T00:00:00Z", False),
        ("infinity", False),
        ("-infinity", False),
        ("0044-03-15T00:00:00Z BC", False),
    ],
)
@pytest.mark.parametrize("field", ["opens_at", "closes_at"])
def test_times_of_a_sale_have_the_same_limits_everywhere(
    db: Connection, field: str, time: str, inside: bool
) -> None:
    terms = TERMS | {field: time}
    assert allows((), msgspec.convert, terms, models.NewItem) is inside
    assert allows((), msgspec.convert, {field: time}, models.ItemChanges) is inside
    assert allows(BAD_TERMS, by_function, db, terms) is inside
    assert allows(BY_THE_TABLE, in_the_table, db, terms) is inside
    change = "select flashsale.change_item(%s, %s)::text"
    changes = msgspec.json.encode({field: time}).decode()
    assert allows(BAD_TERMS, value, db, change, item(db), changes) is inside


@pytest.mark.parametrize(
    "changes",
    [
        "null",
        "[]",
        "1",
        '{"sku": "x"}',
        '{"hold_seconds": "soon"}',
        '{"hold_seconds": 1.5}',
        '{"hold_seconds": null}',
        '{"hold_seconds": 1e300}',
        '{"max_waiting": []}',
        '{"max_waiting": true}',
        '{"max_waiting": "7"}',
        '{"paused": "yes"}',
        '{"paused": null}',
        '{"opens_at": "soon"}',
        '{"opens_at": "2026-13-45"}',
        '{"opens_at": "400000-01-01"}',
        '{"opens_at": "2026-01-01 Nowhere/Here"}',
        '{"opens_at": 1}',
        '{"closes_at": {}}',
        '{"add_stock": 1.5}',
        '{"add_stock": "1"}',
        '{"add_stock": 1e300}',
        '{"add_stock": null}',
        '{"withdraw_stock": false}',
        '{"withdraw_stock": 3000000000}',
    ],
)
def test_changes_of_any_kind_are_refused_in_our_words(db: Connection, changes: str) -> None:
    shoe = item(db)
    before = call(db, "item_status", shoe)._replace(as_of=None)
    with pytest.raises(psycopg.Error) as error:
        value(db, "select flashsale.change_item(%s, %s)::text", shoe, changes)
    assert error.value.sqlstate == "RV302"
    assert call(db, "item_status", shoe)._replace(as_of=None) == before


def test_a_whole_number_may_be_written_in_any_way(db: Connection) -> None:
    shoe = item(db)
    value(db, "select flashsale.change_item(%s, '{\"hold_seconds\": 5.0}')::text", shoe)
    value(db, "select flashsale.change_item(%s, '{\"add_stock\": 1e1}')::text", shoe)
    shown = call(db, "item_status", shoe)
    assert (shown.hold_seconds, shown.stock) == (5, 11)


def test_there_is_an_end_to_item_ids(db: Connection) -> None:
    db.execute("alter table flashsale_data.items alter item_id restart with 134217727")
    last = item(db, "last")
    assert call(db, "reserve", last, "ann").outcome == "reserved"
    with pytest.raises(psycopg.Error) as error:
        item(db, "one too many")
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV205", "too_many_items")
    with pytest.raises(psycopg.Error, match="no such item"):
        call(db, "reserve", 134217728, "ann")


@pytest.mark.parametrize("max_waiting", [None, 10_000_000])
def test_there_is_an_end_to_tickets(db: Connection, max_waiting: int | None) -> None:
    """The others of the batch get theirs, and nobody hears of the end of a sequence."""
    full, shoe = item(db, "full", max_waiting=max_waiting), item(db, stock=3)
    before = 2_000_000_000 - 1
    value(db, f"select setval('flashsale_data.line_{full}', {before})")
    items, customers = [full, shoe, full, full, shoe], list("abcde")
    told = rows(db, "select * from flashsale.reserve_many(%s, %s)", items, customers)
    last = "waiting" if max_waiting is None else "sold_out"
    assert [o.outcome for o in told] == [last, "reserved", "sold_out", "sold_out", "reserved"]
    assert call(db, "reserve", full, "fay").outcome == "sold_out"
    value(db, f"select setval('flashsale_data.line_{full}', 2147483647)")
    assert call(db, "reserve", full, "gil").outcome == "sold_out"
    if max_waiting is None:
        assert told[0].ticket == 2_000_000_000
    db.execute("delete from flashsale_data.orders")  # else violation misses what came before
    db.execute("delete from pgmq.q_payments")


def test_violation_shows_a_customer_that_no_verb_would_take(db: Connection) -> None:
    shoe = item(db)
    call(db, "reserve", shoe, "c" * 128)
    for customer in ("", "c" * 129):
        with db.transaction(force_rollback=True):
            db.execute("update flashsale_data.orders set customer_id = %s", [customer])
            shown = rows(db, "select promise from flashsale.violation")
            assert [row.promise for row in shown] == ["an order makes sense"]


def test_changes_of_terms_have_the_limits_of_new_items(db: Connection) -> None:
    shoe = item(db)
    limits = ("max_per_order", "max_per_customer")
    for field in ("hold_seconds", "max_waiting", *limits):
        assert bounds(models.ItemChanges, field) == bounds(models.NewItem, field)
    for field in ("hold_seconds", "max_waiting", *limits, "add_stock", "withdraw_stock"):
        for number, inside in around(models.ItemChanges, field):
            value(
                db, "update flashsale_data.items set stock = %s returning 1", STOCKS.get(field, 0)
            )
            more = {"max_per_customer": 10_000} if field == "max_per_order" else {}
            changes = msgspec.json.encode(more | {field: number}).decode()
            change = "select flashsale.change_item(%s, %s)::text"
            with db.transaction(force_rollback=True):
                allowed = allows(BAD_TERMS, value, db, change, shoe, changes)
            assert allowed is inside, f"{field} = {number}"
            if field in VERBS:
                with db.transaction(force_rollback=True):
                    allowed = allows(BAD_TERMS, call, db, VERBS[field], shoe, number)
                assert allowed is inside, f"{VERBS[field]} by {number}"


def test_customers_and_keys_have_the_same_limits_everywhere(db: Connection) -> None:
    shoe = item(db, stock=10)
    (customer,) = parameters.CustomerId.__metadata__  # type: ignore[attr-defined]
    (key,) = parameters.IdempotencyKey.__metadata__  # type: ignore[attr-defined]
    insert = "insert into flashsale_data.order_keys values ('bob', 0, %s, 0)"
    for n in (0, 1, customer.max_length, customer.max_length + 1):
        inside = customer.min_length <= n <= customer.max_length
        assert allows(BAD_REQUEST, call, db, "reserve", shoe, "c" * n) is inside, n
    for n in (0, 1, key.max_length, key.max_length + 1):
        inside = key.min_length <= n <= key.max_length
        assert allows(BAD_REQUEST, call, db, "reserve", shoe, "ann", "k" * n) is inside, n
        with db.transaction(force_rollback=True):
            assert allows(BY_THE_TABLE, db.execute, insert, ["k" * n]) is inside, n


def test_quantities_have_the_same_limits_everywhere(db: Connection) -> None:
    """What HTTP refuses is invalid in SQL, or more than any item can allow."""
    assert bounds(models.UnitRequestBody, "quantity") == bounds(models.NewItem, "max_per_order")
    shoe = item(db, stock=1000, max_per_order=100, max_per_customer=10_000)
    tried: list[tuple[Any, Any, bool]] = [
        (quantity, None, inside) for quantity, inside in around(models.UnitRequestBody, "quantity")
    ]
    tried += [
        (100, least, inside) for least, inside in around(models.UnitRequestBody, "min_quantity")
    ]
    tried += [(3, 4, False), (3, 3, True), (1, 2, False), (-1, None, False), (-1, -1, False)]
    for n, (quantity, least, inside) in enumerate(tried):
        body = {"quantity": quantity, "min_quantity": least}
        assert allows((), msgspec.convert, body, models.UnitRequestBody) is inside, body

        def asks(who: str = f"c{n}", wanted: Any = (quantity, least)) -> None:
            got = call(db, "reserve", shoe, who, None, True, *wanted).outcome
            if got == "too_many":
                raise psycopg.errors.CheckViolation

        assert allows((*BAD_REQUEST, "23514"), asks) is inside, body


def test_money_has_the_limits_of_the_provider_s_events(db: Connection) -> None:
    event = {"event_id": "e", "type": "payment.succeeded", "occurred_at": "2030-01-01T00:00:00Z"}
    money = {"session_id": "s", "amount": 1, "currency": "EUR"}
    tried: list[tuple[str, Any, bool]] = [
        ("session_id", text, inside) for text, inside in around(models.PaymentEvent, "session_id")
    ]
    tried += [("amount", n, inside) for n, inside in around(models.PaymentEvent, "amount")]
    tried += [("amount", -1, False), ("amount", 2**63 - 1, False)]
    tried += [("currency", "EUR", True), ("currency", "eur", False), ("currency", "EURO", False)]
    for field, found, inside in tried:
        told = money | {field: found}
        case = f"{field} = {str(found)[:20]!r}"
        assert allows((), msgspec.convert, event | told, models.PaymentEvent) is inside, case
        assert allows(BAD_PAYMENT, call, db, "pay", None, *told.values()) is inside, case
    assert models.Money == simulated.Amount  # what the provider can send back


def test_events_have_the_same_limits_everywhere(db: Connection) -> None:
    """Those of money are above; these are of every event. SQL keeps what is beyond them."""
    event = {"event_id": "e", "type": "payment.failed", "session_id": "s", "payment_id": None}
    record = "select flashsale.record_payment_event(%s, %s, %s, %s, null, null, null)"
    for field in event:
        for n in (0, 1, 255, 256):
            told = event | {"event_id": f"{field} {n}"} | {field: "x" * n}
            inside = n != 256 and (n > 0 or field == "payment_id")
            # An event without a name gets one. Of what type it is decides whether it is ignored.
            is_used = value(db, record, *told.values()) == "ignored"
            assert is_used is (inside or field == "event_id"), (field, n)
            at = {"occurred_at": "2030-01-01T00:00:00Z"}
            if n:  # HTTP wants a payment_id to have a character, if there is one
                assert allows((), msgspec.convert, told | at, models.PaymentEvent) is inside, field
        if field in ("type", "session_id"):
            told = event | {"event_id": f"{field} null", field: None}
            assert value(db, record, *told.values()) == "unusable", field
