"""The parts of the API that its handlers work with."""

from __future__ import annotations

from typing import NamedTuple

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from flashsale.api.intake import Intake
from flashsale.api.metrics import Metrics
from flashsale.api.streams import Watcher
from flashsale.database.calls import Database
from flashsale.settings import Settings


class ServiceParts(NamedTuple):
    """One dependency for all of them, because Litestar resolves several in tasks."""

    settings: Settings
    database: Database
    intake: Intake
    watcher: Watcher
    metrics: Metrics


Service = NamedDependency[SkipValidation[ServiceParts]]
