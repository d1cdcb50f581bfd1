"""The ledger: a line of JSON for all that happened, on disk before anyone is told about it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

log = logging.getLogger("flashsale.provider")


class LedgerLine(Struct, frozen=True, tag_field="kind", tag=str.lower, kw_only=True):
    """One thing that happened. `kind` comes first, so that lines are easy to grep."""

    at: datetime


class Opened(LedgerLine, frozen=True):
    """A session was opened."""

    session_id: str
    payment_id: str
    order_id: str | None
    amount: int
    currency: str
    expires_at: datetime | None
    key: str | None
    description: str | None = None  # lines of older releases have none
    """What is paid for."""


class Moved(LedgerLine, frozen=True):
    """A session changed its state. event_id: of the event that reports it to the webhook.

    key: of the service's call; None for what the customer did, or somebody at the provider.
    payable: a failed payment that can still be made, so the session stays open.
    """

    to: Literal["captured", "failed", "voided", "refunded"]
    session_id: str
    payment_id: str
    amount: int
    currency: str
    event_id: str
    key: str | None
    payable: bool = False  # lines of older releases do not have it


class Delivered(LedgerLine, frozen=True):
    """The webhook has accepted an event."""

    event_id: str


Entry = Opened | Moved | Delivered


class LedgerError(Exception):
    """The ledger can't be read or written; the message says why."""


class Ledger:
    """An append-only file of JSON lines. Lines written together share one fsync."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file, and cuts off a line that a crash left incomplete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._unsynced: list[bytes] = []
        self._written = 0
        self._durable = 0
        self._syncing: asyncio.Task[None] | None = None
        self._broken: LedgerError | None = None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise LedgerError(f"{path}: another provider is using this ledger") from None
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)  # or a power cut may remove the file's name
        os.close(directory)

    def replay(self) -> Iterator[Entry]:
        """All entries. Errors: LedgerError if a line other than the last is damaged."""
        decoder = msgspec.json.Decoder(Entry)
        kept = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # a torn line: it was not fsynced, so nobody was told about it
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeError) as error:
                    raise LedgerError(f"{self._path}:{number}: {error}") from error
                kept += len(line)
        if os.fstat(self._fd).st_size > kept:
            log.warning("torn line cut off: ledger=%s offset=%d", self._path, kept)
            os.ftruncate(self._fd, kept)
        os.fsync(self._fd)  # what was read may not have been on disk before the crash

    def write(self, entry: Entry) -> None:
        """Appends a line. It is durable once flush() has returned."""
        self._unsynced.append(msgspec.json.encode(entry) + b"\n")
        self._written += 1

    async def flush(self) -> None:
        """Returns when everything written so far is on disk. Errors: LedgerError, now and for good.

        After a failed fsync it is unknown what is on disk, so all calls fail until a restart, which
        replays the file.
        """
        wanted = self._written
        while self._durable < wanted:
            if self._broken is not None:
                raise self._broken
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)  # others wait for it too

    async def _sync(self) -> None:
        lines, upto = b"".join(self._unsynced), self._written
        self._unsynced.clear()
        try:
            await asyncio.to_thread(self._append, lines)
            self._durable = upto
        except OSError as error:
            log.error("ledger broken: ledger=%s error=%s", self._path, error)
            self._broken = LedgerError(f"{self._path}: {error}")
        finally:
            self._syncing = None

    def _append(self, lines: bytes) -> None:
        while lines:
            lines = lines[os.write(self._fd, lines) :]
        os.fsync(self._fd)

    async def close(self) -> None:
        """Writes what is left, and lets go of the file."""
        try:
            await self.flush()
        finally:
            os.close(self._fd)
