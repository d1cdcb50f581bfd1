"""Whatever fails again and again is tried again at growing intervals, and logged once."""

from __future__ import annotations

import logging

import pytest

from flashsale.dev.stack import Backoff
from flashsale.refusals import Unavailable
from flashsale.simulator.courier import Courier
from flashsale.simulator.faults import FaultDice
from flashsale.simulator.messages import Faults, ProviderEvent
from flashsale.worker.trouble import Trouble
from http_support import settings


def test_the_pauses_of_the_worker_grow_up_to_a_bound_and_begin_anew() -> None:
    trouble = Trouble("sweeping")
    pauses = [trouble.hit(ConnectionRefusedError()) for _ in range(6)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    trouble.over()
    assert trouble.hit(ConnectionRefusedError()) == 0.1


def test_each_kind_of_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = Trouble("sweeping")
    for error in (OSError(), OSError(), Unavailable(), OSError()):
        trouble.hit(error)
    assert sum("will keep trying" in message for message in caplog.messages) == 2


def test_a_part_that_keeps_dying_is_started_at_growing_intervals() -> None:
    backoff = Backoff()
    delays = []
    for _ in range(8):
        backoff.started()
        delays.append(backoff.died())
        assert not backoff.is_due()
    assert delays == sorted(delays)
    assert delays[0] <= 1 and delays[-1] == 10


async def test_an_event_that_is_not_taken_is_sent_at_growing_intervals() -> None:
    async def durable() -> None: ...

    def delivered(_: ProviderEvent) -> None: ...

    dice = FaultDice(Faults(), seed=0)
    courier = Courier(settings("postgresql://nowhere"), dice, durable, delivered)
    waits = [courier._backoff(attempt, 503) for attempt in (1, 3, 5, 30)]  # noqa: SLF001 - no public sight of it
    assert waits == sorted(waits)
    assert waits[0] < 0.3 and 20 < waits[-1] < 40
