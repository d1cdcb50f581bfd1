"""The HTTP service: `granian --interface asgi --factory flashsale.api.app:create_app`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Response, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import OpenAPI

from flashsale.api import express
from flashsale.api.metrics import Metrics
from flashsale.api.problems import CODES, PROBLEM_JSON, answer, problem
from flashsale.api.routes import HANDLERS, JsonRequest, Parts
from flashsale.api.streams import Watcher, on_termination
from flashsale.database.calls import Database
from flashsale.models import Ask, ItemChanges, NewItem
from flashsale.settings import Settings


def create_app(settings: Settings | None = None) -> Litestar:
    """The service; starts without the database, and is not ready until that is there.

    settings: None reads the environment. Errors: SettingsError.
    """
    settings = settings or Settings.from_env()
    settings.need_database_url()
    settings.need_webhook_secret()  # with an empty one anybody could sign
    database = Database(settings)
    watcher = Watcher(database, settings)
    metrics = Metrics(database, watcher, settings)
    service = Parts(settings, database, watcher, metrics)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await database.open()
        watcher.start()
        with on_termination(watcher.end_streams):
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
        lifespan=[lifespan],
        logging_config=None,
        openapi_config=_openapi(),
        state=State({"service": service}),
    )
    app.asgi_handler = express.around(metrics.around(app.asgi_handler), service)
    _complete(app.openapi_schema)
    return app


def _complete(document: OpenAPI) -> None:
    """Says what Litestar leaves out: an optional body, and that unknown fields are refused."""
    asked = document.paths or {}
    asked["/items/{item_id}/orders"].post.request_body.required = False  # type: ignore[union-attr]
    for kind in (Ask, ItemChanges, NewItem):
        document.components.schemas[kind.__name__].additional_properties = False


def _openapi() -> OpenAPIConfig:
    codes = "\n".join(f"| `{code}` | {c.status} | {c.meaning} |" for code, c in CODES.items())
    return OpenAPIConfig(
        title="flashsale",
        version="1",
        description=(
            "A flash sale: items in limited number, one fair line for each. Errors are RFC 9457 "
            f"problems with a stable code:\n\n| code | status | meaning |\n|---|---|---|\n{codes}"
        ),
        # No pages: they load their scripts from elsewhere.
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, after_request=_no_page
        ),
        render_plugins=[JsonRenderPlugin(path=["/openapi.json", "/"]), YamlRenderPlugin()],
        operation_id_creator=lambda handler, *_: handler.handler_name,
        use_handler_docstrings=True,
    )


def _no_page(response: Response[Any]) -> Response[Any]:
    """Litestar has a page of its own for what is not there."""
    if response.status_code != 404:
        return response
    return Response(problem("not_found"), status_code=404, media_type=PROBLEM_JSON)
