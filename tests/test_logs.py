"""The logs of `flashsale dev` stay small, and belong to their owner alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashsale.dev import logs
from flashsale.dev.stack import Stack
from flashsale.settings import Settings


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 10)


def write(path: Path, text: str) -> None:
    with logs.open_log(path) as log:
        log.write(text.encode())


def test_a_log_that_is_full_goes_on_empty_and_the_last_parts_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    for n in range(5):
        write(log, f"part {n}, which is full\n")
        logs.rotate(log)
        write(log, "new")
        assert log.read_text() == "new"
        os.truncate(log, 0)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "worker.log": "",
        "worker.log.1": "part 4, which is full\n",
        "worker.log.2": "part 3, which is full\n",
    }


def test_a_small_log_and_a_missing_one_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    logs.rotate(log)
    write(log, "short")
    logs.rotate(log)
    assert [path.name for path in tmp_path.iterdir()] == ["worker.log"]
    assert log.read_text() == "short"


def test_a_process_that_has_the_log_open_goes_on_at_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    program = "import sys; [print(line, end='', flush=True) for line in sys.stdin]"
    with logs.open_log(log) as out:
        writer = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=out,
            text=True,
            bufsize=1,
        )
    assert writer.stdin is not None
    writer.stdin.write("a line that fills it\n")
    while not log.read_text():
        pass
    logs.rotate(log)
    writer.stdin.write("next\n")
    writer.stdin.close()
    writer.wait()
    assert log.read_text() == "next\n"


def test_a_full_disk_does_not_stop_the_log_from_being_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    log = tmp_path / "worker.log"
    write(log, "a line that fills it\n")
    logs.rotate(log)
    assert log.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["worker.log"]


def test_only_the_owner_may_read_a_log_and_its_parts(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("by an earlier version, for all to see\n")
    log.chmod(0o644)
    write(log, "more")
    logs.rotate(log)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"worker.log": 0o600, "worker.log.1": 0o600}


def test_dev_watches_all_its_logs(tmp_path: Path) -> None:
    names = ("postgres", "provider", "worker", "serve")
    stack = Stack(Settings(), tmp_path)
    for name in names:
        write(tmp_path / f"{name}.log", "a line that fills it\n")
    stack.watch()
    assert {path.name for path in tmp_path.iterdir() if path.stat().st_size} == {
        f"{name}.log.1" for name in names
    }
