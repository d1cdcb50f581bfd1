"""Run by `python -m prove.mutants`."""

from __future__ import annotations

import sys

from prove.mutants import MUTANTS, judge


def main(parts: list[str]) -> int:
    chosen = [m for m in MUTANTS if not parts or any(part in m.name for part in parts)]
    fates, unfit = judge(chosen)
    survivors = sum(fate.killer is None for fate in fates)
    print(f"{len(fates)} mutants, {len(fates) - survivors} killed, {survivors} survived")
    print(*unfit, sep="\n")
    return 1 if survivors or unfit else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
