"""Health: whether the process runs, and whether it can serve."""

from __future__ import annotations

import asyncio

from litestar import get

from flashsale.api import examples
from flashsale.api.openapi import answers
from flashsale.api.parts import Service
from flashsale.database.calls import Database
from flashsale.database.version import serves_us
from flashsale.models import Check, Health
from flashsale.refusals import Refused
from flashsale.settings import Settings

_NEEDED = ("database", "migrations")


@get(
    "/health/live",
    tags=["service"],
    responses=answers({200: (Health, Health("live"), "The process runs")}),
)
async def live() -> Health:
    """Whether the process runs."""
    return Health("live")


@get(
    "/health/ready",
    tags=["service"],
    responses=answers({200: (Health, examples.HEALTH, "Ready to serve")}, "not_ready"),
)
async def ready(service: Service) -> Health:
    """Whether the service can serve: the database is reached, and its schema is compatible.

    Whether somebody sweeps is reported only: all replicas would fail at once, and sales go on.
    """
    checks = await _checks(service.database, service.settings)
    failed = ", ".join(check.name for check in checks if check.name in _NEEDED and not check.ok)
    if failed:
        raise Refused("not_ready", f"Not well: {failed}.", checks=checks)
    return Health("ready", checks)


async def _checks(database: Database, settings: Settings) -> list[Check]:
    version = sweep = "not known"
    reached = compatible = swept = False
    try:
        async with asyncio.timeout(settings.readiness_timeout_seconds):
            version = await database.version()
            reached, compatible = True, serves_us(version)
            if compatible:
                lag = await database.sweep_lag_seconds()
                swept = lag is not None and lag <= settings.readiness_sweep_lag_seconds
                sweep = "nobody has swept" if lag is None else f"{lag:.1f} s ago"
    except Exception as error:  # what is not known yet does not hold
        version = version if reached else type(error).__name__
    return [
        Check("database", reached, "reached" if reached else "not reached"),
        Check("migrations", compatible, "compatible" if compatible else f"found: {version}"),
        Check("sweep", swept, sweep),
    ]
