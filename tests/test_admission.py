"""Calls that would have to wait for too long are refused at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from flashsale.database.admission import Gate, Lag


def test_the_bound_is_one_of_time_not_of_count() -> None:
    gate = Gate(wait_ms=100, lanes=1)
    assert gate.retry_after(calls_ahead=1_000) is None  # it is not known yet how long a call takes
    for _ in range(50):
        gate.called(0.03)
    assert gate.retry_after(calls_ahead=3) is None
    assert gate.retry_after(calls_ahead=5) == 1
    assert gate.retry_after(calls_ahead=40) == 2
    assert Gate(wait_ms=100, lanes=1).retry_after(calls_ahead=40) is None


def test_the_next_call_is_admitted_however_slow_the_last_ones_were() -> None:
    gate = Gate(wait_ms=100, lanes=1)
    for _ in range(50):
        gate.called(60)
    assert gate.retry_after(calls_ahead=0) is None
    assert gate.retry_after(calls_ahead=1) is not None


def test_the_gate_forgets_what_it_knew_while_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock made calls slow; it has ended, and half a minute later there is a burst."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    gate = Gate(wait_ms=2_000, lanes=2)
    for _ in range(50):
        gate.called(2)
    assert gate.retry_after(calls_ahead=3) is not None
    now += 1  # no longer than a call takes: it is still the best that is known
    assert gate.retry_after(calls_ahead=3) is not None
    now += 29
    assert gate.retry_after(calls_ahead=60) is None


def test_one_slow_call_after_a_pause_is_not_mixed_with_what_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    gate = Gate(wait_ms=100, lanes=1)
    for _ in range(50):
        gate.called(4)
    now += 60
    gate.called(0.001)
    assert gate.retry_after(calls_ahead=60) is None


async def test_time_in_the_event_loop_counts_as_waiting() -> None:
    lag = Lag()
    gate = Gate(wait_ms=100, lanes=1, lag=lag)
    lag.start()
    try:
        await asyncio.sleep(0.02)
        assert lag.seconds < 0.1 and gate.retry_after(calls_ahead=1) is None
        until = time.monotonic() + 0.15
        while time.monotonic() < until:
            pass  # a turn of the loop that is too long
        assert gate.retry_after(calls_ahead=1) is not None
        assert gate.retry_after(calls_ahead=0) is None  # else no call would be made any more
    finally:
        lag.stop()


def test_a_lag_that_is_not_measured_is_not_positive() -> None:
    assert Lag().seconds < 0
