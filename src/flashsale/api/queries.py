"""Queries: what no call knows is refused, and a list says where its next page is."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter

from flashsale.refusals import Refused


def known_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """A guard: every query parameter is one that the call knows, and comes once.

    Errors: Refused. A filter with a typing error in its name would list everything.
    """
    given = [
        name for name, _ in parse_qsl(connection.scope["query_string"].decode("latin-1"), True)
    ]
    if not given:
        return
    known = {
        field.kwarg_definition.name or name
        for name, field in handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    }
    if unknown := sorted(set(given) - known):
        raise Refused(
            "bad_value",
            f"There is no query parameter {', '.join(unknown)}."[:200],
            hint=f"This call knows {', '.join(sorted(known))}." if known else None,
        )
    if len(set(given)) < len(given):
        raise Refused("bad_value", "A query parameter must come only once.")


def next_page(path: str, **parameters: Any) -> dict[str, str]:
    """The header Link to the next page. A parameter that is None is left out."""
    query = urlencode({name: value for name, value in parameters.items() if value is not None})
    return {"Link": f'<{path}?{query}>; rel="next"'}
