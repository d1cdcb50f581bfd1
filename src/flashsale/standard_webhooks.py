"""Signs what we deliver as the Standard Webhooks specification says (standardwebhooks.com).

A delivery has three headers: webhook-id, webhook-timestamp and webhook-signature. The signature is
the HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>`, as `v1,<base64>`. While a secret is
being rotated there are several, separated by a space, and a receiver accepts any one of them.
The module signature is for the events of the simulated payment provider, which have another form.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64
"""Of a secret, in the specification."""
_MAX_SECRETS = 8


def keys_of(secrets: str) -> list[bytes]:
    """The keys in secrets of the form whsec_<base64>, separated by spaces.

    Errors: ValueError, whose message says what to do and quotes no secret.
    """
    given = secrets.split()
    if not 1 <= len(given) <= _MAX_SECRETS:
        raise ValueError(f"must have 1 to {_MAX_SECRETS} secrets, separated by a space")
    return [_key_of(secret, n) for n, secret in enumerate(given, 1)]


def headers(
    keys: Sequence[bytes], message_id: str, unix_seconds: int, body: bytes
) -> dict[str, str]:
    """The headers of a delivery that is made now. Each key adds a signature.

    message_id: the same whenever this message is delivered. Errors: ValueError for an id from which
    a receiver could not tell where it ends.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", message_id):
        raise ValueError(f"{message_id!r} is no id of a message")
    signed = f"{message_id}.{unix_seconds}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(unix_seconds),
        "webhook-signature": " ".join(_signature(key, signed) for key in keys),
    }


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _key_of(secret: str, n: int) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ValueError(
            f"secret {n} must be {_PREFIX} and the base64 of {_MIN_BYTES} to {_MAX_BYTES} random "
            f'bytes, for example from `echo "{_PREFIX}$(openssl rand -base64 32)"`'
        )
    return key
