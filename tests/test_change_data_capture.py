"""The guide to change-data-capture tools, run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from flashsale.database.migrate import migrate
from flashsale.testing.servers import postgres_server
from support import connect, item, reserve, rows, sweep

GUIDE = Path(__file__).parent.parent / "docs" / "how-to" / "connect-a-change-data-capture-tool.md"


def test_the_guide_works_as_it_is_written(tmp_path: Path) -> None:
    steps = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    bin_dir = os.environ.get("FLASHSALE_TEST_PG_BIN")
    with postgres_server(bin_dir, {"fsync": "off", "wal_level": "logical"}) as server:
        migrate(server.url())
        url = server.url("flashsale", "postgres")
        environ = os.environ | {
            "DATABASE_URL": url,
            "PATH": f"{server.bin_dir}:{os.environ['PATH']}",
        }
        said = []
        with connect(server.url()) as db:
            shoe = item(db)
            for n, step in enumerate(steps):
                reserve(db, shoe, f"customer {n}")
                ran = subprocess.run(
                    ["bash", "-e", "-c", step],
                    cwd=tmp_path,
                    env=environ,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert ran.returncode == 0, f"{step}\n{ran.stderr}"
                said.append(ran.stdout)
                sweep(db)
            assert rows(db, "select * from flashsale.violation") == []
            assert rows(db, "select * from pg_replication_slots") == []
        assert len(steps) == 4
        assert "table flashsale_data.sweepers: " in said[1]
        assert re.search(r"warehouse \| f +\| reserved", said[2])
