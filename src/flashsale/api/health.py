"""Health: whether the process runs, and whether it can serve."""

from __future__ import annotations

import asyncio

from litestar import get

from flashsale.api import examples
from flashsale.api.openapi import answers
from flashsale.api.parts import Service
from flashsale.database.calls import Database
from flashsale.database.version import expected_version
from flashsale.models import Check, Health
from flashsale.refusals import Refused
from flashsale.settings import Settings


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
    """Whether the service can serve: database reached, migrations current, sweeps running."""
    checks = await _checks(service.database, service.settings)
    if not all(check.ok for check in checks):
        failed = ", ".join(check.name for check in checks if not check.ok)
        raise Refused("not_ready", f"Not well: {failed}.", checks=checks)
    return Health("ready", checks)


async def _checks(database: Database, settings: Settings) -> list[Check]:
    version = sweep = "not known"
    reached = migrated = swept = False
    try:
        async with asyncio.timeout(settings.readiness_timeout_seconds):
            version = await database.version()
            reached, migrated = True, version == expected_version()
            lag = await database.sweep_lag_seconds() if migrated else None
            swept = lag is not None and lag <= settings.readiness_sweep_lag_seconds
            sweep = "nobody has swept" if lag is None else f"{lag:.1f} s ago"
    except Exception as error:  # whatever it is, we are not ready
        version = version if reached else type(error).__name__
    return [
        Check("database", reached, "reached" if reached else "not reached"),
        Check("migrations", migrated, "current" if migrated else f"found: {version}"),
        Check("sweep", swept, sweep),
    ]
