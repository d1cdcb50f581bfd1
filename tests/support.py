"""What the SQL tests say in one line: calls, items, sweeps, and waiting for a blocked session."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from flashsale.dev import postgres as embedded
from flashsale.dev.binaries import wheel_binaries
from flashsale.dev.postgres import EmbeddedPostgres

# psycopg's own type is generic in the row; a row here is a namedtuple made at run time.
Connection = psycopg.Connection[Any]


def rows(conn: Connection, query: str, *args: Any) -> list[Any]:
    """All rows of a query, as namedtuples."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query, args or None).fetchall()  # type: ignore[arg-type]


def one(conn: Connection, query: str, *args: Any) -> Any:
    """The only row of a query, as a namedtuple."""
    (row,) = rows(conn, query, *args)
    return row


def value(conn: Connection, query: str, *args: Any) -> Any:
    """The only value of a query."""
    return one(conn, query, *args)[0]


def call(conn: Connection, function: str, *args: Any) -> Any:
    """The row that a flashsale function returns."""
    marks = ", ".join(["%s"] * len(args))
    return one(conn, f"select * from flashsale.{function}({marks})", *args)


def item(conn: Connection, sku: str = "shoe", *, stock: int = 1, **terms: Any) -> int:
    """Puts an item on sale: 10.00 EUR, a minute to pay, unless `terms` say otherwise."""
    terms = {"hold_seconds": 60, "price": 1000, "currency": "EUR"} | terms
    named = ", ".join(f"p_{name} => %s" for name in terms)
    return int(
        value(
            conn,
            f"select item_id from flashsale.create_item(p_sku => %s, p_name => %s, "
            f"p_stock => %s, {named})",
            sku,
            sku.title(),
            stock,
            *terms.values(),
        )
    )


def reserve(conn: Connection, item_id: int, customer: str, key: str | None = None) -> Any:
    return call(conn, "reserve", item_id, customer, key)


def many(conn: Connection, item_id: int, customers: list[str]) -> list[Any]:
    """Reserves for all customers in one batch."""
    return rows(
        conn,
        "select * from flashsale.reserve_many(array_fill(%s::int, array[%s::int]), %s)",
        item_id,
        len(customers),
        customers,
    )


def sweep(conn: Connection) -> Any:
    return call(conn, "sweep")


def settle(conn: Connection) -> None:
    """Sweeps until holes are filled too: the third visit of an item fills what the first noted."""
    for _ in range(4):
        while sweep(conn).more:
            pass


def pay(conn: Connection, order: Any, session: str | None = None) -> Any:
    """The money for an order's latest payment attempt arrives."""
    return call(
        conn, "pay", order.payment_id, session or f"s{order.payment_id}", order.amount, "EUR"
    )


def status(conn: Connection, order_id: int) -> Any:
    return call(conn, "order_status", order_id)


def item_status(conn: Connection, item_id: int) -> Any:
    return call(conn, "item_status", item_id)


def statuses(conn: Connection, item_id: int) -> dict[str, str]:
    """Each customer's status; of several orders the latest."""
    return {
        row.customer_id: row.status
        for row in rows(
            conn,
            "select customer_id, status from flashsale.order_status where item_id = %s "
            "and customer_id is not null order by ticket",
            item_id,
        )
    }


def connect(url: str, role: str | None = None, **kwargs: Any) -> Connection:
    """A session of its own, in autocommit mode unless told otherwise."""
    kwargs = {"autocommit": True} | kwargs
    conn = psycopg.connect(url, **kwargs)
    if role:
        conn.execute(f"set role {role}")  # type: ignore[call-overload]
        if not conn.autocommit:
            conn.commit()
    return conn


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Polls until the condition holds, and returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        threading.Event().wait(0.005)


def waits(watcher: Connection, session: Connection) -> bool:
    """Whether a session waits for another one's lock."""
    return bool(
        value(watcher, "select cardinality(pg_blocking_pids(%s)) > 0", session.info.backend_pid)
    )


class Call(threading.Thread):
    """A call made in the background; `result()` joins it and raises what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(30)
        assert not self.is_alive(), "the call did not return"
        if self._error:
            raise self._error
        return self._result


@contextmanager
def server_folder() -> Iterator[Path]:
    """A short-named folder that the user who runs Postgres can reach when we are root.

    Not pytest's: every run of pytest closes those again.
    """
    folder = Path(tempfile.mkdtemp(prefix="flashsale-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster_folder(bin_dir: str | None = None) -> Iterator[Path]:
    """A server_folder in which initdb has been already, for who has another subject."""
    with server_folder() as folder:
        put_cluster(folder, bin_dir)
        yield folder


def put_cluster(data_dir: Path, bin_dir: str | None = None) -> None:
    """Copies a cluster there, a stopped one with nothing in it: a third of what initdb takes.

    It is made once a machine, for all runs and workers, and again when what makes it has changed.
    """
    binary = (Path(bin_dir) if bin_dir else wheel_binaries()) / "postgres"
    makers = f"{Path(embedded.__file__).read_text()} {binary} {binary.stat().st_mtime_ns}"
    name = f"flashsale-test-cluster-{os.geteuid()}-{md5(makers.encode()).hexdigest()[:12]}"
    cache = Path(tempfile.gettempdir()) / name
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cache.exists():
            with server_folder() as folder:
                with EmbeddedPostgres(folder, bin_dir):
                    pass
                folder.rename(cache)
    assert cache.stat().st_uid == os.geteuid(), f"{cache} is not ours"
    data_dir.mkdir(mode=0o711, exist_ok=True)
    for thing in ("postgres", "postgres.password"):
        subprocess.run(["cp", "-a", "--reflink=auto", cache / thing, data_dir], check=True)


@contextmanager
def sessions(url: str, count: int, **kwargs: Any) -> Iterator[list[Connection]]:
    """So many connections, closed at the end."""
    opened = [connect(url, **kwargs) for _ in range(count)]
    try:
        yield opened
    finally:
        for conn in opened:
            conn.close()
