"""`python -m bench.forecast` checks that the chances are true that waiting customers are told.

Simulates sales, asks flashsale.chance for what a customer would be told, and prints, for each tenth
of the scale, how many of those who were told so were served. Each sale has its own true share of
holds that end in a sale, which the function does not know: it has to learn it from holds that have
ended. A customer is asked after a random number of holds have ended. There are two kinds of sales:
the holds end in random order; or buyers pay at a random moment of their hold, and all the others
let the deadline pass.
"""

from __future__ import annotations

import argparse
import heapq
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


def ends_in_random_order(rng: random.Random, stock: int, share: float) -> list[bool]:
    """Whether each hold of a sale ended in a sale, in the order of their ends."""
    ends: list[bool] = []
    while sum(ends) < stock:
        ends.append(rng.random() < share)
    return ends


def ends_with_deadlines(rng: random.Random, stock: int, share: float) -> list[bool]:
    """The same, if buyers pay at a random moment of their hold, and the others let it expire."""
    ends: list[bool] = []
    running = [0.0] * stock  # when each hold began
    due: list[tuple[float, bool]] = []
    while running or due:
        for began in running:
            sold = rng.random() < share
            heapq.heappush(due, (began + (rng.random() if sold else 1), sold))
        at, sold = heapq.heappop(due)
        running = [] if sold else [at]
        ends.append(sold)
    return ends


def sale(rng: random.Random, stock: int, share: float, expire: bool) -> list[Asked]:
    """Some customers of one sale. It runs until the last unit is sold."""
    ends = (ends_with_deadlines if expire else ends_in_random_order)(rng, stock, share)
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


def simulate(
    conn: Any, rng: random.Random, sales: int, *, expire: bool
) -> list[tuple[float, bool]]:
    """What customers were told, and whether they were served.

    conn: a psycopg connection. expire: holds that are not paid end at their deadlines.
    """
    asked = [
        customer
        for _ in range(sales)
        for customer in sale(rng, rng.choice(STOCKS), rng.choice(SHARES), expire)
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

    kinds = {"random order": False, "unpaid holds expire": True}
    tables = {}
    with sql.server(BenchReport(1)) as postgres, psycopg.connect(postgres.url()) as conn:
        for kind, expire in kinds.items():
            rng = random.Random(given.seed)
            tables[kind] = calibration(simulate(conn, rng, given.sales, expire=expire))
    print("| told | " + " | ".join(kinds) + " |\n|---|" + "---:|" * len(kinds))
    for tenth in range(10):
        cells = [
            f"{served / told:.0%} of {told:,}" if told else "-"
            for told, served in (table[tenth] for table in tables.values())
        ]
        print(f"| {tenth / 10:.1f} to {(tenth + 1) / 10:.1f} | " + " | ".join(cells) + " |")
    shares = [served / told for told, served in (table[6] for table in tables.values())]
    return 0 if all(0.55 <= share <= 0.75 for share in shares) else 1


if __name__ == "__main__":
    sys.exit(main())
