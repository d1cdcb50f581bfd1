"""Faults on demand: which faults are active, and how they affect the calls of the service."""

from __future__ import annotations

import asyncio
import random

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from msgspec.structs import replace

from flashsale.simulator.messages import CallRefused, Faults


class FaultDice:
    """The active faults, and the random numbers that decide when one occurs."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self.faults = faults
        self._random = random.Random(seed if faults.seed is None else faults.seed)

    def change(self, faults: Faults) -> None:
        """Replaces the active faults by these."""
        self.faults = faults
        if faults.seed is not None:
            self._random.seed(faults.seed)

    def strikes(self, probability: float) -> bool:
        """Whether a fault with this probability occurs now."""
        return self._random.random() < probability

    def fails(self) -> bool:
        """Whether the next call fails, because of fail_next or at random."""
        if self.faults.fail_next > 0:
            self.faults = replace(self.faults, fail_next=self.faults.fail_next - 1)
            return True
        return self.strikes(self.faults.fail)


class Unreliable:
    """Middleware of the calls that the service makes: open, void, refund.

    Reading sessions, completing them and changing the faults always work, because the person who
    runs the experiment needs them.
    """

    def __init__(self, app: ASGIApp, dice: FaultDice) -> None:
        self._app = app
        self._dice = dice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a call on, unless a fault occurs."""
        dice, faults = self._dice, self._dice.faults
        if faults.latency_ms:
            await asyncio.sleep(faults.latency_ms / 1000)
        if dice.fails():
            raise CallRefused(500, "simulated_failure", "Nothing was done.")
        if dice.strikes(faults.hang):
            await _hang(receive, faults.hang_ms / 1000)
            raise CallRefused(503, "simulated_hang", "Nothing was done.")
        if not dice.strikes(faults.lose_replies):
            await self._app(scope, receive, send)
            return

        async def lose(_: Message) -> None:
            """Drops the reply."""

        await self._app(scope, receive, lose)
        # An answer that ends before its body does: the server closes the connection.
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"1000")],
            }
        )
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


async def _hang(receive: Receive, seconds: float) -> None:
    """Waits until the caller has gone."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        pass
