"""The statements that the API and the worker send, with the columns that they get.

tests/api/N.txt has those of the code with number N (flashsale.database.version.API).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from flashsale.database.version import API
from support import Connection, value

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "src" / "flashsale" / "database" / name for name in ("calls.py", "jobs.py")]
FOLDER = ROOT / "tests" / "api"


def file(number: int = API) -> Path:
    """Where the statements of a number are."""
    return FOLDER / f"{number}.txt"


def statements(sources: list[Path]) -> list[str]:
    """Every text in the sources that is a statement about the schema flashsale."""
    texts = {
        " ".join(node.value.split())
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return sorted(t for t in texts if re.match(r"(select|call|with) ", t) and "flashsale." in t)


def columns(db: Connection, statement: str) -> list[str]:
    """Names and types of the columns that a statement returns. Errors: what Postgres says of it."""
    prepared = db.pgconn.prepare(b"", statement.encode())
    if prepared.error_message:
        raise AssertionError(f"{statement}: {prepared.error_message.decode()}")
    described = db.pgconn.describe_prepared(b"")
    return [
        f"{(described.fname(n) or b'').decode()} "
        + value(db, "select format_type(%s, null)", described.ftype(n))
        for n in range(described.nfields)
    ]


def text(db: Connection, sources: list[Path] = SOURCES) -> str:
    """The file of this code."""
    db.execute("set search_path = ''")
    parts = [
        "\n".join([statement, *(f"  {column}" for column in columns(db, statement))])
        for statement in statements(sources)
    ]
    return "\n".join(parts) + "\n"


def recorded(number: int) -> Iterator[tuple[str, list[str]]]:
    """The statements of a number, with their columns."""
    for part in re.split(r"\n(?=\S)", file(number).read_text().strip("\n")):
        statement, *found = part.splitlines()
        yield statement, [column.strip() for column in found]
