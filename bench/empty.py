"""The baseline: an ordinary Litestar handler that decodes a request and encodes an order.

It has no database and the same granian settings as the service, so it shows the framework's cost.

    python -m bench.empty PORT
"""

from __future__ import annotations

import sys

import msgspec
from litestar import Litestar, Response, post

from flashsale.api import examples
from flashsale.api.parameters import CustomerId, IdempotencyKey, ItemId
from flashsale.models import Order, UnitRequestBody
from flashsale.server import run_granian
from flashsale.settings import Settings


@post("/items/{item_id:int}/orders")
async def empty(
    item_id: ItemId,
    customer: CustomerId,
    idempotency_key: IdempotencyKey = None,
    data: UnitRequestBody | None = None,
) -> Response[Order]:
    order = msgspec.structs.replace(examples.RESERVED, item_id=item_id, customer_id=customer)
    return Response(order, status_code=201)


def app() -> Litestar:
    return Litestar([empty], logging_config=None)


if __name__ == "__main__":
    run_granian("bench.empty:app", "127.0.0.1", int(sys.argv[1]), Settings(), {})
