"""The HTTP service: the application that `flashsale serve` runs on granian."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from flashsale.api import express, openapi, wellformed
from flashsale.api.intake import Intake
from flashsale.api.metrics import Metrics
from flashsale.api.parts import ServiceParts
from flashsale.api.problems import answer
from flashsale.api.queries import known_query
from flashsale.api.requests import JsonRequest
from flashsale.api.routes import HANDLERS
from flashsale.api.streams import Watcher
from flashsale.database.calls import Database
from flashsale.plugins import make, plugged
from flashsale.processes import on_termination
from flashsale.providers.interface import PaymentProvider
from flashsale.settings import Settings


def create_app(settings: Settings | None = None, intake: Intake | None = None) -> Litestar:
    """The service. It starts without the database, and is not ready until the database is there.

    settings: None reads the environment. intake: answers requests for units; None makes one that
    calls the database. bench/path.py passes one that answers at once, to measure the rest.
    Errors: SettingsError.
    """
    settings = settings or Settings.from_env()
    settings.need_database_url()
    settings.need_webhook_secret()  # with an empty secret anybody could sign
    make(settings, "provider")  # a bad name shows now
    database = Database(settings)
    intake = intake or Intake(database, settings)
    watcher = Watcher(database, settings)
    metrics = Metrics(database, intake, watcher, settings)
    service = ServiceParts(settings, database, intake, watcher, metrics)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with plugged(settings, "provider", PaymentProvider) as provider:
            app.state.provider = provider
            await database.open()
            with intake.measured(), on_termination(watcher.end_streams):
                watcher.start()
                try:
                    yield
                finally:
                    await watcher.close()
                    await database.close()

    app = Litestar(
        HANDLERS,
        request_class=JsonRequest,
        request_max_body_size=settings.max_body_bytes,
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        exception_handlers={Exception: answer},
        guards=[known_query],
        lifespan=[lifespan],
        logging_config=None,
        openapi_config=openapi.configuration(),
        state=State({"service": service}),
    )
    checked = metrics.around(wellformed.around(app.asgi_handler))
    app.asgi_handler = express.around(checked, service)
    openapi.complete(app.openapi_schema)
    return app
