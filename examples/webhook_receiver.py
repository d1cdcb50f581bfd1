"""Receives the events of a payment provider: verifies their signature and handles each once.

The service's own webhook is POST /webhooks/payments. This one is for another program that needs the
events, or takes the place of the service while you test a provider. With the simulated provider:
    export FLASHSALE_WEBHOOK_SECRET=a-secret-for-trying
    .venv/bin/python examples/webhook_receiver.py 8002 &
    FLASHSALE_WEBHOOK_URL=http://127.0.0.1:8002/ FLASHSALE_PROVIDER_PORT=8003 \
        .venv/bin/flashsale provider
Open a session there (POST /sessions) and complete it (POST to its checkout_url + /complete).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["FLASHSALE_WEBHOOK_SECRET"].encode()
assert SECRET, "with an empty secret everybody could sign"
TOLERANCE_SECONDS, MAX_BODY_BYTES = 300, 16_384
seen: set[str] = set()  # in your program: a table whose key is event_id


def is_genuine(header: str, body: bytes) -> bool:
    """Whether `Flashsale-Signature: t=<unix seconds>,v1=<hex>` is recent and of our secret."""
    form = re.fullmatch(r"t=(\d{1,12})((?:,v1=[0-9a-f]{64}){1,8})", header)
    if form is None or abs(time.time() - int(form[1])) > TOLERANCE_SECONDS:
        return False
    expected = hmac.new(SECRET, form[1].encode() + b"." + body, hashlib.sha256).hexdigest()
    return any(hmac.compare_digest(expected, it) for it in form[2].split(",v1=")[1:])


class Receiver(BaseHTTPRequestHandler):
    """Answers 200 to an accepted event, 401 to one without a valid signature."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if 0 < length <= MAX_BODY_BYTES else b""
        if not is_genuine(self.headers.get("Flashsale-Signature", ""), body):
            self.answer(401)  # not from the provider: it must have no effect
            return
        event = json.loads(body)
        if event["event_id"] not in seen:  # an event may come twice, and after a later one
            seen.add(event["event_id"])
            print(event["type"], event["payment_id"], event["amount"], flush=True)
        self.answer(200)  # after handling it: an event without a 2xx is sent again

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
