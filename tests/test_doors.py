"""The same rules at every door: SQL refuses what HTTP refuses, and neither keeps anything of it.

A door is an argument through which a value comes in. DOORS lists those of every function that a
role may call, by their names, so that a new argument has to be listed before it can be granted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import msgspec
import psycopg
import pytest

from flashsale import models
from flashsale.api import express, parameters
from flashsale.currencies import DECIMALS
from support import Connection, call, item, reserve, rows, sessions, value

ID, TEXT, MOMENT, CURRENCY = "an id", "a text", "a moment", "a currency"
LOOKED_UP = "names something that exists, or is unknown"
KEPT = "kept as it came, whatever it is: money must not be lost"
OURS = "comes from our own processes, or from a list of words"
DOORS = {
    "p_customer_id": ID,
    "p_customer_ids": ID,
    "p_idempotency_key": ID,
    "p_idempotency_keys": ID,
    "p_staff": ID,
    "p_sku": TEXT,
    "p_name": TEXT,
    "p_reason": TEXT,
    "p_reference": TEXT,
    "p_opens_at": MOMENT,
    "p_closes_at": MOMENT,
    "p_currency": CURRENCY,
    "p_changes": "an object, whose members are tried in test_limits",
    "p_late_payment": OURS,
    "p_runner": OURS,
    "p_worker": OURS,
    "p_from": OURS,
    "p_until": OURS,
    "p_error": OURS,
    "p_queue": OURS,
    "p_kind": OURS,
    "p_status": OURS,
    "p_product": TEXT,
    "p_checkout_url": OURS,
    "p_checkout_urls": OURS,
    "p_captured_at": OURS,
    "p_event_id": KEPT,
    "p_type": KEPT,
    "p_session_id": KEPT,
    "p_session_ids": KEPT,
    "p_payment_id": KEPT,
    "p_occurred_at": KEPT,
    "p_payload": KEPT,
}
"""What comes in through arguments of these names, whichever function has them."""


def test_every_door_is_listed_here(db: Connection) -> None:
    """Arguments that are texts, times or JSON; numbers are in test_limits."""
    found = {
        row.name
        for row in rows(
            db,
            """
            select distinct a.name
            from pg_proc p
            cross join unnest(
              p.proargnames, coalesce(p.proallargtypes, p.proargtypes), p.proargmodes
            ) a (name, type, mode)
            cross join aclexplode(p.proacl) g
            join pg_roles r on r.oid = g.grantee and r.rolname ^@ 'flashsale_'
            where p.pronamespace = 'flashsale'::regnamespace
              and coalesce(a.mode, 'i') in ('i', 'b')
              and a.type::regtype::text in (
                'text', 'text[]', 'character varying', 'jsonb', 'timestamp with time zone',
                'flashsale.moment')
              and a.name ^@ 'p_'
              and p.proname not in ('money', 'moment_of', 'shut_by')
            """,
        )
    }
    assert found == set(DOORS)


class SqlDoor(NamedTuple):
    """A way in. enter: tries a value, for an item with a stock of 10 of which `ann` holds one."""

    name: str
    enter: Callable[[Connection, int, Any], Any]
    refusal: str = "RV302"


def order_of_ann(db: Connection, shoe: int) -> int:
    order_id: int = value(
        db, "select order_id from flashsale_data.orders where item_id = %s limit 1", shoe
    )
    return order_id


def invalid(db: Connection, shoe: int, customer: str, key: str | None) -> str:
    (row,) = rows(
        db,
        "select outcome, order_id from flashsale.reserve_many(%s, %s::text[], %s::text[])",
        [shoe],
        [customer],
        [key],
    )
    if row.outcome == "invalid":
        assert row.order_id is None
        raise psycopg.errors.RaiseException("invalid")
    return str(row.outcome)


CREATE = "select flashsale.create_item('new', 'New', 100, 'EUR', 1, 60, {})::text"
IDS = [
    SqlDoor("the customer of reserve", lambda db, i, v: call(db, "reserve", i, v), "RV301"),
    SqlDoor("the customer of reserve_many", lambda db, i, v: invalid(db, i, v, None), "P0001"),
    SqlDoor("the key of reserve", lambda db, i, v: call(db, "reserve", i, "bob", v), "RV301"),
    SqlDoor("the key of reserve_many", lambda db, i, v: invalid(db, i, "bob", v), "P0001"),
    SqlDoor(
        "the key of restock",
        lambda db, i, v: value(
            db, "select flashsale.restock(%s, 1, p_idempotency_key => %s)::text", i, v
        ),
    ),
    SqlDoor(
        "the key of cancel",
        lambda db, i, v: value(
            db,
            "select flashsale.cancel(%s, p_idempotency_key => %s)::text",
            order_of_ann(db, i),
            v,
        ),
    ),
    SqlDoor(
        "the staff of extend_holds",
        lambda db, i, v: call(db, "extend_holds", i, 60, "outage", v),
    ),
    SqlDoor(
        "the staff of pay_offline",
        lambda db, i, v: call(db, "pay_offline", order_of_ann(db, i), "till 1", v),
    ),
    SqlDoor(
        "the staff of refund_order",
        lambda db, i, v: call(db, "refund_order", order_of_ann(db, i), "sick", True, v),
    ),
]
TEXTS = [
    SqlDoor(
        "the sku of create_item",
        lambda db, _, v: value(
            db, "select flashsale.create_item(%s, 'New', 100, 'EUR', 1, 60)::text", v
        ),
    ),
    SqlDoor(
        "the name of create_item",
        lambda db, _, v: value(
            db, "select flashsale.create_item('new', %s, 100, 'EUR', 1, 60)::text", v
        ),
    ),
    SqlDoor(
        "the product of create_item",
        lambda db, _, v: value(
            db,
            "select flashsale.create_item('new', 'New', 100, 'EUR', 1, 60, p_product => %s)::text",
            v,
        ),
    ),
    SqlDoor(
        "the name of change_item",
        lambda db, i, v: call(db, "change_item", i, json.dumps({"name": v})),
    ),
    SqlDoor("the reason of extend_holds", lambda db, i, v: call(db, "extend_holds", i, 60, v)),
    SqlDoor(
        "the reason of refund_order",
        lambda db, i, v: call(db, "refund_order", order_of_ann(db, i), v),
    ),
    SqlDoor(
        "the reference of pay_offline",
        lambda db, i, v: call(db, "pay_offline", order_of_ann(db, i), v),
    ),
]
BAD_IDS = [
    "",
    " ",
    "c1 ",
    " c1",
    "c1\r",
    "c1\n",
    "c1\t",
    "a\nb",
    "\x1f",
    "\x7f",
    "é",
    "c\u00a0",
    "猫",
]
GOOD_IDS = ["c", "c 1", "~", "!", "a-b_c:d@e.f", "{1}", "'; --", "\\"]
BAD_TEXTS = ["", " ", "\u00a0", "\u3000\u2003", "\u202f", "a\nb", "a\rb", "a\tb", "\x01", "a\x1f"]
BAD_TEXTS += ["a\x7fb", "a\x80", "a\x85b", "a\x9f", "a\u2028b", "a\u2029", "\u2028", "\r"]
GOOD_TEXTS = [
    "x",
    " x ",
    "Größe 42 \u2013 rot",
    "猫",
    "حذاء",
    "👟",
    "\u200f שלום",
    "a\u00a0b",
    "%s",
]
# Marks of direction are part of right-to-left texts, so both doors take them.
GOOD_TEXTS += ["\u202bא\u202c", "\u2067א\u2069"]


def everything(db: Connection) -> list[Any]:
    """What is stored, so that a refusal is seen to have changed nothing. Sequences may move on."""
    return [
        rows(db, f"select * from flashsale_data.{table} order by 1")
        for table in ("items", "orders", "order_keys", "payments", "history", "offline_references")
    ]


def stage(db: Connection) -> int:
    shoe = item(db, stock=10)
    reserve(db, shoe, "ann")
    return shoe


@pytest.mark.parametrize(
    ("doors", "bad"), [(IDS, BAD_IDS), (TEXTS, BAD_TEXTS)], ids=["ids", "texts"]
)
def test_sql_refuses_it_and_nothing_changes(
    db: Connection, doors: list[SqlDoor], bad: list[str]
) -> None:
    shoe = stage(db)
    before = everything(db)
    for door in doors:
        for text in bad:
            with pytest.raises(psycopg.Error) as error:
                door.enter(db, shoe, text)
            assert error.value.sqlstate in (door.refusal, None), (door.name, text)
    assert everything(db) == before


@pytest.mark.parametrize(
    ("doors", "good"), [(IDS, GOOD_IDS), (TEXTS, GOOD_TEXTS)], ids=["ids", "texts"]
)
def test_sql_takes_it(db: Connection, doors: list[SqlDoor], good: list[str]) -> None:
    shoe = stage(db)
    for door in doors:
        for text in good:
            with db.transaction(force_rollback=True):
                if "refund" in door.name:
                    call(db, "pay_offline", order_of_ann(db, shoe), "till")
                door.enter(db, shoe, text)


@pytest.mark.parametrize("parameter", ["CustomerId", "IdempotencyKey", "StaffId"])
def test_http_has_the_same_rule_for_ids(parameter: str) -> None:
    (given,) = getattr(parameters, parameter).__metadata__
    wanted = msgspec.Meta(
        min_length=given.min_length, max_length=given.max_length, pattern=given.pattern
    )
    assert all(taken(wanted, text) for text in GOOD_IDS)
    assert not any(taken(wanted, text) for text in BAD_IDS)


def test_the_express_way_has_the_same_rule_for_ids() -> None:
    for texts, is_good in ((GOOD_IDS, True), (BAD_IDS, False)):
        for text in texts:
            for name in (b"x-customer-id", b"idempotency-key"):
                headers = {b"host": b"h", b"x-customer-id": b"c"} | {name: text.encode()}
                request, _ = express.unit_request(1, list(headers.items()))
                assert (request is not None) is is_good, (name, text)


@pytest.mark.parametrize("wanted", [models.Sku, models.Name, models.Reason, models.Short])
def test_http_has_the_same_rule_for_texts(wanted: Any) -> None:
    (meta,) = wanted.__metadata__
    assert all(taken(meta, text) for text in GOOD_TEXTS)
    assert not any(taken(meta, text) for text in BAD_TEXTS)


def taken(meta: msgspec.Meta, text: str) -> bool:
    try:
        msgspec.convert(text, Annotated[str, meta])
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("length", [128, 255])
def test_a_long_id_is_judged_to_its_end(db: Connection, length: int) -> None:
    fits = "select flashsale.is_id(%s, %s)"
    assert value(db, fits, "x" * length, length)
    assert not value(db, fits, "x" * (length + 1), length)
    assert not value(db, fits, "x" * (length - 1) + " ", length)
    assert value(db, fits, None, length) is None


def test_customers_that_look_alike_are_one_customer_or_refused(db: Connection) -> None:
    shoe = item(db, stock=10)
    assert call(db, "reserve", shoe, "c1").outcome == "reserved"
    for alike in ("c1 ", "c1\r", " c1", "c1\n", "c1\u200b"):
        with pytest.raises(psycopg.Error) as error:
            call(db, "reserve", shoe, alike)
        assert error.value.sqlstate == "RV301"
        assert "without" in str(error.value.diag.message_hint) or "neither" in str(
            error.value.diag.message_hint
        )
        for verb in ("cancel", "request_payment", "order_status"):
            with pytest.raises(psycopg.Error) as error:
                call(db, verb, order_of_ann(db, shoe), alike)
            assert error.value.sqlstate == "RV102", "it is nobody's order"
        assert rows(db, "select * from flashsale.orders_of(%s)", alike) == []
    assert len(everything(db)[1]) == 1


def test_every_text_of_one_character_is_judged_alike(db: Connection) -> None:
    """HTTP uses Python's classes of characters, SQL has a list."""
    (name,) = models.Name.__metadata__  # type: ignore[attr-defined]
    codes = [n for n in range(1, 0x10000) if not 0xD800 <= n < 0xE000]
    in_sql = value(
        db,
        "select array_agg(flashsale.is_text(chr(c), 200) order by c) from unnest(%s::int[]) c",
        codes,
    )
    # Python's \\S takes the characters x1c to x1f for spaces; they are control characters anyway.
    assert [hex(c) for c, ok in zip(codes, in_sql, strict=True) if ok != taken(name, chr(c))] == []


# Currencies


def test_sql_and_python_know_the_same_currencies(db: Connection) -> None:
    letters = [chr(c) for c in range(ord("A"), ord("Z") + 1)]
    codes = [a + b + c for a in letters for b in letters for c in letters]
    known = rows(
        db,
        "select c as code, flashsale.decimals_of(c) as decimals from unnest(%s::text[]) c "
        "where flashsale.decimals_of(c) is not null",
        codes,
    )
    assert {row.code: row.decimals for row in known} == DECIMALS


@pytest.mark.parametrize("currency", ["XXX", "XTS", "XAU", "ABC", "eur", "Eur", "EU", "EUR ", ""])
def test_an_unknown_currency_is_refused_at_every_door(db: Connection, currency: str) -> None:
    with pytest.raises(psycopg.Error) as error:
        item(db, currency=currency)
    assert error.value.sqlstate == "RV302"
    assert rows(db, "select * from flashsale_data.items") == []
    terms = {"sku": "s", "name": "n", "price": 1, "stock": 1, "hold_seconds": 60}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(terms | {"currency": currency}, models.NewItem)


def test_an_item_whose_currency_was_taken_before_sells_on(db: Connection) -> None:
    shoe = item(db)
    db.execute("update flashsale_data.items set currency = 'ABC'")
    order = reserve(db, shoe, "ann")
    assert (order.outcome, order.currency) == ("reserved", "ABC")
    assert call(db, "change_item", shoe, json.dumps({"hold_seconds": 5})).hold_seconds == 5
    assert value(db, "select flashsale.money(4900, 'ABC')") == "49.00 ABC"


# Times

RFC_3339 = ["2030-01-01T10:00:00Z", "2030-01-01t10:00:00z", "2030-01-01T11:00:00.0+01:00"]
ZONED = [
    *RFC_3339,
    "2030-01-01 10:00Z",
    "2030-01-01 11:00+01",
    "2030-01-01 15:30:00.000+05:30",
    "2030-01-01T05:00:00-0500",
]
"""The same moment, in forms that have a zone."""
ZONELESS = [
    "2030-01-01 10:00",
    "2030-01-01T10:00:00",
    "2030-01-01",
    "2030-01-01 10:00 Europe/Berlin",
    "2030-01-01 10:00 CET",
    "01.01.2030 10:00+01",
    "tomorrow",
    "now",
    "infinity",
    "2030-13-01T10:00:00Z",
    "2030-01-01T24:00:00Z",
    "2030-01-01T10:00:60Z",
    "2030-01-01T10:00:00+99",
    "1999-12-31T23:59:59Z",
    "3000-01-01T00:00:00Z",
    "20026-01-01T00:00:00Z",
    "soon",
    "",
]
"""Times without their zone, and texts that are no times of a sale."""
AT_TEN = datetime(2030, 1, 1, 10, tzinfo=UTC)
BOTH = ["opens_at", "closes_at"]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize("field", BOTH)
def test_a_literal_with_its_zone_is_one_moment_in_every_session(
    db: Connection, field: str, zone: str
) -> None:
    db.execute(f"set timezone = '{zone}'")
    for text in ZONED:
        with db.transaction(force_rollback=True):
            db.execute(CREATE.format(f"p_{field} => '{text}'").encode())
            read = value(db, f"select {field} from flashsale.item_status")
            assert read == AT_TEN, text
        with db.transaction(force_rollback=True):
            shoe = item(db)
            changed = call(db, "change_item", shoe, json.dumps({field: text}))
            assert getattr(changed, field) == AT_TEN, text
    for text in RFC_3339:
        assert getattr(msgspec.convert({field: text}, models.ItemChanges), field) == AT_TEN


@pytest.mark.parametrize("text", ZONELESS)
@pytest.mark.parametrize("field", BOTH)
def test_a_time_without_its_zone_is_refused_at_every_door(
    db: Connection, field: str, text: str
) -> None:
    shoe = item(db)
    before = everything(db)
    other = BOTH[1 - BOTH.index(field)]
    doors = [
        CREATE.format(f"p_{field} => '{text}'"),
        CREATE.format(f"p_{field} => '{text}'::text"),
        CREATE.format(f"p_{field} => '{text}'::varchar"),
        CREATE.format(f"p_{field} => '{text}', p_{other} => null"),
        CREATE.format(f"p_{field} => '{text}', p_{other} => '2030-01-01 10:00Z'"),
        CREATE.format(f"p_{field} => '{text}', p_{other} => timestamptz '2030-01-01 10:00Z'"),
        CREATE.format(f"'{text}'" if field == "opens_at" else f"null, '{text}'"),
        f"select flashsale.change_item({shoe}, '{json.dumps({field: text})}')::text",
    ]
    for zone in ("UTC", "America/New_York"):
        db.execute(f"set timezone = '{zone}'")
        for door in doors:
            with pytest.raises(psycopg.Error) as error:
                db.execute(door.encode())
            assert error.value.sqlstate == "RV302", door
    assert everything(db) == before
    if text not in ("2030-01-01T10:00:60Z",):
        for struct in (models.NewItem, models.ItemChanges):
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert(TERMS[struct] | {field: text}, struct)


TERMS: dict[type, dict[str, Any]] = {
    models.ItemChanges: {},
    models.NewItem: {
        "sku": "s",
        "name": "n",
        "price": 1,
        "currency": "EUR",
        "stock": 1,
        "hold_seconds": 60,
    },
}


@pytest.mark.parametrize("typed", ["timestamp '2030-01-01 10:00'", "date '2030-01-01'"])
@pytest.mark.parametrize("field", BOTH)
def test_a_value_that_has_no_zone_is_refused(db: Connection, field: str, typed: str) -> None:
    other = BOTH[1 - BOTH.index(field)]
    for also in (
        "",
        f", p_{other} => now()",
        f", p_{other} => '2030-01-01Z'",
        f", p_{other} => {typed}",
    ):
        with pytest.raises(psycopg.Error) as error:
            db.execute(CREATE.format(f"p_{field} => {typed}{also}").encode())
        assert error.value.sqlstate == "RV302", also
    with pytest.raises(psycopg.Error) as error:  # as a driver passes a datetime without a zone
        item(db, **{field: datetime(2030, 1, 1)})  # type: ignore[arg-type]
    assert error.value.sqlstate == "RV302"
    assert rows(db, "select * from flashsale_data.items") == []


@pytest.mark.parametrize(
    ("times", "opens", "closes"),
    [
        ("", None, None),
        ("null", None, None),
        ("null, null", None, None),
        ("p_opens_at => null", None, None),
        ("p_closes_at => null", None, None),
        ("null::timestamptz, null::timestamptz", None, None),
        ("p_opens_at => null, p_closes_at => {typed}", None, AT_TEN),
        ("p_opens_at => {typed}, p_closes_at => null", AT_TEN, None),
        ("p_opens_at => {typed}", AT_TEN, None),
        ("p_closes_at => {typed}", None, AT_TEN),
        ("{typed}", AT_TEN, None),
        ("null, {typed}", None, AT_TEN),
        ("{typed}, {typed} + interval '1 day'", AT_TEN, AT_TEN.replace(day=2)),
        ("{literal}", AT_TEN, None),
        ("null, {literal}", None, AT_TEN),
        ("{literal}, '2030-01-02 10:00Z'", AT_TEN, AT_TEN.replace(day=2)),
        ("{literal}, {typed} + interval '1 day'", AT_TEN, AT_TEN.replace(day=2)),
        (
            "p_opens_at => {literal}, p_closes_at => {typed} + interval '1 day'",
            AT_TEN,
            AT_TEN.replace(day=2),
        ),
        (
            "p_opens_at => {typed}, p_closes_at => '2030-01-02 10:00Z'",
            AT_TEN,
            AT_TEN.replace(day=2),
        ),
        ("p_opens_at => {literal}, p_max_waiting => 5", AT_TEN, None),
        ("p_closes_at => {literal}, p_refund_seconds => 5", None, AT_TEN),
        ("{literal}, null, 5, 'refund'", AT_TEN, None),
        ("null, null, 5, 'keep_if_free', 3, 60", None, None),
        ("p_opens_at => {literal}::text, p_closes_at => null::text", AT_TEN, None),
    ],
)
def test_every_way_to_pass_times_means_what_it_says(
    db: Connection, times: str, opens: datetime | None, closes: datetime | None
) -> None:
    """Nothing is ambiguous, and every role that creates items may pass them."""
    times = times.format(typed="timestamptz '2030-01-01 10:00Z'", literal="'2030-01-01 10:00Z'")
    create = CREATE.format(times).replace(", )", ")")
    for role in ("flashsale_operator", "flashsale_api"):
        with db.transaction(force_rollback=True):
            db.execute(f"set local role {role}".encode())
            db.execute(create.encode())
            made = rows(db, "select opens_at, closes_at from flashsale.item_status")
            assert [(made[0].opens_at, made[0].closes_at)] == [(opens, closes)]


def test_a_text_of_a_driver_is_read_like_a_literal(database_url: str) -> None:
    with sessions(database_url, 1) as (conn,):
        conn.execute("set timezone = 'Asia/Tokyo'")
        shoe = item(conn, opens_at="2030-01-01 10:00Z", closes_at=AT_TEN.replace(day=2))
        assert call(conn, "item_status", shoe).opens_at == AT_TEN
        with pytest.raises(psycopg.Error, match="time zone"):
            item(conn, "other", opens_at="2030-01-01 10:00")


def test_all_forms_of_a_verb_take_the_same_arguments(db: Connection) -> None:
    """A new argument of create_item belongs into each of its forms, with the same default."""
    forms = rows(
        db,
        """
        select p.proargnames as names, pg_get_expr(p.proargdefaults, 0) as defaults
        from pg_proc p
        where p.pronamespace = 'flashsale'::regnamespace and p.proname = 'create_item'
        """,
    )
    assert len(forms) == 4
    assert len({frozenset(form.names) for form in forms}) == 1
    for form in forms:
        defaults = str(form.defaults).split(", ")
        assert defaults[-4:] == str(forms[0].defaults).split(", ")[-4:]
