"""A free port is given once, so that two servers that start now do not race for it."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest

from flashsale.processes import free_port

THE_SAME_FIRST = """
import sys
from flashsale import processes
chance = processes.secrets.randbelow
wanted = [int(sys.argv[1])]
processes.secrets.randbelow = lambda below: wanted.pop() if wanted else chance(below)
print(20_000 + wanted[0], processes.free_port())
"""


def test_a_process_gets_a_port_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = secrets.randbelow
    port = free_port()
    wanted = [port - 20_000]
    monkeypatch.setattr(
        secrets, "randbelow", lambda below: wanted.pop() if wanted else chance(below)
    )
    assert free_port() != port
    assert not wanted, "the same port was not tried"


def test_another_process_does_not_get_it_either() -> None:
    port = free_port()
    other = subprocess.run(
        [sys.executable, "-c", THE_SAME_FIRST, str(port - 20_000)],
        capture_output=True,
        text=True,
        check=True,
    )
    tried, given = map(int, other.stdout.split())
    assert tried == port
    assert given != port
