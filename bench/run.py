"""`make bench`: reserve against its rivals in SQL, side by side in one run.

Each side is a pgbench script; sides take turns, several rounds, medians and spread. Figures of one
run compare with each other, not with another machine's.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from flashsale.embedded import EmbeddedPostgres
from flashsale.migrate import migrate

HERE = Path(__file__).parent
STOCK = 10_000_000
CUSTOMER = "'c' || nextval('bench.customer')"
HOT, SPREAD = "\\set i 1\n", "\\set i random(1, 1000)\n"


def script(schema: str, item: str) -> str:
    return f"{item}select {schema}.reserve(:i, {CUSTOMER});\n"


SIDES = {
    "ticket line (flashsale), hot": script("flashsale", HOT),
    "ticket line (flashsale), spread": script("flashsale", SPREAD),
    "plain INSERT, same indexes": (
        "insert into bench.plain (item_id, ticket, customer_id, status, created_at) values "
        f"(1, nextval('bench.ticket'), {CUSTOMER}, 'waiting', clock_timestamp());\n"
    ),
    "counter row, hot": script("counter", HOT),
    "counter row, spread": script("counter", SPREAD),
    "select for update, hot": script("for_update", HOT),
    "row a unit, SKIP LOCKED, hot": script("units", HOT),
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=4, help="of a side in a round")
    options.add_argument("--json", type=Path, help="write the figures here")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="flashsale-bench-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(folder, settings={"shared_buffers": "1GB"}) as server:
            migrate(server.url())
            prepare(server)
            figures = {
                commit: measure(server, commit, given) for commit in ("as the disk is", "1 ms")
            }
            broken = query(server, "select * from flashsale.violation")
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
        ).stdout.strip(),
        "machine": machine(),
        "python": platform.python_version(),
        "clients": given.clients,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "reservations_per_second": figures,
    }
    show(report)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    if broken:
        print(f"flashsale.violation is not empty: {broken[:3]}", file=sys.stderr)
    return 1 if broken else 0


def prepare(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("create schema bench")
        conn.execute("create sequence bench.customer cache 1000")
        conn.execute("create sequence bench.ticket cache 1")
        conn.execute("create table bench.plain (like flashsale_data.orders including all)")
        conn.execute(
            "select flashsale.create_item('i' || n, 'i', 1000, 'EUR', %s, 600) "
            "from generate_series(1, 1000) n",
            [STOCK],
        )
        for rival in ("counter", "for_update", "units"):
            conn.execute((HERE / "rivals" / f"{rival}.sql").read_bytes())
        conn.execute("vacuum analyze")


def measure(server: EmbeddedPostgres, commit: str, given: argparse.Namespace) -> dict[str, object]:
    """Each side's median and extremes, in reservations a second."""
    simulate = commit != "as the disk is"
    with psycopg.connect(server.url("flashsale", "postgres"), autocommit=True) as conn:
        conn.execute(f"alter system set commit_delay = {1000 if simulate else 0}")
        conn.execute(f"alter system set commit_siblings = {0 if simulate else 5}")
        conn.execute("select pg_reload_conf()")
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        for side, text in SIDES.items():
            rates[side].append(pgbench(server, text, given.clients, given.seconds))
            print(f"  commit {commit}, round {number + 1}: {side}", file=sys.stderr)
    return {
        side: {
            "median": round(statistics.median(values)),
            "min": round(min(values)),
            "max": round(max(values)),
        }
        for side, values in rates.items()
    }


def pgbench(server: EmbeddedPostgres, text: str, clients: int, seconds: int) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(text)
        file.flush()
        result = subprocess.run(
            [
                *(server.bin_dir / "pgbench", "-n", "-M", "prepared", "-f", file.name),
                *("-c", str(clients), "-j", "2", "-T", str(seconds), server.url()),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"tps = ([\d.]+)", result.stdout)
    if result.returncode or not found:
        raise SystemExit(f"pgbench failed: {result.stderr.strip()}")
    return float(found[1])


def query(server: EmbeddedPostgres, text: str) -> list[object]:
    with psycopg.connect(server.url()) as conn:
        return list(conn.execute(text.encode()).fetchall())


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = Path("/proc/cpuinfo").read_text().count("processor\t")
    return f"{model[1] if model else platform.processor()}, {cores} cores, {platform.system()}"


def show(report: dict[str, object]) -> None:
    figures = report["reservations_per_second"]
    assert isinstance(figures, dict)
    print(
        f"\n{report['machine']}; commit {report['commit']}; {report['clients']} clients; ", end=""
    )
    print(f"median (min to max) of {report['rounds']} rounds; reservations/s\n")
    print("| side | " + " | ".join(f"commit {c}" for c in figures) + " |")
    print("|---|" + "---|" * len(figures))
    for side in SIDES:
        cells = [
            f"{f[side]['median']:,} ({f[side]['min']:,} to {f[side]['max']:,})"
            for f in figures.values()
        ]
        print(f"| {side} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
