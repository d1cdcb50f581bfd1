"""Indexes of a big table, which are made while the sale goes on.

A migration that makes an index keeps everybody from writing its table meanwhile. So `migrate` makes
it before, concurrently, together with the columns that it needs; the migration then finds it there.
An index that it replaces is dropped after that, when no call of the old functions needs it anymore.

While both unique indexes are there, an insert names only one of them, and two requests of one
customer at the same moment may meet in the other one. The second one fails then (23505), and is
tried again by itself: see database.sqlstates.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg

_NEW = {
    "orders_one_open_per_customer": (
        "create unique index concurrently orders_one_open_per_customer "
        "on flashsale_data.orders (coalesce(product_id, item_id), customer_id) "
        "where ended_at is null and may_buy_again is null"
    ),
    "orders_head_id": (
        "create index concurrently orders_head_id on flashsale_data.orders (head_id) "
        "where head_id is not null"
    ),
}
"""As in migration 0015."""
_COLUMNS = (
    "alter table flashsale_data.orders "
    "add column if not exists head_id bigint, "
    "add column if not exists product_id integer, "
    "add column if not exists may_buy_again boolean"
)
_OLD = "orders_one_live_per_customer"

_BUILD_SECONDS = 60
"""How long to wait for transactions that are older than the index. Nobody waits for us then."""
_CALL_SECONDS = 60.0
"""How long to wait for the calls that may be under way with old functions."""

_STATE = """
select c.relname, i.indisvalid
from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = to_regclass('flashsale_data.orders')
"""
_TRANSACTIONS = """
select l.virtualtransaction
from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'virtualxid' and l.granted and l.mode = 'ExclusiveLock'
  and a.datname = current_database() and l.pid <> pg_backend_pid()
"""


def prepare(conn: psycopg.Connection[Any]) -> None:
    """Makes the new indexes of a table of orders that has rows.

    Errors: LockNotAvailable if an old transaction does not end; call again.
    """
    state = _state(conn)
    if _OLD not in state or all(state.get(name) for name in _NEW):
        return
    if conn.execute("select exists (select from flashsale_data.orders)").fetchone() != (True,):
        return
    conn.execute(_COLUMNS)
    before = conn.execute("show lock_timeout").fetchone()
    conn.execute(f"set lock_timeout = '{_BUILD_SECONDS}s'")
    try:
        for name, statement in _NEW.items():
            if state.get(name) is False:  # what an attempt that failed leaves behind
                conn.execute(f"drop index concurrently flashsale_data.{name}".encode())
            if not state.get(name):
                conn.execute(statement.encode())
    finally:
        conn.execute("select set_config('lock_timeout', %s, false)", before)


def clean_up(conn: psycopg.Connection[Any]) -> bool:
    """Drops the old index, once the calls of old functions have ended. Returns whether it is gone.

    A call that began before our commit may still be about to insert an order the old way, and needs
    the old index for that. It is over when its transaction is.
    """
    if _OLD not in _state(conn):
        return True
    running = set(conn.execute(_TRANSACTIONS).fetchall())
    deadline = time.monotonic() + _CALL_SECONDS
    while running & set(conn.execute(_TRANSACTIONS).fetchall()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    conn.execute(f"drop index concurrently if exists flashsale_data.{_OLD}".encode())
    return True


def _state(conn: psycopg.Connection[Any]) -> dict[str, bool]:
    """The indexes of orders, and whether each is valid."""
    return dict(conn.execute(_STATE).fetchall())
