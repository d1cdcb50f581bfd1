"""The ways to break the Python code, one rule at a time."""

from __future__ import annotations

from prove.mutants.kinds import PythonMutant

PYTHON_MUTANTS = [
    PythonMutant(
        "postgres: another server on the same port counts as ours",
        "dev/postgres",
        "                if answering == (str(self._cluster),):\n",
        "                if answering:\n",
        "embedded",
    ),
    PythonMutant(
        "ports: one that was given is given again",
        "processes",
        "            _given_ports.append(name)\n",
        "            name.close()\n",
        "processes",
    ),
    PythonMutant(
        "migrate: a migration is committed before the replay",
        "database/migrate",
        "    replayed = _replay(conn, force)\n",
        '    conn.pgconn.exec_(b"commit; begin")\n    replayed = _replay(conn, force)\n',
        "in_the_way",
    ),
    PythonMutant(
        "migrate: its lock is waited for without a bound",
        "database/migrate",
        "if time.monotonic() > deadline:",
        "if False:",
        "in_the_way",
    ),
    PythonMutant(
        "migrate: a newer database is replayed over",
        "database/migrate",
        "found.release > us.release or found.newest_api > API",
        "found.release > us.release",
        "migrate",
    ),
    PythonMutant(
        "migrate: a restored dump counts as up to date",
        "database/migrate",
        'whole = force or before.get("objects") != _objects(conn)',
        "whole = force",
        "restore",
    ),
    PythonMutant(
        "migrate: a file is replayed although it has not changed",
        "database/migrate",
        "if whole or before.get(name) != now[name]}",
        "if whole or any(before.get(other) != now[other] for other in now)}",
        "replay",
    ),
    PythonMutant(
        "migrate: the public may call a new function",
        "database/migrate",
        'if name == _RIGHTS and changed and before.get("objects") != _objects(conn):',
        "if False:",
        "replay",
    ),
    PythonMutant(
        "migrate: the message shows the literals of a query",
        "database/in_the_way",
        "([^'']|'''')*",
        "nothing",
        "in_the_way",
    ),
    PythonMutant(
        "migrate: a sequence is advanced without a lock",
        "database/sequences",
        'conn.execute(f"alter sequence {sequence} no cycle")',
        'conn.execute("select 1")',
        "sequences",
    ),
    PythonMutant(
        "migrate: a sequence may be set back",
        "database/sequences",
        "greatest(%(n)s, pg_sequence_last_value(%(s)s))",
        "%(n)s::bigint",
        "sequences",
    ),
    PythonMutant(
        "migrate: items' sequences stay behind",
        "database/sequences",
        "    behind = _lines(conn)\n",
        "    behind: list[tuple[str, int]] = []\n",
        "sequences",
    ),
    PythonMutant(
        "health: not ready when nobody sweeps",
        "api/health",
        "if check.name in _NEEDED and not check.ok",
        "if not check.ok",
        "http_health",
    ),
    PythonMutant(
        "health: ready whatever the database is",
        "database/version",
        "return found is not None and found.oldest_api <= API <= found.newest_api",
        "return found is not None",
        "http_health",
    ),
]
