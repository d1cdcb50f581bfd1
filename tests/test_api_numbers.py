"""Replicas of two releases run at once during an upgrade: the numbers in version.py are right."""

from __future__ import annotations

import pytest

import api_numbers
import generate
from flashsale.database.version import API, OLDEST_API
from support import Connection


@pytest.mark.parametrize("number", range(OLDEST_API, API + 1))
def test_code_of_each_number_works_with_this_sql(db: Connection, number: int) -> None:
    """Every statement is accepted, and returns at least the columns that it did."""
    db.execute("set search_path = ''")
    for statement, expected in api_numbers.recorded(number):
        missing = set(expected) - set(api_numbers.columns(db, statement))
        assert missing == set(), (
            f"replicas with number {number} send {statement!r}, which no longer returns "
            f"{', '.join(sorted(missing))}. Keep it for one more release. If old replicas really "
            "can't live with this, raise OLDEST_API in version.py"
        )


def test_the_statements_of_this_number_are_recorded(db: Connection) -> None:
    assert api_numbers.text(db) == api_numbers.file().read_text(), (
        f"the code sends other statements than are recorded for number {API}. If a release had "
        "this number, databases of that release would seem to be compatible: raise API in "
        "src/flashsale/database/version.py. If old replicas can't live with the new SQL, raise "
        f"OLDEST_API there too. Then run: {generate.COMMAND}"
    )
