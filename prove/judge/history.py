"""The history: all requests and answers of a run, which the checker judges.

An operation is ok (2xx), refused (4xx: it had no effect) or unknown (no answer, or a 5xx: it may
have had its effect). Times are those of this process's monotonic clock, in seconds.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "refused", "unknown"]


@dataclass
class Op:
    """One operation. order: (item_id, ticket) if it was about an existing order.

    units: of a change of the stock. quantity, min_quantity: of a request for units.
    """

    number: int
    kind: str  # reserve, cancel, read, pay, retry_payment, restock, withdraw
    item_id: int
    asked: float
    customer: str = ""
    key: str = ""
    order: tuple[int, int] | None = None
    units: int = 0
    quantity: int = 1
    min_quantity: int | None = None
    answered: float | None = None
    status: int | None = None
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        if self.status is None or self.status >= 500:
            return "unknown"
        return "ok" if self.status < 400 else "refused"

    @property
    def told(self) -> tuple[int, int] | None:
        """The order that the answer showed, as (item_id, ticket)."""
        if self.outcome == "ok" and "ticket" in self.body:
            return self.body["item_id"], self.body["ticket"]
        return None


class History:
    """All operations of a run, in the order in which they were sent."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.epoch = time.time() - time.monotonic()
        """Added to a monotonic time, gives Unix time, which is what the database writes down."""

    def ask(self, kind: str, item_id: int, **about: Any) -> Op:
        op = Op(len(self.ops), kind, item_id, time.monotonic(), **about)
        self.ops.append(op)
        return op

    def answer(self, op: Op, status: int, body: dict[str, Any]) -> None:
        op.answered, op.status, op.body = time.monotonic(), status, body

    def outcomes(self) -> Counter[Outcome]:
        return Counter(op.outcome for op in self.ops)

    def unresolved(self) -> Iterator[Op]:
        """Reservations with an unknown result: no later request with their key got an answer."""
        known = {
            (op.customer, op.item_id, op.key)
            for op in self.ops
            if op.kind == "reserve" and op.outcome != "unknown"
        }
        for op in self.ops:
            who = (op.customer, op.item_id, op.key)
            if op.kind == "reserve" and op.outcome == "unknown" and who not in known:
                known.add(who)
                yield op

    def save(self, path: Path) -> None:
        with path.open("w") as file:
            for op in self.ops:
                file.write(json.dumps(asdict(op)) + "\n")
