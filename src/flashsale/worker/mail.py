"""E-mails to customers: the queue's messages as types, their texts, and the simulated sender.

An e-mail is sent at least once: if a worker dies between sending and acknowledging, another worker
sends the e-mail again. Its Message-Id is made from its job, so it is the same each time, and a mail
server can drop the duplicate.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

import msgspec

from flashsale.settings import Settings

log = logging.getLogger("flashsale.mail")

_LINK = re.compile(r"https?://\S+")


class _About(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The order of an e-mail, as it was when the worker took the message."""

    order_id: str
    item_id: int
    item_name: str
    customer_id: str
    expires_at: datetime | None = None
    checkout_url: str | None = None
    could_pay: bool = True


class Reserved(_About, frozen=True, tag="reserved"):
    """The customer got a unit at once."""


class YourTurn(_About, frozen=True, tag="your_turn"):
    """The line has reached the customer."""


class Paid(_About, frozen=True, tag="paid"):
    """The money has come; the unit is sold."""


class PaidLate(_About, frozen=True, tag="paid_late"):
    """Money that came after the deadline has bought another order."""


class Expired(_About, frozen=True, tag="expired"):
    """The reservation was not paid in time."""


class Cancelled(_About, frozen=True, tag="cancelled"):
    """The customer has given the order up."""


class Refunded(_About, frozen=True, tag="refunded"):
    """Money that could not be used has gone back."""


class OrderRefunded(_About, frozen=True, tag="order_refunded"):
    """A paid order was refunded, and the money has gone back."""


class Unserved(_About, frozen=True, tag="unserved"):
    """The sale closed before the line reached the customer."""


class Entered(_About, frozen=True, tag="entered"):
    """The customer has entered a draw."""


class Placed(_About, frozen=True, tag="placed"):
    """The customer was drawn, and waits in the line."""

    position: int | None = None


Notification = (
    Reserved
    | YourTurn
    | Paid
    | PaidLate
    | Expired
    | Cancelled
    | Refunded
    | OrderRefunded
    | Unserved
    | Entered
    | Placed
)


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A mail to a customer."""

    message_id: str
    """The same for every delivery of one message."""
    to: str
    """A customer_id; a real sender looks the address up."""
    subject: str
    text: str


class MailRefused(Exception):  # noqa: N818 - an answer, not a fault
    """The mail server works, but does not take this mail. The message must not name anybody."""


class Sender(Protocol):
    """The interface to a mail server."""

    async def send(self, mail: Mail) -> None:
        """Hands a mail over to the mail server. After any error it is tried again later.

        Errors: MailRefused, which says nothing about other mails. After ten other errors in a row
        the mail server counts as down, and mails are tried one at a time.
        """
        ...


class LogSender:
    """The simulated sender: it writes a line into the log, without the links.

    Whoever has the link of a checkout may pay or end it, so it belongs to the customer alone.
    """

    def __init__(self, settings: Settings) -> None:
        """settings: as every factory of a sender gets them; it needs none."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Has nothing to close."""

    async def send(self, mail: Mail) -> None:
        """Writes the mail into the log."""
        # !r, so that a name with a line break can't forge a line of the log.
        log.info(
            "mail: to=%r id=%s subject=%r text=%r",
            mail.to,
            mail.message_id,
            mail.subject,
            _LINK.sub("<link>", mail.text),
        )


def compose(notification: Notification, job_id: int) -> Mail:
    """The e-mail for a notification."""
    item = " ".join(notification.item_name.split())
    order = f"order {notification.order_id}"
    offer = (
        f"Your unit of {item} is reserved until {_time(notification.expires_at)}, "
        f"pay here: {notification.checkout_url}"
    )
    match notification:
        case Reserved():
            subject, text = f"{item}: reserved for you", f"{offer} ({order})"
        case YourTurn():
            subject, text = f"{item}: it is your turn", f"It is your turn. {offer} ({order})"
        case Paid():
            subject, text = f"{item}: paid", f"Your {order} is paid. The unit is yours."
        case PaidLate():
            subject = f"{item}: paid"
            text = (
                "Your money came after your reservation had expired, but a unit was free: your "
                f"{order} is paid. The unit is yours."
            )
        case Expired():
            subject = f"{item}: your reservation has expired"
            text = _expired(notification, order)
        case Cancelled():
            subject, text = f"{item}: cancelled", f"Your {order} is cancelled. Nothing is due."
        case Refunded():
            subject = f"{item}: your money is on its way back"
            text = f"A payment for {order} could not be used and has been refunded in full."
        case OrderRefunded():
            subject = f"{item}: refunded"
            text = f"Your {order} has been refunded in full. The unit is not yours any more."
        case Unserved():
            subject = f"{item}: the sale is over"
            text = f"No unit became free for {order} before the sale closed. Nothing is due."
        case _:
            subject, text = _of_draw(notification, item, order)
    return Mail(
        message_id=f"<notification-{job_id}@flashsale>",
        to=notification.customer_id,
        subject=subject,
        text=text,
    )


def _of_draw(notification: Entered | Placed, item: str, order: str) -> tuple[str, str]:
    if isinstance(notification, Entered):
        return (
            f"{item}: you are in",
            f"You have entered the draw for {item} ({order}). When the sale opens, all who have "
            "entered are shuffled. You need not be quick: we will tell you your place.",
        )
    return (
        f"{item}: your place",
        f"All who had entered the draw for {item} have their places. Yours in the line is "
        f"{notification.position} ({order}). We will write again when it is your turn.",
    )


def _expired(notification: Expired, order: str) -> str:
    deadline = _time(notification.expires_at)
    if not notification.could_pay:
        return (
            f"No payment could be started for your {order} until {deadline}, so the unit goes to "
            "the next in line. Nothing is due. A new order joins the end of the line."
        )
    return (
        f"Your {order} was not paid until {deadline}, so the unit goes to the next in line. A new "
        "order joins the end of the line."
    )


def _time(moment: datetime | None) -> str:
    if moment is None:
        return "the deadline"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
