"""Sales during which processes are killed."""

from __future__ import annotations

from functools import partial

from prove.customers.http_sale import Size
from prove.faults.trial import trial
from prove.report import Row
from prove.stage.service import Service

SHORT_KILLS = ("postgres", "serve", "all")
"""What the short run kills; network.worker_kills kills the worker, at more telling moments."""


def kills(full: bool) -> list[Row]:
    """kill -9 of each part, and of everything, under load."""
    times = 50 if full else 5
    size = Size(customers=400 * times, per_second=100)
    return [
        trial(f"kill -9 {part}", size, partial(Service.kill, part=part), times)
        for part in (("postgres", "serve", "worker", "all") if full else SHORT_KILLS)
    ]
