"""flashsale psql: a login of operators, which can't become the owner; and its shortcuts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flashsale.database.operators import LOGIN, as_operator
from support import Connection, item, rows, value

PSQLRC = Path(__file__).parent.parent / "sql" / "psqlrc"


def psql(url: str, *arguments: str, typed: str = "") -> str:
    """What `flashsale psql` prints, on both its outputs."""
    done = subprocess.run(
        [sys.executable, "-m", "flashsale", "psql", *arguments],
        env=os.environ | {"FLASHSALE_DATABASE_URL": url, "PAGER": "cat"},
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_it_logs_in_as_an_operator_and_not_as_the_owner(db: Connection, database_url: str) -> None:
    shoe = item(db)
    owner = value(db, "select session_user::text")
    said = psql(
        database_url,
        "--",
        "-At",
        "-c",
        f"select session_user, (flashsale.pause_item({shoe})).state",
        "-c",
        "reset role",
        "-c",
        "select count(*) from flashsale_data.orders",
    )
    assert said.splitlines()[0] == f"{LOGIN}|paused"
    assert "permission denied for schema flashsale_data" in said
    assert owner != LOGIN
    assert value(db, "select staff from flashsale.history where action = 'pause_item'") == LOGIN


def test_the_other_roles_can_be_chosen(db: Connection, database_url: str) -> None:
    for audience in ("api", "worker", "tool"):
        said = psql(database_url, "--as", audience, "--", "-At", "-c", "select current_user")
        assert said.strip() == f"flashsale_{audience}"


def test_a_login_of_a_person_stays_theirs(db: Connection, database_url: str) -> None:
    db.execute("drop role if exists flashsale_test_eve")
    db.execute("create role flashsale_test_eve login password 'x' in role flashsale_operator")
    try:
        given: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(database_url)
        given |= {"user": "flashsale_test_eve", "password": "x"}
        parts = as_operator(psycopg.conninfo.make_conninfo("", **given))
        assert parts["user"] == "flashsale_test_eve"
        with psycopg.connect(**parts) as conn:
            assert rows(conn, "select session_user::text, current_user::text") == [
                ("flashsale_test_eve", "flashsale_operator")
            ]
    finally:
        db.execute("drop role flashsale_test_eve")


def test_help_lists_a_dozen_verbs(db: Connection, database_url: str) -> None:
    said = psql(database_url, typed=":help\n")
    verbs = set(re.findall(r"^\W*(?:call +\| )?(\w+)\(", said, re.MULTILINE))
    known = {
        r.proname
        for r in rows(
            db, "select proname from pg_proc where pronamespace = 'flashsale'::regnamespace"
        )
    }
    assert len(verbs) == 12, said
    assert verbs <= known
    assert "ERROR" not in said


@pytest.mark.parametrize("shortcut", re.findall(r"^\\set ([a-z]+) '", PSQLRC.read_text(), re.M))
def test_every_shortcut_works_and_prints_no_source(
    db: Connection, database_url: str, shortcut: str
) -> None:
    item(db)
    said = psql(database_url, typed=f"\\set verb restock\n:{shortcut}\n")
    assert "ERROR" not in said, said
    assert "v_item" not in said and "language plpgsql" not in said
    if shortcut == "about":
        assert "RV302" in said and "p_idempotency_key" in said
    if shortcut == "verbs":
        assert "restock" in said and "reserve_many" not in said
