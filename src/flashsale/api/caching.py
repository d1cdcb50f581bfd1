"""Answers that caches may keep: items and draws, for a second, with an ETag.

Everything else is `private, no-store`; api/wellformed.py says so on each answer that says nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from litestar import Response

from flashsale.models import Draw, Item

Items = TypeVar("Items", Item, list[Item], Draw)

_TAGS = re.compile(r'(?:W/)?("[^"]*")').findall
_encode = msgspec.json.Encoder().encode


def public(
    items: Items, if_none_match: str | None, further: Mapping[str, str] | None = None
) -> Response[Items]:
    """The items, or a draw, for everybody's caches, or 304 if the client has them already.

    if_none_match: the request's header. further: headers of the answer. The tag is a weak one,
    because it leaves out as_of, which each sweep changes: 304 says that nothing else has changed
    since.
    """
    digest = hashlib.blake2b(digest_size=12)
    if isinstance(items, Draw):
        digest.update(_encode(items))
    else:
        for item in [items] if isinstance(items, Item) else items:
            digest.update(_encode(msgspec.structs.replace(item, as_of=item.created_at)))
    tag = f'"{digest.hexdigest()}"'
    headers = {"Cache-Control": "public, max-age=1", "ETag": f"W/{tag}", **(further or {})}
    if if_none_match and (if_none_match.strip() == "*" or tag in _TAGS(if_none_match)):
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]
    return Response(items, headers=headers)
