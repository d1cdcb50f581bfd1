"""Who keeps a session of ours waiting for a lock: for messages to people.

Postgres cancels a statement that has waited for too long, and does not say for whom. Afterwards it
is too late to ask, so a second session looks while the first one waits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

_LOOK_SECONDS = 0.1

_WAITED_FOR = """
select distinct b.pid, 'a lock on ' || w.relation::regclass
from pg_locks w
cross join lateral unnest(pg_blocking_pids(w.pid)) b (pid)
where w.pid = %s and not w.granted
"""

_HOLDERS = """
select l.pid, null
from pg_locks l
where l.locktype = 'advisory' and l.granted and l.classid = 0 and l.objid = %s and l.objsubid = 1
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
"""

# A role without pg_read_all_stats does not see the state and the query of other roles' sessions.
# Literals are left out of the query, because they may be passwords, or names of customers.
_SESSION = """
select format('process %%s (user %%s, application %%s, %%s)%%s', a.pid, a.usename,
  coalesce(nullif(a.application_name, ''), 'unknown'),
  coalesce(a.state || ' since ' || date_trunc('second', a.state_change),
    'pg_read_all_stats is needed to see what it does'),
  ': ' || left(regexp_replace(nullif(a.query, '<insufficient privilege>'),
    '''([^'']|'''')*(''|$)', '''…''', 'g'), 100))
from pg_stat_activity a
where a.pid = %s
"""


def holders(conn: psycopg.Connection[Any], advisory_lock: int) -> str:
    """The sessions that hold an advisory lock."""
    return "; ".join(_sessions(conn, _HOLDERS, advisory_lock)) or "nobody any more"


def _sessions(conn: psycopg.Connection[Any], query: str, parameter: int) -> list[str]:
    """Describes the sessions that a query finds: process ids, and what they hold."""
    found = []
    for pid, held in conn.execute(query, [parameter]).fetchall():
        session = conn.execute(_SESSION, [pid]).fetchone()
        if pid == 0:
            session = ("a prepared transaction (see pg_prepared_xacts)",)
        if session:
            found.append(session[0] + (f", with {held}" if held else ""))
    return found


@contextmanager
def watching(database_url: str, pid: int) -> Iterator[list[str]]:
    """Looks for whom the session `pid` waits, until the end of the block.

    Yields a list, which always holds what was seen last. It stays empty if nobody was seen, or if
    there is no connection left to look with.
    """
    seen: list[str] = []
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(database_url, pid, seen, done), daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _watch(database_url: str, pid: int, seen: list[str], done: threading.Event) -> None:
    with (
        suppress(psycopg.OperationalError),
        psycopg.connect(database_url, autocommit=True, connect_timeout=5) as conn,
    ):
        conn.execute("set search_path to ''")  # relations are named in full
        while not done.wait(_LOOK_SECONDS):
            if found := _sessions(conn, _WAITED_FOR, pid):
                seen[:] = found
