"""The real pg_cron, on servers that have it (Debian's 1.4.2 on PostgreSQL 15, in CI)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashsale.database.migrate import migrate
from flashsale.providers.interface import ProviderRefused
from flashsale.settings import Settings
from flashsale.worker import run as worker
from support import (
    Connection,
    connect,
    eventually,
    item,
    many,
    one,
    postgres_server,
    reserve,
    rows,
    status,
    value,
)
from test_worker import FakeProvider

BIN_DIR = "/usr/lib/postgresql/15/bin"
EXTENSION = Path("/usr/share/postgresql/15/extension/pg_cron.control")

pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(
        not EXTENSION.exists(), reason="pg_cron is missing: apt-get install postgresql-15-cron"
    ),
]


@pytest.fixture(scope="module")
def cron() -> Iterator[Connection]:
    """The owner's session on a server whose pg_cron sweeps the database flashsale."""
    settings = {
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": "flashsale",
        "cron.host": "127.0.0.1",
        "fsync": "off",
    }
    with postgres_server(BIN_DIR, settings) as server:
        migrate(server.url("flashsale", "postgres"))  # only a superuser may install pg_cron
        with connect(server.url("flashsale", "postgres")) as conn:
            yield conn


def test_the_sweep_is_scheduled_once_however_often_one_migrates(cron: Connection) -> None:
    jobs = rows(cron, "select jobname, schedule, command from cron.job order by jobname")
    assert [(j.jobname, j.schedule) for j in jobs] == [
        ("flashsale purge", "7 * * * *"),
        ("flashsale sweep", "* * * * *"),
    ]


def test_a_job_of_another_server_is_scheduled_anew_and_a_deactivated_one_is_left_alone(
    cron: Connection,
) -> None:
    """A restored dump has the jobs of the server that it was made from."""
    jobs = "select jobname, nodeport, active from cron.job order by jobname"
    before = rows(cron, jobs)
    cron.execute("update cron.job set nodeport = 1 where jobname = 'flashsale sweep'")
    cron.execute("update cron.job set active = false where jobname = 'flashsale purge'")
    url = f"postgresql://postgres:{cron.info.password}@127.0.0.1:{cron.info.port}/flashsale"
    migrate(url)
    purge, sweep = rows(cron, jobs)
    assert (purge.jobname, purge.active) == ("flashsale purge", False)
    assert sweep == before[1]
    cron.execute("update cron.job set active = true where jobname = 'flashsale purge'")


def test_the_launcher_is_told_to_read_the_jobs_again(cron: Connection) -> None:
    """It may have read them while its extension was being created, and would never sweep."""
    read_at = value(cron, "select pg_conf_load_time()")
    migrate(f"postgresql://postgres:{cron.info.password}@127.0.0.1:{cron.info.port}/flashsale")
    eventually(lambda: value(cron, "select pg_conf_load_time()") > read_at)


def is_served(conn: Connection, order: Any) -> bool:
    return bool(status(conn, order.order_id).status != "waiting")


async def refused(_: str) -> None:
    raise ProviderRefused("closed", "no sessions today")


@pytest.mark.storm
@pytest.mark.alone
@pytest.mark.timeout(400)
def test_pg_cron_promotes_within_a_second_for_three_minutes(cron: Connection) -> None:
    eventually(lambda: rows(cron, "select from flashsale.sweep_status"), 75)
    shoe = item(cron, hold_seconds=2)
    orders = many(cron, shoe, [f"c{n}" for n in range(95)])
    for waiting in orders[1:]:
        eventually(partial(is_served, cron, waiting), 10)
    late = one(
        cron,
        """
        select count(*) as served, max(n.reserved_at - o.expires_at) as longest
        from flashsale.order_status o
        join flashsale.order_status n on n.item_id = o.item_id and n.ticket = o.ticket + 1
        where o.item_id = %s
        """,
        shoe,
    )
    assert late.served == 94
    assert late.longest.total_seconds() < 1
    assert rows(cron, "select * from flashsale.violation") == []


@pytest.mark.storm
def test_pg_cron_logs_little_and_shows_in_sweep_status(cron: Connection) -> None:
    eventually(lambda: rows(cron, "select from flashsale.sweep_status"), 75)
    assert value(
        cron, "select lag_seconds < 1 from flashsale.sweep_status where runner = 'pg_cron'"
    )
    assert value(cron, "select count(*) from cron.job_run_details") < 20


LAG = "select min(lag_seconds) from flashsale.sweep_status where runner like %s"


@pytest.mark.storm
async def test_without_pg_crons_launcher_the_worker_carries_on_and_the_lag_shows(
    cron: Connection,
) -> None:
    """This must be the server's last test: the launcher comes back only when Postgres restarts."""
    await asyncio.to_thread(eventually, lambda: value(cron, LAG, "pg_cron") is not None, 75)
    stop = asyncio.Event()
    url = f"postgresql://postgres:{cron.info.password}@127.0.0.1:{cron.info.port}/flashsale"
    # A hold that the provider has refused expires. Without a provider it would go back to the line.
    provider = FakeProvider()
    provider.fault = refused
    working = asyncio.create_task(worker.run(Settings(database_url=url), provider, stop=stop))
    try:
        ended = value(
            cron,
            "select count(pg_terminate_backend(pid)) from pg_stat_activity "
            "where backend_type = 'pg_cron launcher' or application_name = 'pg_cron'",
        )
        assert ended >= 1
        await asyncio.to_thread(eventually, lambda: value(cron, LAG, "pg_cron") > 2)
        order = reserve(cron, item(cron, "late", hold_seconds=1), "ann")
        await asyncio.to_thread(
            eventually,
            lambda: value(
                cron,
                "select status = 'expired' from flashsale_data.orders where order_id = %s",
                order.order_id,
            ),
            5,
        )
        assert value(cron, LAG, "worker:%") < 2
        assert value(cron, LAG, "pg_cron") > 2  # as does flashsale_sweeper_lag_seconds
    finally:
        stop.set()
        await working
