"""`python -m bench.forecast` checks that the chances are true that waiting customers are told.

Simulates sales, asks flashsale.chance for what a customer would be told, and prints, for each tenth
of the scale, how many of those who were told so were served. Each sale has its own true share of
holds that end in a sale, which the function does not know: it has to learn it from holds that have
ended. The holds end in random order. A customer is asked at a random moment of the sale.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any, NamedTuple

SHARES = (0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
"""How often holds end in a sale. Shops see most between a half and nine tenths."""
STOCKS = (1, 3, 10, 40, 150)
ASKED = 20


class Asked(NamedTuple):
    """A customer who is told their chance, at a moment of a sale, and what came of it."""

    place: int
    units: int
    sold: int
    lost: int
    is_served: bool


def sale(rng: random.Random, stock: int, share: float) -> list[Asked]:
    """Some customers of one sale. It runs until the last unit is sold."""
    ends = []  # of each hold, in their order: whether in a sale
    while sum(ends) < stock:
        ends.append(rng.random() < share)
    lost_in_all = len(ends) - stock
    asked = []
    for _ in range(ASKED):
        moment = rng.randrange(len(ends))
        sold = sum(ends[:moment])
        lost = moment - sold
        units = stock - sold
        place = rng.randint(1, 1 + 3 * units)
        asked.append(Asked(place, units, sold, lost, lost_in_all - lost >= place))
    return asked


def simulate(conn: Any, rng: random.Random, sales: int) -> list[tuple[float, bool]]:
    """What customers were told, and whether they were served. conn: a psycopg connection."""
    asked = [
        customer
        for _ in range(sales)
        for customer in sale(rng, rng.choice(STOCKS), rng.choice(SHARES))
    ]
    told = conn.execute(
        "select flashsale.chance(a.place, a.units, a.sold, a.lost) "
        "from unnest(%s::int[], %s::int[], %s::int[], %s::int[]) "
        "with ordinality a (place, units, sold, lost, ord) order by a.ord",
        [list(column) for column in list(zip(*asked, strict=True))[:4]],
    ).fetchall()
    return [(chance, a.is_served) for (chance,), a in zip(told, asked, strict=True)]


def calibration(outcomes: list[tuple[float, bool]]) -> list[tuple[int, int]]:
    """For each tenth of the scale: how many were told so, and how many of them were served."""
    table = [(0, 0)] * 10
    for chance, is_served in outcomes:
        tenth = min(9, int(chance * 10))
        told, served = table[tenth]
        table[tenth] = (told + 1, served + is_served)
    return table


def main() -> int:
    from bench import sql

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sales", type=int, default=5_000)
    options.add_argument("--seed", type=int, default=14)
    given = options.parse_args()
    import psycopg

    from bench.report import BenchReport

    with sql.server(BenchReport(1)) as postgres, psycopg.connect(postgres.url()) as conn:
        table = calibration(simulate(conn, random.Random(given.seed), given.sales))
    print("| told | customers | served |\n|---|---:|---:|")
    for tenth, (told, served) in enumerate(table):
        share = f"{served / told:.0%}" if told else "-"
        print(f"| {tenth / 10:.1f} to {(tenth + 1) / 10:.1f} | {told:,} | {share} |")
    told, served = table[6]
    return 0 if 0.55 <= served / told <= 0.75 else 1


if __name__ == "__main__":
    sys.exit(main())
