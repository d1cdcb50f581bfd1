"""A synchronous standby: the service's answers while it is away, and the data after a failover."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prove.faults import failover
from prove.stage.cluster import freeze, kill

from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from http_support import Api, problem, serving, settings
from support import Connection, connect, eventually, rows, server_folder, value

pytestmark = pytest.mark.storm  # two servers to start
WAITING = "select pid from pg_stat_activity where wait_event = 'SyncRep'"
SCRIPT = Path(__file__).parents[1] / "docker" / "standby.sh"
KEY = {"Idempotency-Key": "k"}


class Pair(NamedTuple):
    """A primary, its standby, and a superuser's session on the primary."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres
    watcher: Connection


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with server_folder() as room:
        primary = EmbeddedPostgres(room / "primary")
        with primary:
            migrate(primary.url())
            standby = failover.pair(primary, room / "standby")
            with connect(primary.url(user="postgres")) as watcher:
                yield Pair(primary, standby, watcher)
            standby.stop()


@pytest.fixture
async def api(pair: Pair) -> AsyncIterator[Api]:
    async with serving(settings(pair.primary.url(), request_deadline_seconds=2)) as api:
        yield api


def waiting(pair: Pair) -> list[Any]:
    return rows(pair.watcher, WAITING)


async def ask_while_the_standby_is_away(
    pair: Pair, api: Api, customer: str
) -> tuple[dict[str, Any], asyncio.Task[Any]]:
    """An item, and a request for it whose commit waits for the standby."""
    item = await api.item(stock=5, sku=customer)
    freeze(pair.standby, frozen=True)
    asked = asyncio.create_task(api.order(item, customer, headers=KEY))
    await asyncio.to_thread(eventually, lambda: waiting(pair))
    return item, asked


async def test_a_cancelled_wait_for_the_standby_is_no_success(pair: Pair, api: Api) -> None:
    item, asked = await ask_while_the_standby_is_away(pair, api, "ann")
    try:
        value(pair.watcher, f"select pg_cancel_backend(pid) from ({WAITING}) w")
        problem(await asked, 503, "database_unavailable")
    finally:
        freeze(pair.standby, frozen=False)
    again = await api.order(item, "ann", headers=KEY)
    assert again.status_code == 200
    assert again.json()["ticket"] == 1


async def test_a_terminated_wait_for_the_standby_is_no_success(pair: Pair, api: Api) -> None:
    item, asked = await ask_while_the_standby_is_away(pair, api, "bob")
    try:
        value(pair.watcher, f"select pg_terminate_backend(pid) from ({WAITING}) w")
        problem(await asked, 503, "database_unavailable")
    finally:
        freeze(pair.standby, frozen=False)
    again = await api.order(item, "bob", headers=KEY)
    assert (again.status_code, again.json()["ticket"]) == (200, 1)


async def test_an_order_that_the_standby_may_lack_is_not_shown(pair: Pair, api: Api) -> None:
    """Cancels the request. Its transaction goes on waiting, and so stays invisible."""
    item, asked = await ask_while_the_standby_is_away(pair, api, "cid")
    try:
        problem(await asked, 503, "database_unavailable")
        assert waiting(pair)
        assert (await api("GET", "/orders", "cid")).json() == []
        retry = await api.order(item, "cid", headers=KEY)
        assert retry.status_code == 503
    finally:
        freeze(pair.standby, frozen=False)
    await asyncio.to_thread(eventually, lambda: not waiting(pair))
    again = await api.order(item, "cid", headers=KEY)
    assert (again.status_code, again.json()["ticket"]) == (200, 1)


def test_the_script_of_the_container_copies_once_and_goes_on_afterwards(pair: Pair) -> None:
    pair.watcher.execute("create role replicator login replication password 'secret'")
    with server_folder() as room:
        (room / "docker-entrypoint.sh").write_text('#!/bin/sh\necho "runs $*"\n')
        (room / "docker-entrypoint.sh").chmod(0o755)
        data = room / "data"
        data.mkdir(0o700)
        (data / "half").touch()  # left by an incomplete copy
        environ = {
            "PATH": f"{room}:{pair.primary.bin_dir}:/usr/bin:/bin",
            "PGDATA": str(data),
            "PGPORT": str(pair.primary.port),
            "PRIMARY_HOST": "127.0.0.1",
            "REPLICATION_PASSWORD": "secret",
        }
        for copied in (True, False):
            ran = subprocess.run(
                [SCRIPT, "postgres"], env=environ, capture_output=True, text=True, check=True
            )
            assert ran.stdout == "runs postgres\n"
            assert not (data / "half").exists()
            assert "application_name=standby" in (data / "postgresql.auto.conf").read_text()
            assert (data / "standby.signal").exists() == copied
            (data / "standby.signal").unlink(missing_ok=True)  # as a promotion does


# This test must be the last one, because it ends the pair.
async def test_the_service_finds_the_new_primary_by_itself(pair: Pair) -> None:
    both = pair.primary.url().replace(
        f":{pair.primary.port}", f":{pair.primary.port},127.0.0.1:{pair.standby.port}"
    )
    async with serving(settings(f"{both}?target_session_attrs=read-write")) as api:
        item = await api.item(stock=5, sku="two hosts")
        before = await api.order(item, "dan", headers=KEY)
        assert before.status_code == 201
        kill(pair.primary)
        problem(await api.order(item, "eve"), 503, "database_unavailable")
        with connect(pair.standby.url(user="postgres")) as conn:
            conn.execute("select pg_promote()")
        again = await api.order(item, "dan", headers=KEY)
        assert again.status_code == 200
        same = ("order_id", "ticket", "expires_at")
        assert [again.json()[f] for f in same] == [before.json()[f] for f in same]
        assert (await api.order(item, "eve")).json()["ticket"] > 1
