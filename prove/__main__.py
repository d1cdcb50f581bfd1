"""Tries to break the service, and ends in a table: `python -m prove [--full] [part of a name …]`.

Exit status: 1 for a violation, or, with --fail-on-skip, for a proof that the machine can't run.
"""

from __future__ import annotations

import argparse
import sys
import time

from prove import every_commit, failover, network, server_faults, storm, suites
from prove.report import Proof, Row, table

PROOFS: dict[str, Proof] = {
    "storm": storm.storm,
    "kills": storm.kills,
    "lost_replies": network.lost_replies,
    "wires": network.wires,
    "worker_kills": network.worker_kills,
    "server_faults": server_faults.proof,
    "disks": server_faults.disks,
    "clock": server_faults.clock,
    "every_commit": every_commit.proof,
    "failover": failover.proof,
    "model": suites.model,
    "permutations": suites.permutations,
    "mutants": suites.mutants,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove", description=__doc__)
    parser.add_argument("--full", action="store_true", help="hours instead of minutes")
    parser.add_argument("--fail-on-skip", action="store_true", help="a skipped proof is a failure")
    parser.add_argument("names", nargs="*", help=f"parts of: {', '.join(PROOFS)}")
    asked = parser.parse_args()
    chosen = {
        name: proof
        for name, proof in PROOFS.items()
        if not asked.names or any(part in name for part in asked.names)
    }
    if not chosen:
        parser.error(f"no such proof; there are: {', '.join(PROOFS)}")
    rows: list[Row] = []
    for name, proof in chosen.items():
        print(f"== {name}", flush=True)
        began = time.monotonic()
        rows += proof(asked.full)
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
    print(table(rows))
    bad = any(row.violations or (row.skipped and asked.fail_on_skip) for row in rows)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
