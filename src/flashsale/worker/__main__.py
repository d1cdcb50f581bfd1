"""`python -m flashsale.worker` checks whether this machine's worker is alive (a health check)."""

from __future__ import annotations

import asyncio
import sys

from flashsale.settings import Settings
from flashsale.worker.run import healthy
from flashsale.worker.trouble import in_short


def main() -> int:
    """Returns the exit status: 0 if a worker of this machine has swept lately, else 1."""
    try:
        if asyncio.run(healthy(Settings.from_env())):
            return 0
        print("no worker on this machine has swept lately", file=sys.stderr)
    except Exception as error:
        print(in_short(error), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
