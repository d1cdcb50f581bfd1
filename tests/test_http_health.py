"""Health and metrics, when all is well and when it is not."""

from __future__ import annotations

import asyncio
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flashsale.api.app import create_app
from flashsale.database.version import API, OLDEST_API
from flashsale.settings import Settings, SettingsError
from flashsale.testing.clock import Clock
from http_support import Api, api_fixture, problem, serving, settings  # noqa: F401 - fixtures
from money_support import open_sessions, take, voided
from support import Connection, call, connect, item, many, reserve, sweep

NOWHERE = "postgresql://nobody:hush@127.0.0.1:1/nothing"


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Value by name and label values."""
    return {
        (s.name, tuple(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


async def test_ready_is_when_everything_is_well(api: Api, db: Connection) -> None:
    sweep(db)
    response = await api("GET", "/health/ready")
    assert response.status_code == 200, response.text
    assert response.json()["status"] == "ready"
    assert [(c["name"], c["ok"]) for c in response.json()["checks"]] == [
        ("database", True),
        ("migrations", True),
        ("sweep", True),
    ]


async def test_the_alarm_is_raised_if_nobody_has_ever_swept(api: Api, db: Connection) -> None:
    """A metric that is missing raises none, and readiness does not tell either."""
    seen = samples((await api("GET", "/metrics")).text)
    assert seen["flashsale_sweep_lag_seconds", ()] == math.inf


async def test_without_a_recent_sweep_it_is_ready_and_says_so(api: Api, db: Connection) -> None:
    """All replicas would be not ready at once, although sales go on."""
    response = await api("GET", "/health/ready")
    assert response.status_code == 200, response.text
    assert response.json()["checks"][2] == {
        "name": "sweep",
        "ok": False,
        "detail": "nobody has swept",
    }
    sweep(db)
    db.execute("update flashsale_data.sweepers set swept_at = swept_at - interval '6 seconds'")
    response = await api("GET", "/health/ready")
    assert response.status_code == 200, response.text
    assert [c["ok"] for c in response.json()["checks"]] == [True, True, False]


@pytest.mark.parametrize(
    ("version", "ready"),
    [
        (f"flashsale 9.9, api {OLDEST_API} to {API}, 9 migrations, sql 0123456789abcdef", True),
        (f"flashsale 9.9, api {API} to {API + 5}, 9 migrations, sql 0123456789abcdef", True),
        (f"flashsale 9.9, api {API + 1} to {API + 1}, 9 migrations, sql 0123456789abcdef", False),
        (f"flashsale 0.0.1, api 0 to {API - 1}, 9 migrations, sql 0123456789abcdef", False),
        ("7 migrations, sql 0123456789abcdef", False),
    ],
)
async def test_ready_while_the_database_is_compatible(
    api: Api, db: Connection, version: str, ready: bool
) -> None:
    """Whatever the text of sql/ is: replicas of two releases run at once during an upgrade."""
    sweep(db)
    db.execute(f"comment on schema flashsale_data is '{version}'")
    response = await api("GET", "/health/ready")
    if ready:
        assert response.status_code == 200, response.text
    else:
        body = problem(response, 503, "not_ready")
        assert [c["ok"] for c in body["checks"]] == [True, False, False]
        assert version in body["checks"][1]["detail"]


async def test_not_ready_before_migrate(api: Api, db: Connection) -> None:
    db.execute("comment on schema flashsale_data is null")
    body = problem(await api("GET", "/health/ready"), 503, "not_ready")
    assert [c["detail"] for c in body["checks"]] == ["reached", "found: nothing", "not known"]


async def test_without_a_database_the_service_lives_and_says_so() -> None:
    async with serving(settings(NOWHERE)) as api:
        assert (await api("GET", "/health/live")).json()["status"] == "live"
        ready = await api("GET", "/health/ready")
        body = problem(ready, 503, "not_ready")
        assert [c["ok"] for c in body["checks"]] == [False, False, False]
        problem(await api("GET", "/items"), 503, "database_unavailable")
        scraped = await api("GET", "/metrics")
        assert samples(scraped.text)["flashsale_database_up", ()] == 0
        assert "hush" not in ready.text + scraped.text


async def test_a_database_that_does_not_answer_is_not_waited_for() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the service gives up
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"postgresql://x@127.0.0.1:{port}/x"
    bounds = {"acquire_timeout_seconds": 0.3, "readiness_timeout_seconds": 0.2}
    async with serving(settings(url, **bounds)) as api:
        problem(await api("GET", "/health/ready"), 503, "not_ready")
        problem(await api("GET", "/items"), 503, "database_unavailable")
        assert (await api("GET", "/metrics")).status_code == 200
        assert (await api("GET", "/health/live")).status_code == 200
    server.close()


@pytest.mark.parametrize("missing", ["database_url", "webhook_secret"])
def test_the_service_does_not_start_half_configured(missing: str) -> None:
    given = {"database_url": NOWHERE, "webhook_secret": "s"} | {missing: ""}
    with pytest.raises(SettingsError, match=f"FLASHSALE_{missing.upper()}"):
        create_app(Settings(**given))  # type: ignore[arg-type]


async def test_metrics_count_requests_and_outcomes(api: Api, db: Connection) -> None:
    item = await api.item()
    order = (await api.order(item, "ann")).json()
    for _ in range(2):
        await api.order(item, "bob")
    await api("GET", "/nothing/here")
    await api("GET", f"/orders/{order['order_id']}", "bob")
    await api.pay(order)
    sweep(db)

    response = await api("GET", "/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    seen = samples(response.text)
    requests = "flashsale_http_request_seconds_count"
    assert seen[requests, ("POST", "/items", "201")] == 1
    assert seen[requests, ("POST", "/items/{item_id}/orders", "202")] == 1
    assert seen[requests, ("POST", "/items/{item_id}/orders", "200")] == 1
    assert seen[requests, ("GET", "/orders/{order_id}", "404")] == 1
    assert seen[requests, ("GET", "unmatched", "404")] == 1
    outcomes = "flashsale_reserve_outcomes_total"
    assert [seen[outcomes, (o,)] for o in ("reserved", "waiting", "existing")] == [1, 1, 1]
    assert seen["flashsale_payment_events_total", ("paid",)] == 1
    assert seen["flashsale_orders", ("paid",)] == 1
    assert seen["flashsale_orders", ("waiting",)] == 1
    assert seen["flashsale_queue_depth", ("payments",)] >= 1
    assert seen["flashsale_queue_oldest_seconds", ("payments",)] >= 0
    assert seen["flashsale_dead_letters", ("payments",)] == 0
    assert 0 <= seen["flashsale_sweep_lag_seconds", ()] < 60
    assert seen["flashsale_database_up", ()] == 1
    for pool, size in (("reserve", 2), ("pay", 4), ("read", 2)):
        assert seen["flashsale_pool_connections", (pool,)] == size
        assert seen["flashsale_pool_idle", (pool,)] == size
        assert seen["flashsale_pool_waiting", (pool,)] == 0
    assert seen["flashsale_event_streams", ()] == 0


async def test_metrics_show_how_far_the_feed_was_delivered(api: Api, db: Connection) -> None:
    seen = samples((await api("GET", "/metrics")).text)
    assert not [name for name, _ in seen if "event_delivery" in name]
    db.execute(
        "insert into flashsale_data.events (event_id, type, at, item_id, data) "
        "select n, 'item.opened', flashsale.clock() - interval '1 minute', 1, '{}' "
        "from generate_series(1, 3) n"
    )
    lease_id = call(db, "take_events", "w", 30, 1).lease_id
    db.execute("select flashsale.events_delivered(%s, 1, 30)", [lease_id])
    db.execute("select flashsale.event_failed(%s, 'status 500', 60)", [lease_id])
    seen = samples((await api("GET", "/metrics")).text)
    assert seen["flashsale_event_delivery_behind", ()] == 2
    assert 60 <= seen["flashsale_event_delivery_oldest_seconds", ()] < 120
    assert seen["flashsale_event_delivery_failures", ()] == 1


async def test_each_kind_of_sweeper_has_its_own_lag(api: Api, db: Connection) -> None:
    """pg_cron that has stopped shows, although the worker goes on."""
    for runner in ("pg_cron", "worker:here:1", "worker:here:2"):
        db.execute("select flashsale.sweep(%s)", [runner])
    db.execute(
        "update flashsale_data.sweepers set swept_at = swept_at - interval '1 minute' "
        "where runner in ('pg_cron', 'worker:here:1')"
    )
    seen = samples((await api("GET", "/metrics")).text)
    assert seen["flashsale_sweep_lag_seconds", ()] < 60
    assert seen["flashsale_sweeper_lag_seconds", ("worker",)] < 5
    assert seen["flashsale_sweeper_lag_seconds", ("pg_cron",)] >= 60


async def test_metrics_show_a_failing_item_and_what_filling_waits_for(
    api: Api, db: Connection, database_url: str
) -> None:
    seen = samples((await api("GET", "/metrics")).text)
    assert seen["flashsale_sweep_failing_items", ()] == 0
    assert seen["flashsale_filling_wait_seconds", ()] == 0
    shoe, hat = item(db), item(db, "hat")
    for runner in ("one", "two"):
        call(db, "sweep_failed", runner, hat, "too slow")
    with connect(database_url, autocommit=False) as idle:
        reserve(idle, shoe, "ann")
        sweep(db)
        db.execute("update flashsale_data.items set noted_at = noted_at - interval '1 minute'")
        seen = samples((await api("GET", "/metrics")).text)
    assert seen["flashsale_sweep_failing_items", ()] == 1
    assert seen["flashsale_filling_wait_seconds", ()] >= 60


async def test_metrics_tell_of_outages_settling_and_unusable_events(
    api: Api, db: Connection, clock: Clock
) -> None:
    unusable = "flashsale_payment_events_total", ("unusable",)
    watched = [("flashsale_provider_down", ()), ("flashsale_settling_orders", ()), unusable]

    async def seen() -> list[float]:
        found = samples((await api("GET", "/metrics")).text)
        return [found[key] for key in watched]

    assert await seen() == [0, 0, 0]  # not missing, or no alarm notices the first one
    many(db, item(db, stock=3), ["ann", "bob", "cid"])
    open_sessions(db)
    clock.advance(60)
    call(db, "note_provider", True)
    sweep(db)
    await api.event(b"{}")
    assert await seen() == [1, 3, 1]
    call(db, "note_provider", False)
    for job in take(db):
        voided(db, job)
    reserve(db, item(db, "sock"), "dan")
    clock.advance(60)  # no sweep has marked this one
    assert await seen() == [0, 0, 1]


async def test_each_app_counts_for_itself(database_url: str) -> None:
    for _ in range(2):
        async with serving(settings(database_url)) as api:
            await api("GET", "/items")
            seen = samples((await api("GET", "/metrics")).text)
            assert seen["flashsale_http_request_seconds_count", ("GET", "/items", "200")] == 1
