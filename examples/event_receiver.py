"""Receives the feed of events: verifies each delivery and handles each event once, in order.

It takes what FLASHSALE_EVENTS_URL sends (docs/how-to/receive-events.md). To try it:
    export FLASHSALE_EVENTS_SECRET="whsec_$(openssl rand -base64 32)"
    .venv/bin/python examples/event_receiver.py 8002 &
    FLASHSALE_EVENTS_URL=http://127.0.0.1:8002/ make run
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SECRET = os.environ["FLASHSALE_EVENTS_SECRET"]
KEY = base64.b64decode(SECRET.removeprefix("whsec_"), validate=True)
assert SECRET.startswith("whsec_"), "secrets of Standard Webhooks begin with whsec_"
TOLERANCE_SECONDS, MAX_BODY_BYTES = 300, 65_536
seen: set[str] = set()  # in your program: a table whose key is event_id


def is_genuine(body: bytes, message_id: str, timestamp: str, signatures: str) -> bool:
    """Whether the three headers are recent, and one of the signatures is of our secret."""
    is_time = re.fullmatch(r"[0-9]{1,12}", timestamp)
    if not is_time or abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest())
    # There are several while the sender's secret is being changed.
    return any(hmac.compare_digest(expected, it.encode()) for it in signatures.split(" "))


class FeedReceiver(BaseHTTPRequestHandler):
    """Answers 204 to an event that is handled, 401 to what is not signed with our secret."""

    protocol_version = "HTTP/1.1"  # keeps the connection for the next event

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if 0 < length <= MAX_BODY_BYTES else b""
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        genuine = is_genuine(body, *(self.headers.get(name, "") for name in names))
        if genuine:
            event = json.loads(body)
            if event["event_id"] not in seen:  # one may come again
                seen.add(event["event_id"])
                print(event["type"], event["item_id"], event["order_id"], flush=True)
        self.send_response(204 if genuine else 401)  # without a 2xx the event is sent again
        self.close_connection |= not genuine
        self.end_headers()


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), FeedReceiver).serve_forever()
