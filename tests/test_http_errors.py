"""Bad requests and failures get a problem with a code, and change nothing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from flashsale.api.unit_answers import GRANTED
from flashsale.database.calls import Database
from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.refusals import CODES
from http_support import (
    NEW_ITEM,
    Api,
    LocalApi,
    api_fixture,  # noqa: F401 - fixtures
    problem,
    serving,
    settings,
    success,
)
from support import Connection, connect, eventually, rows, value

SQL = Path(__file__).parent.parent / "sql"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def nothing_written(database_url: str) -> Iterator[None]:
    yield
    with connect(database_url) as conn:
        assert value(conn, "select count(*) from flashsale_data.orders") == 0
        assert value(conn, "select count(*) from flashsale_data.payment_events") == 0


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


HUGE = "1" + "0" * 400
BAD_ITEMS: dict[str, dict[str, Any]] = {
    "text for a number": {"price": "1000"},
    "a fraction": {"price": 10.5},
    "a whole float": {"price": 10.0},
    "true for a number": {"stock": True},
    "null": {"name": None},
    "a list": {"name": ["x"]},
    "a price of nothing": {"price": 0},
    "a price too high": {"price": 10**12 + 1},
    "a negative stock": {"stock": -1},
    "too much stock": {"stock": 10_000_001},
    "no hold": {"hold_seconds": 0},
    "a hold too long": {"hold_seconds": 604_801},
    "a negative line": {"max_waiting": -1},
    "a line too long": {"max_waiting": 10_000_001},
    "no sku": {"sku": ""},
    "a long sku": {"sku": "x" * 65},
    "a blank sku": {"sku": "  "},
    "NUL": {"sku": "a\0b"},
    "a line feed": {"name": "a\n"},
    "a C1 control": {"name": "a\x85b"},
    "a long name": {"name": "ä" * 201},
    "a currency in small letters": {"currency": "eur"},
    "a currency of two letters": {"currency": "EU"},
    "a currency and a line feed": {"currency": "EUR\n"},
    "an unknown policy": {"late_payment": "keep"},
    "settling backwards": {"settle_seconds": -1},
    "settling for too long": {"settle_seconds": 61},
    "settling for null": {"settle_seconds": None},
    "refunds for no time": {"refund_seconds": 0},
    "refunds for more than a year": {"refund_seconds": 31_536_001},
    "an unknown field": {"colour": "red"},
    "a naive time": {"opens_at": "2030-01-01T00:00:00"},
    "a date": {"opens_at": "2030-01-01"},
    "a number as a time": {"opens_at": 1893456000},
    "a day that is none": {"opens_at": "2030-02-30T00:00:00Z"},
    "the year 1": {"opens_at": "0001-01-01T00:00:00+14:00"},
    "the year 9999": {"closes_at": "9999-12-31T23:59:59-12:00"},
    "infinity": {"closes_at": "infinity"},
    "closing before it opens": {
        "opens_at": "2030-01-02T00:00:00Z",
        "closes_at": "2030-01-01T00:00:00Z",
    },
}


@pytest.mark.parametrize("changes", BAD_ITEMS.values(), ids=BAD_ITEMS)
async def test_an_impossible_item_is_refused(api: Api, changes: dict[str, Any]) -> None:
    problem(await api("POST", "/items", json=NEW_ITEM | changes), 422, "bad_value")
    assert (await api("GET", "/items")).json() == []


BAD_CHANGES: dict[str, dict[str, Any]] = {
    "null stock": {"add_stock": None},
    "no stock": {"add_stock": 0},
    "text": {"add_stock": "1"},
    "stock past the limit": {"add_stock": 10_000_000},
    "a null hold": {"hold_seconds": None},
    "a null pause": {"paused": None},
    "a number for a pause": {"paused": 1},
    "settling for too long": {"settle_seconds": 61},
    "settling for null": {"settle_seconds": None},
    "refunds for no time": {"refund_seconds": 0},
    "a field that stays": {"sku": "boot"},
    "a price of nothing": {"price": 0},
    "a naive time": {"closes_at": "2030-01-01T00:00:00"},
    "closing before it opens": {
        "opens_at": "2030-01-02T00:00:00Z",
        "closes_at": "2030-01-01T00:00:00Z",
    },
}


@pytest.mark.parametrize("changes", BAD_CHANGES.values(), ids=BAD_CHANGES)
async def test_an_impossible_change_is_refused_whole(api: Api, changes: dict[str, Any]) -> None:
    item = await api.item()
    path = f"/items/{item['item_id']}"
    body = {"hold_seconds": 7, **changes}
    problem(await api("PATCH", path, json=body), 422, "bad_value")
    assert (await api("GET", path)).json() | {"as_of": item["as_of"]} == item


BODIES: dict[str, tuple[str | bytes, int, str]] = {
    "nothing": ("", 422, "bad_value"),
    "null": ("null", 422, "bad_value"),
    "a list": ("[]", 422, "bad_value"),
    "half": ('{"sku": "a', 400, "malformed_body"),
    "more after it": (json.dumps(NEW_ITEM) + "x", 400, "malformed_body"),
    "NaN": (json.dumps(NEW_ITEM | {"price": float("nan")}), 400, "malformed_body"),
    "Infinity": (json.dumps(NEW_ITEM | {"price": float("inf")}), 400, "malformed_body"),
    "a huge number": (f'{{"price": {HUGE}}}', 422, "bad_value"),
    "a number of 10,000 digits": (f'{{"price": {"9" * 10_000}}}', 422, "bad_value"),
    "a huge exponent": ('{"price": 1e400}', 422, "bad_value"),
    "1,000 lists": (deep(1000), 422, "bad_value"),
    "1,000 lists for a name": (f'{{"name": {deep(1000)}}}', 422, "bad_value"),
    "7,000 lists for nothing": (f'{{"x": {deep(7000)}}}', 422, "bad_value"),
    "not UTF-8": (b'{"sku": "\xff\xfe"}', 400, "malformed_body"),
    "half a surrogate": ('{"sku": "\\ud800"}', 400, "malformed_body"),
    "UTF-16": ('{"sku": "a"}'.encode("utf-16"), 400, "malformed_body"),
    "NUL": (b"\0", 400, "malformed_body"),
    "16 KiB and a byte": ('{"sku": "' + "x" * 16_374 + '"}', 413, "body_too_large"),
    "a megabyte": (b"x" * 1_000_000, 413, "body_too_large"),
}


@pytest.mark.parametrize(("body", "status", "code"), BODIES.values(), ids=BODIES)
async def test_a_bad_body_is_refused(api: Api, body: str | bytes, status: int, code: str) -> None:
    problem(await api("POST", "/items", content=body, headers=JSON), status, code)
    assert (await api("GET", "/items")).json() == []


@pytest.mark.parametrize("body", ["[]", '{"wait": 1}', '{"wait": null}', '{"x": 1}', '"x"', "{"])
async def test_a_bad_body_of_a_request_for_a_unit_is_refused(api: Api, body: str) -> None:
    item = await api.item()
    response = await api.order(item, "ann", content=body, headers=JSON)
    code = "malformed_body" if body == "{" else "bad_value"
    problem(response, 400 if body == "{" else 422, code)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "json"])
async def test_a_body_that_is_not_json_is_refused(api: Api, kind: str) -> None:
    response = await api("POST", "/items", content="{}", headers={"Content-Type": kind})
    problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_a_content_type_may_name_a_charset(api: Api, kind: str) -> None:
    response = await api(
        "POST", "/items", content=json.dumps(NEW_ITEM), headers={"Content-Type": kind}
    )
    assert response.status_code == 201


@pytest.mark.parametrize(
    "customer", [None, "", " ", "x" * 129, "a\tb", b"a\x00b", b"a\x7f", "ä".encode()]
)
async def test_a_customer_is_required(api: Api, customer: Any) -> None:
    item = await api.item()
    headers = {} if customer is None else {"X-Customer-Id": customer}
    for method, path in (
        ("POST", f"/items/{item['item_id']}/orders"),
        ("GET", "/orders"),
        ("GET", "/orders/4294967297"),
        ("DELETE", "/orders/4294967297"),
        ("POST", "/orders/4294967297/payment"),
        ("GET", "/orders/4294967297/events"),
    ):
        problem(await api(method, path, headers=headers), 401, "customer_required")


@pytest.mark.parametrize("key", ["", "k" * 256, b"a\x00", b"\xff"])
async def test_a_bad_key_is_refused(api: Api, key: Any) -> None:
    item = await api.item()
    problem(await api.order(item, "ann", headers={"Idempotency-Key": key}), 422, "bad_value")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", f"limit={HUGE}", "limit=", "limit=1.5", "limit=-1"],
)
async def test_a_bad_limit_is_refused(api: Api, query: str) -> None:
    problem(await api("GET", f"/items?{query}"), 422, "bad_value")
    problem(await api("GET", f"/orders?{query}", "ann"), 422, "bad_value")


@pytest.mark.parametrize("after", ["-1", "x", HUGE, "2147483648"])
async def test_a_bad_page_is_refused(api: Api, after: str) -> None:
    problem(await api("GET", f"/items?after={after}"), 422, "bad_value")
    if after != "2147483648":
        problem(await api("GET", f"/orders?before={after}", "ann"), *before_code(after))


def before_code(before: str) -> tuple[int, str]:
    return (422, "bad_value") if len(before) > 64 else (404, "unknown_order")


@pytest.mark.parametrize("item_id", ["0", "-1", "2147483648", HUGE])
async def test_a_number_that_is_no_item_id_is_not_found(api: Api, item_id: str) -> None:
    problem(await api("GET", f"/items/{item_id}"), 404, "unknown_item")


@pytest.mark.parametrize("path", ["/", "/nothing", "/items/abc", "/items/1/x", "/schema/swagger"])
async def test_an_unknown_address_is_not_found(api: Api, path: str) -> None:
    problem(await api("GET", path), 404, "not_found")


async def test_an_unknown_method_is_not_allowed(api: Api) -> None:
    response = await api("PUT", "/items")
    problem(response, 405, "method_not_allowed")
    assert "POST" in response.headers["allow"]


async def test_an_event_must_have_a_recent_and_valid_signature(api: Api) -> None:
    order = {"payment": {"payment_id": "1", "amount": 1, "currency": "EUR"}}
    event = success(order)
    for at in (time.time() - 301, time.time() + 301):
        problem(await api.event(event, at), 401, "bad_signature")
    for headers in ({}, {"Flashsale-Signature": "t=1,v1=00"}, {"Flashsale-Signature": b"\xff"}):
        problem(
            await api("POST", "/webhooks/payments", json=event, headers=headers),
            401,
            "bad_signature",
        )


async def test_a_signed_request_without_a_body_is_refused(api: Api) -> None:
    problem(await api.event(b""), 422, "bad_value")


async def test_a_body_that_never_comes_is_given_up(database_url: str) -> None:
    async def forever() -> Any:
        yield b"{"
        await asyncio.sleep(60)

    async with serving(settings(database_url, request_deadline_seconds=0.2)) as api:
        problem(await api("POST", "/items", content=forever(), headers=JSON), 408, "body_timeout")


# SQLSTATEs

RAISED = [
    ("RV199", 404, "of_sql"),
    ("RV299", 409, "of_sql"),
    ("RV399", 422, "of_sql"),
    ("RV499", 403, "of_sql"),
    ("40001", 503, "overloaded"),
    ("40P01", 503, "overloaded"),
    ("53300", 503, "overloaded"),
    ("53200", 503, "overloaded"),
    ("55P03", 503, "overloaded"),
    ("57014", 503, "overloaded"),
    ("57P01", 503, "database_unavailable"),
    ("57P03", 503, "database_unavailable"),
    ("08006", 503, "database_unavailable"),
    ("58030", 503, "database_unavailable"),
    ("25006", 503, "database_unavailable"),
    ("42804", 503, "database_unavailable"),  # a row type has got columns meanwhile
    ("42846", 503, "database_unavailable"),
    ("22003", 422, "bad_value"),
    ("22021", 422, "bad_value"),
    ("23505", 500, "internal_error"),
    ("42501", 500, "internal_error"),
    ("XX000", 500, "internal_error"),
    ("P0001", 500, "internal_error"),
]


@pytest.mark.parametrize(("sqlstate", "status", "code"), RAISED)
async def test_an_sqlstate_has_its_status(
    api: Api, db: Connection, sqlstate: str, status: int, code: str
) -> None:
    db.execute(
        f"""
        create or replace function flashsale.item_status(p_item_id integer)
        returns flashsale.item_status language plpgsql as $$
        begin
          raise exception 'in words' using errcode = '{sqlstate}', constraint = 'of_sql',
            detail = 'secret', hint = 'what next';
        end $$
        """
    )
    response = await api("GET", "/items/1")
    if code == "of_sql":
        assert response.status_code == status
        assert response.json()["code"] == "of_sql"
        assert (response.json()["detail"], response.json()["hint"]) == ("in words", "what next")
    else:
        problem(response, status, code)
        assert "in words" not in response.text
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)


def test_every_error_of_the_sql_has_its_line_in_the_table() -> None:
    statuses = {"1": 404, "2": 409, "3": 422, "4": 403}
    not_by_http = {
        "unknown_dead_letter",
        "bad_batch",
        "bad_request",
        "not_revivable",
        "still_open",
        "bad_payment",
        "not_next_event",
    }
    for source in SQL.glob("*.sql"):
        for sqlstate, code in re.findall(
            r"errcode = '(RV\d+)', constraint = '(\w+)'", source.read_text()
        ):
            if code in CODES and code not in not_by_http:
                assert CODES[code].status == statuses[sqlstate[2]], code
            else:
                assert code in not_by_http, f"{code} is not in CODES"


def test_every_outcome_of_reserve_has_its_answer() -> None:
    comment = (SQL / "reserve_many.sql").read_text().split("Outcomes:")[1].split("Errors:")[0]
    names = re.sub(r"\([^)]*\)|These take[^:]*:|\band\b", "", comment)
    outcomes = set(re.findall(r"[a-z_]+", names))
    assert {"reserved", "waiting", "entered", "existing", "sold_out", "not_open"} <= outcomes
    assert {"has_other_order", "too_many", "key_reused"} <= outcomes
    assert outcomes - set(GRANTED) - set(CODES) == {"invalid"}


# The database


async def test_a_busy_pool_refuses_what_it_has_no_connection_for(
    database_url: str, db: Connection
) -> None:
    bounds = {"read_connections": 1, "read_wait_ms": 200, "read_deadline_ms": 120_000}
    async with serving(settings(database_url, **bounds)) as api:
        item = await api.item()
        path = f"/items/{item['item_id']}"
        with connect(database_url, autocommit=False) as blocker:
            blocker.execute("lock table flashsale_data.items")
            slow = asyncio.create_task(api("GET", path))
            await asyncio.to_thread(eventually, lambda: blocked(db))
            refused = await api("GET", path)
            problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert not slow.done()
            blocker.rollback()
            assert (await slow).status_code == 200


async def test_a_read_that_meets_a_lock_does_not_wait_for_ever(
    database_url: str, db: Connection
) -> None:
    async with serving(settings(database_url, read_deadline_ms=2000)) as api:
        item = await api.item()
        path = f"/items/{item['item_id']}"
        with connect(database_url, autocommit=False) as blocker:
            blocker.execute("lock table flashsale_data.items")
            problem(await api("GET", path), 503, "overloaded")  # statement_timeout: rolled back
        assert (await api("GET", path)).status_code == 200


def blocked(conn: Connection) -> bool:
    return bool(
        value(
            conn,
            "select count(*) from pg_stat_activity where datname = current_database() "
            "and cardinality(pg_blocking_pids(pid)) > 0",
        )
    )


async def test_no_request_waits_past_its_deadline(database_url: str) -> None:
    bounds = {"pay_deadline_ms": 300, "database_role": "none"}
    async with serving(settings(database_url, **bounds)) as api:
        item = await api.item()
        path = f"/items/{item['item_id']}"
        with connect(database_url, autocommit=False) as blocker:
            blocker.execute("select from flashsale_data.items for update")
            late = await api("PATCH", path, json={"paused": True})
            problem(late, 503, "database_unavailable")  # its effect is unknown
        assert (await api("GET", path)).status_code == 200


async def test_the_service_comes_back_with_its_database(
    api: Api, db: Connection, postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flashsale.api")
    item = await api.item()
    path = f"/items/{item['item_id']}"
    name = value(db, "select current_database()")
    kill = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    rows(db, kill)
    answers = [(await api("GET", path)).status_code for _ in range(6)]
    assert set(answers) <= {200, 503} and answers[-1] == 200  # each dead connection fails once

    admin = connect(postgres.url("postgres", "postgres"))
    admin.execute(f"alter database {name} with allow_connections false")
    rows(db, kill)
    for _ in range(4):
        away = await api("GET", path)
        problem(away, 503, "database_unavailable")
        assert away.headers["retry-after"] == "1"
    admin.execute(f"alter database {name} with allow_connections true")
    admin.close()
    assert (await api("GET", path)).status_code == 200
    assert [r.getMessage() for r in caplog.records if "database" in r.getMessage()][-2:] == [
        "database is away: ObjectNotInPrerequisiteStateError",
        "database is back",
    ]


async def test_requests_survive_a_replay_of_the_functions(
    api: Api, db: Connection, database_url: str, postgres: EmbeddedPostgres
) -> None:
    with connect(postgres.url("postgres", "postgres")) as admin:
        name = value(db, "select current_database()")
        admin.execute(f"alter database {name} owner to flashsale")
    item = await api.item()
    path = f"/items/{item['item_id']}"
    for _ in range(5):  # every connection has its statement prepared
        await asyncio.gather(*(api("GET", path) for _ in range(5)))

    def replay() -> None:
        for _ in range(3):
            migrate(database_url, force=True)

    replaying = asyncio.create_task(asyncio.to_thread(replay))
    seen: set[int] = set()
    while not replaying.done():
        seen.add((await api("GET", path)).status_code)
        seen.add((await api("GET", "/orders", "x")).status_code)
    await replaying
    assert seen <= {200, 503}
    assert (await api("GET", path)).status_code == 200

    db.execute("alter schema flashsale rename to elsewhere")
    problem(await api("GET", path), 503, "database_unavailable")
    db.execute("alter schema elsewhere rename to flashsale")
    assert (await api("GET", path)).status_code == 200


async def test_an_unexpected_error_is_logged_and_not_shown(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the reason")

    monkeypatch.setattr(Database, "items", broken)
    response = await api("GET", "/items")
    problem(response, 500, "internal_error")
    assert "reason" not in response.text
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "path=/items" in record.getMessage() and "the reason" in str(record.exc_info)


async def test_the_pool_acts_as_the_api_role_and_reaches_no_table(
    api: LocalApi, database_url: str
) -> None:
    await api.item()
    pool = api.app.state.service.database._read._pool  # noqa: SLF001 - no answer tells the role
    async with pool.acquire() as connection:
        assert await connection.fetchval("select current_user") == "flashsale_api"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select * from flashsale_data.orders")


async def test_a_client_that_sends_a_bad_host_gets_a_problem(api: Api) -> None:
    response: httpx.Response = await api("GET", "/items", headers={"Host": "a b/"})
    problem(response, 400, "bad_request")
