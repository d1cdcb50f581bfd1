"""The generated files are up to date."""

from __future__ import annotations

import re

import pytest

import generate
import schema_snapshot
import sql_api
from support import Connection, rows

WRITE_AGAIN = f"run: {generate.COMMAND}"


def test_the_reference_of_the_sql_api_is_current(db: Connection) -> None:
    assert sql_api.text(db) == generate.SQL_API.read_text(), WRITE_AGAIN


def test_the_reference_of_the_sql_api_has_no_long_lines() -> None:
    for line in generate.SQL_API.read_text().splitlines():
        assert len(line) <= 100 or line.startswith("|"), line


def test_the_snapshot_of_the_schema_is_current(db: Connection) -> None:
    assert schema_snapshot.text(db) == generate.SNAPSHOT.read_text(), (
        f"the schema has changed. If it is meant to, {WRITE_AGAIN}"
    )


def test_a_migration_never_changes() -> None:
    """Databases exist to which the old text was applied."""
    now, then = generate.checksums(), generate.recorded()
    assert now.keys() >= then.keys(), "a migration was removed: add one that undoes it instead"
    for name in now.keys() - then.keys():
        pytest.fail(f"migrations/{name} is new: {WRITE_AGAIN}")
    changed = [name for name in now if now[name] != then[name]]
    assert changed == [], "a released migration must not change: add a new one instead"


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [int(name.split(".")[0]) for name in generate.checksums()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_column_of_the_api_has_a_comment(db: Connection) -> None:
    columns = rows(
        db,
        """
        select format('%s.%s', c.relname, a.attname) as name
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        where c.relnamespace = 'flashsale'::regnamespace and c.relkind in ('v', 'c')
          and col_description(c.oid, a.attnum) is null
        """,
    )
    assert [c.name for c in columns] == []


def test_every_name_in_a_comment_exists(db: Connection) -> None:
    """Every p_ argument that a function's comment names is an argument of it."""
    functions = rows(
        db,
        "select p.proname, coalesce(p.proargnames, '{}') as names, "
        "obj_description(p.oid, 'pg_proc') as comment "
        "from pg_proc p where p.pronamespace = 'flashsale'::regnamespace",
    )
    for f in functions:
        unknown = set(re.findall(r"\bp_\w+", f.comment)) - set(f.names)
        assert unknown == set(), f"{f.proname} has no argument {', '.join(unknown)}"
