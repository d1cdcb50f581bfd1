"""Refusals: the codes of all problems, and the exceptions that carry them.

All packages use them. api/problems.py turns a refusal into an HTTP answer, and
database/sqlstates.py decides which error of Postgres is which refusal.
"""

from __future__ import annotations

from typing import NamedTuple

from flashsale.models import Check

RETRY_SECONDS = 1
"""What Retry-After says when there is no better answer."""


class Code(NamedTuple):
    """One kind of problem: its HTTP status, and a sentence that says what it means."""

    status: int
    meaning: str


CODES: dict[str, Code] = {
    # the request
    "malformed_body": Code(400, "The body is not complete, valid JSON in UTF-8"),
    "bad_request": Code(400, "The request is not one that this service can read"),
    "customer_required": Code(
        401, "X-Customer-Id is missing, or not 1 to 128 printable characters"
    ),
    "bad_signature": Code(401, "The signature of the event is missing, wrong or too old"),
    "not_found": Code(404, "There is nothing at this address"),
    "method_not_allowed": Code(405, "This address does not know this method"),
    "body_timeout": Code(408, "The body did not arrive in time"),
    "body_too_large": Code(413, "The body is larger than this service accepts"),
    "unsupported_media_type": Code(415, "The body must be application/json"),
    "key_reused": Code(422, "The Idempotency-Key belongs to another request"),
    "bad_value": Code(422, "A field, header or query parameter is unknown or out of range"),
    # the sale
    "unknown_item": Code(404, "There is no such item"),
    "no_draw": Code(404, "This item has no draw"),
    "unknown_order": Code(404, "There is no such order, or it is another customer's"),
    "sku_taken": Code(409, "There is already an item with this sku; item_id names it"),
    "has_orders": Code(409, "Somebody has asked for the item: its price and currency stay"),
    "withdraw_too_much": Code(409, "More units than can still be withdrawn"),
    "draw_has_begun": Code(409, "The opening can't be moved: the draw of this item has begun"),
    "too_many_items": Code(409, "There is no room for another item: all item_ids are used up"),
    "reference_taken": Code(409, "The reference belongs to the payment of another order"),
    "not_paid": Code(409, "Only a paid order can be refunded"),
    "cursor_expired": Code(409, "Events after this cursor have been deleted by now"),
    "not_open": Code(409, "The sale has not begun; Retry-After says when it does"),
    "closed": Code(409, "The sale is over"),
    "paused": Code(409, "The sale is paused"),
    "sold_out": Code(409, "Too few units are free, and the line is full or not wanted"),
    "has_other_order": Code(
        409, "The customer has an open order for another item of the product; order_id names it"
    ),
    "too_many": Code(422, "More units than the item's limit leaves the customer"),
    "already_paid": Code(
        409, "A paid order can't be cancelled, unless its item has refund_seconds"
    ),
    "not_reserved": Code(409, "Only a reserved order can be paid"),
    "not_allowed": Code(403, "The service's database role may not do this"),
    # the service
    "internal_error": Code(500, "Something unexpected; it is in the log"),
    "overloaded": Code(503, "Not served inside the time bound; nothing was written"),
    "database_unavailable": Code(503, "The database does not answer; asking again is safe"),
    "provider_unavailable": Code(
        503, "The payment provider, which has to be asked about its event, does not answer"
    ),
    "not_ready": Code(503, "The service is up, but not ready to serve"),
}
"""Every code that the service answers with. The SQL functions may raise further ones: those get
their status by the class of their SQLSTATE, and belong here for the documentation only."""


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """A problem to answer with: a code of CODES, and the details of this case."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        hint: str | None = None,
        retry_seconds: int | None = None,
        order_id: str | None = None,
        checks: list[Check] | None = None,
    ) -> None:
        """retry_seconds: for Retry-After; None: RETRY_SECONDS if the status is 503, else none."""
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.retry_seconds = retry_seconds
        self.order_id = order_id
        self.checks = checks or []


class Overloaded(Refused):
    """The request would have waited, or has waited, longer than its bound; nothing was written."""

    def __init__(self, retry_seconds: int | None = None) -> None:
        """retry_seconds: until the present queue will have been served, if that is known."""
        super().__init__(
            "overloaded",
            "The service is busier than it can be in time.",
            hint="Ask again after Retry-After seconds.",
            retry_seconds=retry_seconds,
        )


class Unavailable(Refused):
    """There is no connection to the database, or it broke while it was used."""

    def __init__(self, detail: str = "The database can't be reached.") -> None:
        """detail: what is known about the case."""
        super().__init__("database_unavailable", detail, hint="Ask again: a retry is safe.")


class CommandError(RuntimeError):
    """A command can't do its work.

    The message tells the person at the terminal why, and what to do about it.
    """
