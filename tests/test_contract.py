"""Definitions that exist in two places agree, and private objects can't be reached."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from flashsale.currencies import DECIMALS, money
from flashsale.models import Forecast, Item, Order, Payment
from support import Connection, item, many, rows, value

ROOT = Path(__file__).parent.parent
ROLES = ("flashsale_api", "flashsale_worker", "flashsale_tool", "flashsale_operator")


def test_every_public_object_has_a_comment_with_a_short_first_line(db: Connection) -> None:
    objects = rows(
        db,
        """
        select p.oid::regprocedure::text as name, obj_description(p.oid, 'pg_proc') as comment
        from pg_proc p where p.pronamespace = 'flashsale'::regnamespace
        union all
        select c.oid::regclass::text, obj_description(c.oid, 'pg_class')
        from pg_class c where c.relnamespace = 'flashsale'::regnamespace and c.relkind = 'v'
        union all
        select c.oid::regclass::text, obj_description(t.oid, 'pg_type')
        from pg_class c join pg_type t on t.typrelid = c.oid
        where c.relnamespace = 'flashsale'::regnamespace and c.relkind = 'c'
        """,
    )
    assert len(objects) > 40
    assert [o.name for o in objects if not o.comment] == []
    assert [o.name for o in objects if len(o.comment.split("\n")[0]) > 72] == []


def test_every_error_that_a_function_raises_is_in_its_comment(db: Connection) -> None:
    """The errors that a function raises, by itself or through the helpers that only raise."""
    functions = rows(
        db,
        "select proname, prosrc, obj_description(oid) as comment from pg_proc "
        "where pronamespace = 'flashsale'::regnamespace",
    )
    raised = {f.proname: set(re.findall(r"errcode = '(RV\d+|40001)'", f.prosrc)) for f in functions}
    for f in functions:
        helpers = re.findall(r"flashsale\.(raise_\w+)\(", f.prosrc)
        for code in raised[f.proname].union(*(raised[helper] for helper in helpers)):
            assert code in f.comment, f"{f.proname} raises {code}"


def test_every_error_is_in_the_table_of_errors(db: Connection) -> None:
    table = (ROOT / "docs" / "reference" / "errors.md").read_text()
    for source in (ROOT / "sql").glob("*.sql"):
        for code, name in re.findall(
            r"errcode = '(RV\d+)', constraint = '(\w+)'", source.read_text()
        ):
            assert re.search(rf"{code}.*{name}|{name}.*{code}", table), f"{code} {name}"


@pytest.mark.parametrize("role", ROLES)
def test_no_role_reaches_the_tables_or_the_queues(db: Connection, role: str) -> None:
    reachable = rows(
        db,
        """
        select c.oid::regclass
        from pg_class c
        where c.relnamespace in ('flashsale_data'::regnamespace, 'pgmq'::regnamespace)
          and c.relkind in ('r', 'S', 'p', 'v')
          and has_schema_privilege(%(role)s, c.relnamespace, 'usage')
        """.replace("%(role)s", f"'{role}'"),
    )
    assert reachable == []


@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_create_anything(db: Connection, role: str) -> None:
    for schema in ("flashsale", "flashsale_data", "pgmq", "public"):
        assert not value(db, "select has_schema_privilege(%s, %s, 'create')", role, schema), schema


def test_the_public_may_call_nothing(db: Connection) -> None:
    callable_by_all = rows(
        db,
        """
        select p.oid::regprocedure from pg_proc p, aclexplode(p.proacl) a
        where p.pronamespace = 'flashsale'::regnamespace and a.grantee = 0
        """,
    )
    assert callable_by_all == []


EXPECTED_GRANTS = {
    "flashsale_api": "cancel change_item create_item draw_entries draw_status events "
    "extend_holds find_held item_status items order_status orders_by_id orders_of "
    "orders_of_item pay_offline record_payment_event refund_order request_payment reserve "
    "reserve_many",
    "flashsale_worker": "begin_sweep event_failed events events_delivered expire fill "
    "finish_notifications forget_events note_provider payment_captured payment_opened "
    "payment_refunded payment_voided payments_opened promote publish_events retry_job sweep "
    "sweep_failed sweep_item take_events take_notifications take_payment_jobs",
    "flashsale_tool": "cancel draw_entries draw_status events explain_order fairness "
    "find_held item_status items order_status orders_by_id orders_of pay_offline "
    "request_payment reserve reserve_many",
    "flashsale_operator": "cancel change_item close_item create_item delete_item "
    "draw_entries draw_status events expire explain_order extend_holds fairness fill "
    "forget_customer forget_events item_status items move_event_cursor open_item order_status "
    "orders_of orders_of_item pause_item pay_offline promote publish_events purge refund_order "
    "restock resume_item retry_dead_letter set_retention skip_event sweep withdraw",
}
FOR_VIEWS = {"clock", "hold_fate", "issued_tickets", "money", "order_id_of", "provider_down"}
FOR_VIEWS |= {"is_entry", "is_on", "place_of", "running_transactions", "shut_by"}
FOR_ARGUMENTS = {"moment_of"}
"""Casts, which Postgres calls with the rights of whoever passes the argument."""


@pytest.mark.parametrize("role", ROLES)
def test_each_audience_has_its_verbs_and_no_others(db: Connection, role: str) -> None:
    granted = {
        row.proname
        for row in rows(
            db,
            "select proname from pg_proc where pronamespace = 'flashsale'::regnamespace "
            "and has_function_privilege(%s, oid, 'execute')",
            role,
        )
    }
    assert granted - FOR_VIEWS - FOR_ARGUMENTS == set(EXPECTED_GRANTS[role].split())


UNPINNED = {"as_row", "is_event", "name_of_event", "outage"}
UNPINNED |= {
    "can_be_paid",
    "clock",
    "id_in",
    "current_id",
    "is_entry",
    "shown_id",
    "tally_of_cancelled",
    "is_to_be_found",
    "item_of",
    "look_up_payment_jobs",
    "max_tries",
    "order_id_of",
}
UNPINNED |= {"shut_by", "ticket_limit_for", "ticket_of", "withdrawn_through"}
UNPINNED |= {
    "answers",
    "is_late",
    "is_request",
    "look_up",
    "look_up_batch",
    "new_order",
    "key_of",
}
UNPINNED |= {"nth_ticket", "units_in_words", "wish_in_words"}
UNPINNED |= {"is_same_request", "items_per_sweep", "refused", "reserved", "waiting"}
UNPINNED |= {"is_forgotten", "is_id", "is_text"}
"""Inlined into the statements that call them; a function with settings is not."""
UNPINNED |= {"feed_items_per_visit", "first_status", "is_announced", "paid_data", "utc"}
COMMITS = {"sweep_for_a_minute", "sweep_round"}
"""A procedure with settings can't commit."""


def test_every_function_pins_its_search_path(db: Connection) -> None:
    """An empty search_path is not enough: without pg_temp in it, temporary objects come first."""
    loose = rows(
        db,
        """
        select p.proname, p.prosecdef, p.prolang = (
            select l.oid from pg_language l where l.lanname = 'sql') as inlined
        from pg_proc p
        where p.pronamespace = 'flashsale'::regnamespace
          and not coalesce(p.proconfig, '{}') @> array['search_path=pg_catalog, pg_temp']
        """,
    )
    assert {f.proname for f in loose if f.inlined} == UNPINNED
    assert {f.proname for f in loose if not f.inlined} == COMMITS
    assert [f.proname for f in loose if f.prosecdef] == []


def test_each_role_can_read_its_views(database_url: str, db: Connection) -> None:
    many(db, item(db), ["ann", "bob"])
    db.execute("select flashsale.sweep()")
    views = [
        r.relname
        for r in rows(
            db,
            "select relname from pg_class where relnamespace = 'flashsale'::regnamespace "
            "and relkind = 'v'",
        )
    ]
    for role in ROLES:
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute(f"set role {role}")
            for view in views:
                if value(
                    db, "select has_table_privilege(%s, %s, 'select')", role, f"flashsale.{view}"
                ):
                    rows(conn, f"select * from flashsale.{view}")


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (
            "select * from flashsale_data.orders where coalesce(product_id, item_id) = 1 "
            "and customer_id = 'c1' and ended_at is null and may_buy_again is null",
            "orders_one_open_per_customer",
        ),
        ("select * from flashsale.order_status where order_id = 4294967297", "orders_pkey"),
        (
            "select * from flashsale.order_status where customer_id = 'c1' "
            "order by created_at desc, order_id desc limit 10",
            "orders_customer_id_created_at",
        ),
        (
            "select order_id from flashsale_data.orders where status = 'reserved' and expires_at"
            " <= now() and paid_at is null and ended_at is null order by expires_at limit 10",
            "orders_expires_at_held",
        ),
        (
            "select order_id from flashsale_data.orders where status = 'waiting' "
            "and order_id between 4294967296 and 4294967300 order by order_id limit 10",
            "orders_order_id_waiting",
        ),
        (
            "select order_id from flashsale_data.orders where ended_at is not null "
            "and not recycled and order_id between 4294967296 and 4294967300 order by order_id",
            "orders_order_id_unrecycled",
        ),
    ],
)
def test_hot_queries_use_their_index(db: Connection, query: str, index: str) -> None:
    shoe = item(db, stock=500)
    for n in range(5):
        many(db, shoe, [f"c{n * 500 + c}" for c in range(500)])
    db.execute("analyze flashsale_data.orders")
    plan = "\n".join(row[0] for row in rows(db, "explain " + query))
    assert index in plan
    assert "Seq Scan on orders" not in plan


def test_the_sources_keep_to_the_house_rules() -> None:
    for source in [*(ROOT / "sql").glob("*.sql"), *(ROOT / "migrations").glob("*.sql")]:
        for n, line in enumerate(source.read_text().splitlines(), 1):
            assert len(line) <= 100, f"{source.name}:{n} is too long"
            assert "advisory" not in line or line.lstrip().startswith("--"), f"{source.name}:{n}"
            if source.name != "sweep_item.sql":  # an error at one item is not the others' error
                assert "when others" not in line.lower(), f"{source.name}:{n}"


def test_every_function_fits_on_a_screen() -> None:
    """70 lines, from its first to its last. A longer one has two ideas: give each a name."""
    long: dict[str, int] = {}
    for source in (ROOT / "sql").glob("*.sql"):
        functions = re.findall(
            r"^(create (?:or replace )?(?:function|procedure) flashsale\.(\w+)\(.*?\$\$;)$",
            source.read_text(),
            re.MULTILINE | re.DOTALL,
        )
        long |= {name: n for text, name in functions if (n := len(text.splitlines())) > 70}
    assert long == {}


def test_only_shut_by_decides_when_a_sale_is_shut() -> None:
    deciding = [
        (source.name, line)
        for source in (ROOT / "sql").glob("*.sql")
        for line in source.read_text().splitlines()
        if re.search(r"closes_at\b\s*[<>]|[<>]=?\s*\w*\.?closes_at\b", line)
        and not re.search(r"opens_at.*closes_at", line)
    ]
    assert len(deciding) == 1, deciding  # in shut_by


def test_install_lists_exactly_the_files_that_exist() -> None:
    listed = re.findall(r"^\\ir (\S+)", (ROOT / "sql" / "install.sql").read_text(), re.M)
    assert sorted(listed) == sorted(
        p.name for p in (ROOT / "sql").glob("*.sql") if p.name != "install.sql"
    )


def test_every_verb_is_in_the_file_of_its_name() -> None:
    verbs = set(" ".join(EXPECTED_GRANTS.values()).split())
    for verb in verbs:
        source = ROOT / "sql" / f"{verb}.sql"
        assert source.exists(), f"sql/{verb}.sql"
        assert f"function flashsale.{verb}(" in source.read_text(), f"sql/{verb}.sql"


def functions_called(source: str) -> set[str]:
    text = (ROOT / "src" / "flashsale" / source).read_text()
    return set(re.findall(r"(?:from|select) flashsale\.(\w+)\(", text))


def test_the_service_calls_what_its_role_may_call_and_no_more() -> None:
    assert functions_called("database/calls.py") == set(EXPECTED_GRANTS["flashsale_api"].split())


def test_the_worker_calls_what_its_role_may_call() -> None:
    # Earlier workers, and teams' own:
    by_others = {"sweep", "expire", "fill", "promote", "payment_opened", "events", "forget_events"}
    assert functions_called("database/jobs.py") | by_others == set(
        EXPECTED_GRANTS["flashsale_worker"].split()
    )


def test_what_http_shows_of_an_order_is_the_sql_row(db: Connection) -> None:
    columns = {
        row.attname
        for row in rows(
            db,
            "select attname from pg_attribute where attrelid = 'flashsale.order_row'::regclass "
            "and attnum > 0",
        )
    }
    nested = {"payment_id", "payment_status", "amount", "currency", "checkout_url", "reference"}
    forecast = {"chance", "forecast_as_of"}
    shown = set(Order.__struct_fields__) - {"payment", "forecast"}
    assert shown | nested | forecast | {"outcome", "retry_at"} == columns
    assert {f.replace("forecast_", "") for f in forecast} == set(Forecast.__struct_fields__)
    assert {f.replace("payment_status", "status") for f in nested} == set(Payment.__struct_fields__)


def test_what_http_shows_of_an_item_is_the_view(db: Connection) -> None:
    view = rows(
        db,
        "select attname from pg_attribute where attrelid = 'flashsale.item_status'::regclass "
        "and attnum > 0 order by attnum",
    )
    assert [row.attname for row in view] == list(Item.__struct_fields__)


def test_sql_and_python_write_amounts_in_the_same_way(db: Connection) -> None:
    amounts = [0, 1, 9, 10, 99, 100, 999, 1000, 9999, 10_000, 4900, 1250, 10**15]
    pairs = [(amount, code) for code in [*DECIMALS, "XXX"] for amount in amounts]
    found = rows(
        db,
        "select flashsale.money(m.amount, m.currency) as written "
        "from unnest(%s::bigint[], %s::text[]) with ordinality m (amount, currency, n) order by n",
        [amount for amount, _ in pairs],
        [code for _, code in pairs],
    )
    assert [row.written for row in found] == [money(amount, code) for amount, code in pairs]
    assert money(4900, "EUR") == "49.00 EUR"
    assert money(1250, "KWD") == "1.250 KWD"
    assert money(4900, "JPY") == "4900 JPY"


def test_reading_an_item_does_not_read_its_orders(db: Connection) -> None:
    item(db)
    for query in (
        "select * from flashsale.item_status where item_id = 1",
        "select * from flashsale.item_status order by item_id limit 100",
    ):
        plan = "\n".join(row[0] for row in rows(db, "explain " + query))
        assert "items" in plan
        assert "orders" not in plan
