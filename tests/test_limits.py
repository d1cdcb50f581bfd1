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
from support import Connection, call, item, value

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


BAD_TERMS, BAD_REQUEST, BAD_PAYMENT = ("RV302",), ("RV301",), ("RV303",)
BY_THE_TABLE = ("23514", "22P02")
"""A CHECK, or no value of the enum."""


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
    if field in ("sku", "name", "session_id"):
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
        for field in ("sku", "name", "price", "stock", "hold_seconds", "max_waiting")
        for found, inside in around(models.NewItem, field)
    ]
    tried += [("currency", text, text == "EUR") for text in ("EUR", "eur", "EU", "EURO", "E1R")]
    tried += [("late_payment", "keep_if_free", True), ("late_payment", "other", False)]
    tried += [("max_waiting", None, True)]
    for field, found, inside in tried:
        terms = TERMS | {field: found}
        case = f"{field} = {str(found)[:20]!r}"
        assert allows((), msgspec.convert, terms, models.NewItem) is inside, case
        assert allows(BAD_TERMS, by_function, db, terms) is inside, case
        assert allows(BY_THE_TABLE, in_the_table, db, terms) is inside, case


@pytest.mark.parametrize(
    ("opens", "closes", "inside"),
    [("12:00", "12:01", True), ("12:00", "12:00", False), ("12:01", "12:00", False)],
)
def test_a_sale_opens_before_it_closes(
    db: Connection, opens: str, closes: str, inside: bool
) -> None:
    terms = TERMS | {"opens_at": f"2030-01-01 {opens}", "closes_at": f"2030-01-01 {closes}"}
    assert allows(BAD_TERMS, by_function, db, terms) is inside
    assert allows(BY_THE_TABLE, in_the_table, db, terms) is inside


def test_changes_of_terms_have_the_limits_of_new_items(db: Connection) -> None:
    shoe = item(db)
    for field in ("hold_seconds", "max_waiting"):
        assert bounds(models.ItemChanges, field) == bounds(models.NewItem, field)
    for field in ("hold_seconds", "max_waiting", "add_stock"):
        for number, inside in around(models.ItemChanges, field):
            if field == "add_stock" and inside:
                number = min(number, 1_000)  # the new stock has its own limit
            changes = msgspec.json.encode({field: number}).decode()
            change = "select flashsale.change_item(%s, %s)::text"
            allowed = allows(BAD_TERMS, value, db, change, shoe, changes)
            assert allowed is inside, f"{field} = {number}"


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


def test_money_has_the_limits_of_the_provider_s_events(db: Connection) -> None:
    event = {"event_id": "e", "type": "payment.succeeded", "occurred_at": "2030-01-01T00:00:00Z"}
    money = {"session_id": "s", "amount": 1, "currency": "EUR"}
    tried: list[tuple[str, Any, bool]] = [
        ("session_id", text, inside) for text, inside in around(models.PaymentEvent, "session_id")
    ]
    tried += [("amount", -1, False), ("amount", 0, True), ("amount", 2**63 - 1, True)]
    tried += [("currency", "EUR", True), ("currency", "eur", False), ("currency", "EURO", False)]
    for field, found, inside in tried:
        told = money | {field: found}
        case = f"{field} = {str(found)[:20]!r}"
        assert allows((), msgspec.convert, event | told, models.PaymentEvent) is inside, case
        assert allows(BAD_PAYMENT, call, db, "pay", None, *told.values()) is inside, case
