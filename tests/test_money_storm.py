"""The storm of prove/ at its whole size: money goes all its ways, with an outage in the middle."""

from __future__ import annotations

import pytest
from prove.faults import storm


@pytest.mark.storm
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_storm_of_money_breaks_no_promise() -> None:
    row = storm.storm(storm.SIZE)
    assert row.violations == []


def test_the_storm_counts_only_if_money_went_all_its_ways() -> None:
    wanted = {"settling -> paid": 200, "paid -> refunded": 200, "offline payments": 50}
    wanted["seconds of outage"] = 20
    assert {what: storm.MONEY_EXERCISE[what] for what in wanted} == wanted
