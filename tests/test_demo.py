"""`flashsale demo`: a whole small sale, in which the promises have something to hold."""

from __future__ import annotations

import subprocess
import sys


def test_a_small_demo_sells_everything_and_keeps_its_promises() -> None:
    demo = subprocess.run(
        [
            *(sys.executable, "-m", "flashsale", "demo"),
            *("--customers", "60", "--stock", "10", "--hold-seconds", "2"),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "10 of 10 units are sold or held" in demo.stdout
    assert demo.stdout.rstrip().endswith("All promises held.")
