"""The messages of the HTTP API: requests with the bounds of their fields, and responses.

Money is in integer minor units of a currency, times are RFC 3339 in UTC. Ids of orders and payments
are opaque strings, because they do not fit into a JavaScript number. The parameters of paths,
headers and queries are in api/parameters.py.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import UNSET, Meta, Struct, UnsetType

from flashsale.currencies import DECIMALS

# No control characters, no line separators, and at least one visible character.
_TEXT = r"^(?=.*\S)[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$(?!\n)"

Sku = Annotated[str, Meta(min_length=1, max_length=64, pattern=_TEXT, examples=["sneaker-42"])]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=_TEXT, examples=["Sneaker, 42"])]
Currency = Annotated[str, Meta(min_length=3, max_length=3, pattern="^[A-Z]{3}$", examples=["EUR"])]
KnownCurrency = Annotated[Currency, Meta(extra_json_schema={"enum": sorted(DECIMALS)})]
Price = Annotated[int, Meta(ge=1, le=10**12, description="Minor units of currency")]
Stock = Annotated[int, Meta(ge=0, le=10_000_000, description="Units on sale, sold ones included")]
Units = Annotated[int, Meta(ge=1, le=10_000_000)]
WithdrawnUnits = Annotated[int, Meta(ge=1, le=1_000_000)]
Money = Annotated[int, Meta(ge=1, le=10**15, description="Minor units of currency")]
HoldSeconds = Annotated[int, Meta(ge=1, le=604_800, description="How long a unit is held")]
SettleSeconds = Annotated[
    int, Meta(ge=0, le=60, description="How long the provider is asked about money at a deadline")
]
RefundSeconds = Annotated[
    int, Meta(ge=1, le=31_536_000, description="How long customers may give a paid order back")
]
ExtensionSeconds = Annotated[int, Meta(ge=1, le=604_800, description="So much later")]
MaxWaiting = Annotated[int, Meta(ge=0, le=10_000_000, description="Length of the line at most")]
MaxPerOrder = Annotated[int, Meta(ge=1, le=100, description="Units that one order may ask for")]
MaxPerCustomer = Annotated[
    int,
    Meta(ge=1, le=10_000, description="Units that a customer may buy; null: max_per_order"),
]
Product = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=_TEXT,
        description="Items of one product share the limit of a customer",
        examples=["sneaker"],
    ),
]
Quantity = Annotated[int, Meta(ge=1, le=100, description="Units asked for")]
MinQuantity = Annotated[
    int, Meta(ge=1, le=100, description="So many units are enough; null: all of quantity")
]
Time = Annotated[
    datetime, Meta(tz=True, description="RFC 3339, with an offset; years 2000 to 2999 in UTC")
]
LatePayment = Literal["refund", "keep_if_free"]
OrderStatus = Literal[
    "entered",
    "waiting",
    "reserved",
    "settling",
    "paid",
    "refunded",
    "expired",
    "cancelled",
    "unserved",
]
DrawState = Literal["entering", "listing", "drawing", "drawn", "called_off"]
ItemState = Literal["not_open", "open", "paused", "closed"]
Short = Annotated[str, Meta(min_length=1, max_length=255, pattern=_TEXT)]
Reason = Annotated[
    str, Meta(min_length=1, max_length=1000, pattern=_TEXT, description="Why, for the history")
]


_FIRST, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)


def _check_years(*times: datetime | UnsetType | None) -> None:
    for time in times:
        if isinstance(time, datetime) and not _FIRST <= time < _END:
            raise ValueError("Expected a time in the years 2000 to 2999")


class NewItem(Struct, frozen=True, forbid_unknown_fields=True):
    """An item to put on sale. Without opens_at it opens at once, without closes_at never closes.

    draw: who comes before it opens enters a draw; opens_at must be in the future.
    """

    sku: Sku
    name: Name
    price: Price
    currency: KnownCurrency
    stock: Stock
    hold_seconds: HoldSeconds
    opens_at: Time | None = None
    closes_at: Time | None = None
    max_waiting: MaxWaiting | None = None
    late_payment: LatePayment = "refund"
    settle_seconds: SettleSeconds = 2
    refund_seconds: RefundSeconds | None = None
    max_per_order: MaxPerOrder = 1
    max_per_customer: MaxPerCustomer | None = None
    product: Product | None = None
    draw: bool = False

    def __post_init__(self) -> None:
        _check_years(self.opens_at, self.closes_at)
        if self.currency not in DECIMALS:
            raise ValueError("Expected a currency of ISO 4217")


class ItemChanges(Struct, frozen=True, forbid_unknown_fields=True):
    """Changes of an item. What is absent stays; null takes away a limit.

    price and currency can be changed until somebody asks for a unit.
    """

    name: Name | UnsetType = UNSET
    price: Price | UnsetType = UNSET
    currency: Currency | UnsetType = UNSET
    add_stock: Units | UnsetType = UNSET
    withdraw_stock: WithdrawnUnits | UnsetType = UNSET
    opens_at: Time | UnsetType | None = UNSET
    closes_at: Time | UnsetType | None = UNSET
    hold_seconds: HoldSeconds | UnsetType = UNSET
    max_waiting: MaxWaiting | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET
    settle_seconds: SettleSeconds | UnsetType = UNSET
    refund_seconds: RefundSeconds | UnsetType | None = UNSET
    max_per_order: MaxPerOrder | UnsetType = UNSET
    max_per_customer: MaxPerCustomer | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        _check_years(self.opens_at, self.closes_at)


class UnitRequestBody(Struct, frozen=True, forbid_unknown_fields=True):
    """How to request units. wait: join the line if no unit is free, or too few are.

    min_quantity: with so many of the quantity the customer is content.
    """

    wait: bool = True
    quantity: Quantity = 1
    min_quantity: MinQuantity | None = None

    def __post_init__(self) -> None:
        if self.min_quantity is not None and self.min_quantity > self.quantity:
            raise ValueError("Expected a min_quantity that is at most quantity")


class RefundRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A refund of a paid order by staff. return_units: its unit goes to the line, not off sale."""

    reason: Reason
    return_units: bool = True


class OfflinePayment(Struct, frozen=True, forbid_unknown_fields=True):
    """Money that a till has taken. reference: the till's own name of the payment, unique."""

    reference: Short


class Extension(Struct, frozen=True, forbid_unknown_fields=True):
    """More time for all who hold a unit of an item now."""

    seconds: ExtensionSeconds
    reason: Reason


class Extended(Struct, frozen=True):
    """How many deadlines have been moved."""

    extended: int


class UnitRequest(NamedTuple):
    """A request for units: the arguments of flashsale.reserve."""

    item_id: int
    customer_id: str
    idempotency_key: str | None = None
    wait: bool = True
    quantity: int = 1
    min_quantity: int | None = None


class PaymentEvent(Struct, frozen=True):
    """An event of the payment provider. Unknown fields are ignored, so that no money is refused.

    None stands for what the provider did not tell, or told in a form that can't be used.
    occurred_at: by the provider's clock. payable: of a failed payment, that the customer may still
    pay in the same session.
    """

    event_id: Short | None = None
    type: Short | None = None
    session_id: Short | None = None
    payment_id: Short | None = None
    amount: Money | None = None
    currency: Currency | None = None
    occurred_at: Time | None = None
    payable: bool = False

    def __post_init__(self) -> None:
        _check_years(self.occurred_at)


class Item(Struct, frozen=True):
    """An item on sale and where its units are: available + reserved + paid = stock.

    paid, reserved and waiting are as of as_of, up to a second ago. withdrawing: units that leave
    the sale as they come back. settle_seconds: how long the provider is asked at a deadline whether
    the money came in time. refund_seconds: how long a paid order may be given back; null: never.
    max_per_customer: over all items of the product.
    draw: whether customers enter a draw before it opens.
    """

    item_id: int
    sku: str
    name: str
    price: int
    currency: str
    stock: int
    opens_at: datetime | None
    closes_at: datetime | None
    hold_seconds: int
    max_waiting: int | None
    late_payment: LatePayment
    paused: bool
    state: ItemState
    now_serving: int
    issued: int
    available: int
    reserved: int
    paid: int
    waiting: int
    withdrawing: int
    created_at: datetime
    as_of: datetime
    settle_seconds: int
    refund_seconds: int | None
    max_per_order: int
    max_per_customer: int
    product: str | None
    draw: bool


class Draw(Struct, frozen=True):
    """The draw of an item: the commitment, then the list's hash, and when it is drawn the secret.

    entries: how many have entered, up to a second ago; once the item opens, how many are on the
    list. commitment, list_hash and secret are hexadecimal.
    """

    item_id: int
    state: DrawState
    entries: int
    units: int | None
    commitment: str
    list_hash: str | None
    secret: str | None
    opens_at: datetime | None
    listed_at: datetime | None
    drawn_at: datetime | None


class DrawEntry(Struct, frozen=True):
    """An entry of a draw, by its order_id, and the first ticket that it got; null: not yet."""

    entry_id: str
    quantity: int
    ticket: int | None


class Payment(Struct, frozen=True):
    """The latest attempt to pay an order. checkout_url comes as soon as the session is open.

    reference: the till's name of a payment that was made offline.
    """

    payment_id: str
    status: str
    amount: int
    currency: str
    checkout_url: str | None
    reference: str | None


class Forecast(Struct, frozen=True):
    """The chance that a waiting order is served, from 0 to 1, as the last sweep saw the sale."""

    chance: Annotated[float, Meta(ge=0, le=1)]
    as_of: datetime


class Order(Struct, frozen=True):
    """A customer's claim on units. position 1 is next; a reserved one is held to expires_at.

    ticket: null while it is entered in a draw. Who has entered keeps the order_id of the entry.
    quantity: the units asked for. units: those granted; null: none yet. late_order_id: the order
    that the late money of an expired one has bought.
    forecast: of a waiting order; the answer to the request itself has none.
    """

    order_id: str
    item_id: int
    customer_id: str
    status: OrderStatus
    ticket: int | None
    position: int | None
    forecast: Forecast | None
    created_at: datetime
    reserved_at: datetime | None
    expires_at: datetime | None
    paid_at: datetime | None
    ended_at: datetime | None
    payment: Payment | None
    late_order_id: str | None
    quantity: int
    units: int | None

    @property
    def is_final(self) -> bool:
        """Whether the order has ended, or is paid: only a refund can change it.

        By the statuses known here, so that one of a newer version's database ends no stream.
        """
        return self.status in ("paid", "refunded", "expired", "cancelled", "unserved")


class UnitAnswer(NamedTuple):
    """What came of a request for a unit: an order, or a refusal.

    outcome: as flashsale.reserve returns it. retry_at: when a retry may have another outcome.
    other_order_id: of has_other_order, the open order that the customer has.
    """

    outcome: str
    order: Order | None
    retry_at: datetime | None
    other_order_id: str | None = None


class Event(Struct, frozen=True):
    """Something that happened to an order or an item. docs/reference/events.md lists the types."""

    event_id: Annotated[str, Meta(description="Opaque; also the cursor to go on from")]
    type: Annotated[str, Meta(examples=["order.paid"])]
    at: datetime
    item_id: int
    order_id: Annotated[str | None, Meta(description="Null: it happened to the item")]
    data: Annotated[dict[str, Any], Meta(description="What else is known, by the type")]


class Events(Struct, frozen=True):
    """A page of the feed."""

    events: list[Event]
    next: Annotated[str, Meta(description="The cursor for the next call: after=…")]


class Receipt(Struct, frozen=True):
    """The answer to an event, which is stored durably: what it led to."""

    outcome: str


class Check(Struct, frozen=True):
    """One thing that was checked. The service is ready if `database` and `migrations` are ok."""

    name: str
    ok: bool
    detail: str


class Health(Struct, frozen=True):
    """The service is well."""

    status: str
    checks: list[Check] = []


class Problem(Struct, frozen=True, omit_defaults=True):
    """RFC 9457. Programs go by `code`; `detail` and `hint` are for people.

    order_id: of has_other_order, the order that the customer has. item_id: of sku_taken, the item
    that has the sku.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str | None = None
    order_id: str | None = None
    item_id: int | None = None
    checks: list[Check] = []
