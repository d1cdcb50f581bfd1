"""The OpenAPI document: everything in it that doesn't follow from the types of the handlers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
from litestar import Response, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Example, OpenAPI

from flashsale import models
from flashsale.api.problems import PROBLEM_JSON, problem
from flashsale.models import Problem
from flashsale.refusals import CODES


def answers(success: dict[int, tuple[Any, Any, str]], *codes: str) -> dict[int, ResponseSpec]:
    """An operation's answers: status -> (type, example, description), and the codes of problems.

    type: None for an answer without a body.
    """
    specs = {
        status: ResponseSpec(
            kind,
            generate_examples=False,
            description=description,
            examples=[Example(summary=description, value=msgspec.to_builtins(example))]
            if kind
            else None,
        )
        for status, (kind, example, description) in success.items()
    }
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in (*codes, "bad_request", "internal_error"):
        by_status[CODES[code].status].append(code)
    for status, names in by_status.items():
        specs[status] = ResponseSpec(
            Problem,
            generate_examples=False,
            media_type=PROBLEM_JSON,
            description="; ".join(f"`{name}`: {CODES[name].meaning}" for name in names),
            examples=[
                Example(summary=CODES[name].meaning, value=msgspec.to_builtins(problem(name)))
                for name in names
            ],
        )
    return specs


def configuration() -> OpenAPIConfig:
    """The document's title and description, and the formats in which it is served."""
    codes = "\n".join(f"| `{code}` | {c.status} | {c.meaning} |" for code, c in CODES.items())
    return OpenAPIConfig(
        title="flashsale",
        version="1",
        description=(
            "A flash sale: items in limited number, one fair line for each. Errors are RFC 9457 "
            f"problems with a stable code:\n\n| code | status | meaning |\n|---|---|---|\n{codes}"
        ),
        # There are no HTML pages, because they load their scripts from other servers.
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, after_request=_no_page
        ),
        render_plugins=[JsonRenderPlugin(path=["/openapi.json", "/"]), YamlRenderPlugin()],
        operation_id_creator=lambda handler, *_: handler.handler_name,
        use_handler_docstrings=True,
    )


def complete(document: OpenAPI) -> None:
    """Adds what Litestar leaves out: an optional body, and that unknown fields are refused."""
    paths = document.paths or {}
    paths["/items/{item_id}/orders"].post.request_body.required = False  # type: ignore[union-attr]
    for name, schema in document.components.schemas.items():
        kind = getattr(models, name, None)
        if kind and kind.__struct_config__.forbid_unknown_fields:
            schema.additional_properties = False


def _no_page(response: Response[Any]) -> Response[Any]:
    """Replaces Litestar's own HTML page for an unknown format by a problem."""
    if response.status_code != 404:
        return response
    return Response(problem("not_found"), status_code=404, media_type=PROBLEM_JSON)
