"""Checks a draw from what the service publishes: `flashsale check-draw ITEM`.

It needs nothing but the standard library and HTTP, so that anybody can run it, or read it and write
another one. draw.sql explains the draw itself.
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import quote

from flashsale.refusals import CommandError

_PAGE = 10_000
_SECONDS = 30.0

PROVES = """\
This proves:
- The secret is the one that the commitment has announced. If you have noted the commitment before
  you entered (--commitment), it was fixed before the list of entries was.
- The list of entries is the one whose hash was published before the secret was.
- Every entry on the list has exactly the place that the secret and the list give it.
It does not prove:
- that everybody who entered is on the list. Look for your own order_id: --entry.
- that each entry is another person: that is for whoever lets customers log in.
- that nobody knew the secret before. Whoever may read the tables of the database could have tried
  out entries of their own until the order suited them.
"""


class Entry(NamedTuple):
    """An entry of the list: units, and the first ticket that it got."""

    entry_id: str
    quantity: int
    ticket: int | None


def faults(draw: dict[str, Any], entries: Sequence[Entry]) -> Iterator[str]:
    """What is wrong with a draw that is done, in words. entries: in the order of the list."""
    secret, list_hash = bytes.fromhex(draw["secret"]), bytes.fromhex(draw["commitment"])
    if hashlib.sha256(secret).digest() != list_hash:
        yield "the secret is not the one that the commitment has announced"
    if any(int(one.entry_id) >= int(other.entry_id) for one, other in pairwise(entries)):
        yield "the list is not in ascending order of entry_id"
    if len(entries) != draw["entries"]:
        yield f"the list has {len(entries)} entries, and should have {draw['entries']}"
    for entry in entries:
        line = f"{entry.entry_id} {entry.quantity}".encode()
        list_hash = hashlib.sha256(list_hash + line).digest()
    if list_hash.hex() != draw["list_hash"]:
        yield "the list is not the one whose hash was published"
    seed = secret + bytes.fromhex(draw["list_hash"])
    place = 1
    for entry in sorted(entries, key=lambda e: hashlib.sha256(seed + e.entry_id.encode()).digest()):
        if entry.ticket != place:
            yield f"entry {entry.entry_id} has ticket {entry.ticket}, and should have {place}"
        place += entry.quantity


def run(item: int, url: str, commitment: str | None, entry: str | None) -> int:
    """Checks the draw of an item and prints what that proves. Returns the exit status."""
    draw = _get(url, f"/items/{item}/draw")
    if draw["state"] != "drawn":
        raise CommandError(f"this draw is {draw['state']}: its secret is published when it is done")
    entries = list(_entries(url, item))
    found = list(faults(draw, entries))
    if commitment is not None and commitment.lower() != draw["commitment"]:
        found.append(f"the commitment is {draw['commitment']}, not the one that you have noted")
    for fault in found[:20]:
        print(f"wrong: {fault}", file=sys.stderr)
    if len(found) > 20:
        print(f"... and {len(found) - 20} more", file=sys.stderr)
    if entry is not None:
        mine = [e for e in entries if e.entry_id == entry]
        if not mine:
            found.append("")
            print(f"wrong: {entry} is not on the list", file=sys.stderr)
        else:
            print(f"{entry} is on the list, with ticket {mine[0].ticket}")
    if found:
        return 1
    print(f"All {len(entries)} entries have the places that the secret gives them.\n")
    print(PROVES, end="")
    return 0


def _entries(url: str, item: int) -> Iterator[Entry]:
    after = ""
    while True:
        page = _get(url, f"/items/{item}/draw/entries?limit={_PAGE}{after}")
        for row in page:
            yield Entry(row["entry_id"], row["quantity"], row["ticket"])
        if len(page) < _PAGE:
            return
        after = f"&after={quote(page[-1]['entry_id'])}"


def _get(url: str, path: str) -> Any:
    """The JSON at a path of the service. Errors: CommandError."""
    if not url.startswith(("http://", "https://")):
        raise CommandError(f"{url!r} is not an http or https URL")
    try:
        with urllib.request.urlopen(url.rstrip("/") + path, timeout=_SECONDS) as answer:  # noqa: S310 - http only
            return json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            detail = json.load(error)["title"]
        except (ValueError, KeyError, TypeError):
            detail = error.reason
        raise CommandError(f"{url}{path} answers {error.code}: {detail}") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{url}{path}: {error}") from None
