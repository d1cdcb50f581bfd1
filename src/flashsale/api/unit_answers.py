"""The HTTP answer to a request for a unit: an order with its status code, or a refusal."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from litestar import Response

from flashsale.models import Order, UnitAnswer, UnitRequest, UnitRequestBody
from flashsale.refusals import Refused

GRANTED = {"reserved": 201, "waiting": 202, "entered": 202, "existing": 200}
"""HTTP status by outcome. Every other outcome is the code of a problem."""

_CODES = {"invalid": "bad_value"}
"""Outcomes whose code has another name."""

_HINTS = {
    "has_other_order": "Pay or cancel the order that order_id names, then ask again.",
    "too_many": "Ask for fewer: max_per_order and max_per_customer of the item are the limits.",
    "key_reused": "Use a new Idempotency-Key for each request, and repeat a request unchanged.",
}


def asked_for(request: UnitRequest, body: UnitRequestBody | None) -> UnitRequest:
    """The request with what its body says; None: it has no body."""
    if body is None:
        return request
    return UnitRequest(*request[:3], body.wait, body.quantity, body.min_quantity)


def granted(answer: UnitAnswer) -> Response[Order]:
    """The order that the customer got. Errors: Refused, if they got none."""
    order = answer.order
    if order is None:
        raise refusal(answer)
    return Response(
        order,
        status_code=GRANTED[answer.outcome],
        headers={"Location": f"/orders/{order.order_id}"},
    )


def refusal(answer: UnitAnswer) -> Refused:
    """Why the customer got no order."""
    code = _CODES.get(answer.outcome, answer.outcome)
    return Refused(
        code,
        hint=_HINTS.get(code),
        retry_seconds=_seconds_until(answer.retry_at),
        order_id=answer.other_order_id,
    )


def _seconds_until(time: datetime | None) -> int | None:
    if time is None:
        return None
    return max(1, math.ceil((time - datetime.now(UTC)).total_seconds()))
