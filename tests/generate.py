"""Writes the files that are generated from the sources; tests/test_generated.py compares them.

    make generate

These are docs/sql-api.md, tests/schema_snapshot.txt, the statements of the current API number in
tests/api/, and the checksums of new migrations.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMAND = "make generate"
SQL_API = ROOT / "docs" / "sql-api.md"
SNAPSHOT = ROOT / "tests" / "schema_snapshot.txt"
CHECKSUMS = ROOT / "tests" / "migrations.sha256"


def checksums() -> dict[str, str]:
    """The checksums of the migrations as they are now, by name."""
    files = sorted((ROOT / "migrations").glob("*.sql"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def recorded() -> dict[str, str]:
    """The checksums of the migrations as they were when they were added, by name."""
    lines = CHECKSUMS.read_text().splitlines() if CHECKSUMS.exists() else []
    return {name: checksum for checksum, name in (line.split() for line in lines)}


def main() -> None:
    import api_numbers
    import schema_snapshot
    import sql_api
    from flashsale.database.migrate import migrate
    from flashsale.dev.postgres import EmbeddedPostgres
    from support import cluster_folder, connect

    with cluster_folder() as folder, EmbeddedPostgres(folder) as server:
        migrate(server.url())
        with connect(server.url()) as db:
            SQL_API.write_text(sql_api.text(db))
            SNAPSHOT.write_text(schema_snapshot.text(db))
            api_numbers.file().write_text(api_numbers.text(db))
    known = checksums() | recorded()  # what is recorded stays: a migration never changes
    CHECKSUMS.write_text("".join(f"{known[name]}  {name}\n" for name in sorted(known)))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src")]
    main()
