"""The logs of `flashsale dev`: nobody else may read them, and they do not grow for ever."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 10_000_000
KEPT = 2
"""Older parts of a log, `worker.log.1` the latest."""


def open_log(path: Path) -> BinaryIO:
    """Opens a log to append to it. It names customers, so only its owner may read it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, 0o600)  # an earlier version let everybody read it
    return os.fdopen(fd, "ab")


def rotate(path: Path) -> None:
    """Moves what is in the log to another file if it is more than MAX_BYTES.

    The process that writes it keeps it open and appends, so the log itself stays where it is, and
    is emptied. What is written in the moment between the copy and that is lost.
    """
    with suppress(FileNotFoundError):
        if path.stat().st_size <= MAX_BYTES:
            return
        for number in range(KEPT, 1, -1):
            with suppress(FileNotFoundError):
                _part(path, number - 1).replace(_part(path, number))
        try:
            with path.open("rb") as log, open_log(_part(path, 1)) as part:
                shutil.copyfileobj(log, part)
        except OSError:  # such as a full disk, which the log may have filled
            _part(path, 1).unlink(missing_ok=True)
        os.truncate(path, 0)


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
