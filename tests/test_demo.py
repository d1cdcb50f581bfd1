"""`flashsale demo`: a whole sale against a service of its own, judged in the end."""

from __future__ import annotations

import subprocess
import sys


def test_a_small_sale_sells_out_and_keeps_all_promises() -> None:
    sale = ("--customers", "60", "--stock", "6", "--hold-seconds", "1")
    done = subprocess.run(
        [sys.executable, "-m", "flashsale", "demo", *sale],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 units are sold or held" in done.stdout
    assert done.stdout.rstrip().endswith("All promises held.")
