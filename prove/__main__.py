"""Tries to break the service, and ends in a table: `python -m prove [--full] [part of a name …]`.

Exit status: 1 for a violation, or, with --fail-on-skip, for a proof that the machine can't run.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from prove import suites
from prove.faults import (
    deadline,
    draw,
    every_commit,
    failover,
    kills,
    mass,
    neighbours,
    network,
    outage,
    restore,
    server,
    storm,
    upgrade,
)
from prove.report import Proof, Row, table

SIDE_BY_SIDE: list[dict[str, Proof]] = [
    {"storm": storm.proof},
    {"deadline": deadline.proof},
    {"outage": outage.proof},
    {"kills": kills.kills},
    {"lost_replies": network.lost_replies},
    {"wires": network.wires, "server_faults": server.proof},
    {"worker_kills": network.worker_kills, "disks": server.disks},
    {"clock": server.clock},  # by environment variables of this process
    {"every_commit": every_commit.proof, "failover": failover.proof},
    {"upgrade": upgrade.proof},
    {"restore": restore.proof},
    {"neighbours": neighbours.proof},
    {"mass": mass.proof},
    {"draw": draw.proof},
    {"model": suites.model},
    {"permutations": suites.permutations},
    {"mutants": suites.mutants},
]
"""Those that mostly wait for a fault to pass do so together, each with a service of its own."""
PROOFS = {name: proof for together in SIDE_BY_SIDE for name, proof in together.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove", description=__doc__)
    parser.add_argument("--full", action="store_true", help="hours instead of minutes")
    parser.add_argument("--fail-on-skip", action="store_true", help="a skipped proof is a failure")
    parser.add_argument("names", nargs="*", help=f"parts of: {', '.join(PROOFS)}")
    asked = parser.parse_args()
    chosen = {
        name for name in PROOFS if not asked.names or any(part in name for part in asked.names)
    }
    if not chosen:
        parser.error(f"no such proof; there are: {', '.join(PROOFS)}")
    rows: list[Row] = []
    for together in SIDE_BY_SIDE:
        names = [name for name in together if name in chosen]
        with ThreadPoolExecutor(len(together)) as threads:
            for found in threads.map(partial(prove, full=asked.full), names):
                rows += found
    print(table(rows))
    bad = any(row.violations or (row.skipped and asked.fail_on_skip) for row in rows)
    return 1 if bad else 0


def prove(name: str, *, full: bool) -> list[Row]:
    print(f"== {name}", flush=True)
    began = time.monotonic()
    rows = PROOFS[name](full)
    print(f"   {name}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
