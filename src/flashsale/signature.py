"""The signature of a webhook: `Flashsale-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256>`.

The HMAC covers `<t>.<raw body>`, so neither can be changed. A request is refused when t is too old,
which limits how long a recorded request can be replayed.
"""

from __future__ import annotations

import hashlib
import hmac
import re

HEADER = "Flashsale-Signature"

# There may be several v1, because while a secret is being rotated, the sender signs with the old
# and the new one. The bounds limit the work for a hostile header.
_FORM = re.compile(r"t=(0|[1-9][0-9]{0,11})((?:,v1=[0-9a-f]{64}){1,8})")


class BadSignature(Exception):  # noqa: N818 - a verdict on a request, not a fault
    """The sender does not know the secret, or the request is too old; the message says which."""


def sign(secret: str, body: bytes, unix_seconds: int) -> str:
    """The header's value for a body sent now."""
    return f"t={unix_seconds},v1={_mac(secret, str(unix_seconds), body)}"


def verify(
    secret: str, header: str | None, body: bytes, now: float, tolerance_seconds: float
) -> None:
    """Checks the header of a request; `now` is in Unix seconds. Errors: BadSignature."""
    if header is None:
        raise BadSignature(f"The header {HEADER} is missing.")
    form = _FORM.fullmatch(header)
    if form is None:
        raise BadSignature(f"The header {HEADER} is not t=<unix seconds>,v1=<hex>.")
    time, signatures = form.groups()
    expected = _mac(secret, time, body)
    # All signatures are compared, in constant time, before the age is checked. So only a caller
    # that knows the secret learns that its request is too old.
    matches = [hmac.compare_digest(expected, s) for s in signatures.split(",v1=")[1:]]
    if not any(matches):
        raise BadSignature("The signature does not match the body and the secret.")
    if abs(now - int(time)) > tolerance_seconds:
        raise BadSignature(f"The timestamp is more than {tolerance_seconds:g} seconds off.")


def _mac(secret: str, time: str, body: bytes) -> str:
    if not secret:
        raise ValueError("An empty secret protects nothing.")  # everybody can sign with it
    return hmac.new(secret.encode(), time.encode() + b"." + body, hashlib.sha256).hexdigest()
