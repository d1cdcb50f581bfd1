"""A small fake of Stripe's API, as far as Checkout needs it, made from Stripe's documentation.

Bodies are forms with brackets; answers and errors have Stripe's shapes. It keeps idempotency keys,
and refuses what Stripe refuses. `customer_pays` and the like do what happens in a browser; each
returns the event that Stripe would send.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY = "sk_test_of_the_tests"


class StripeRefused(Exception):  # noqa: N818 - an answer, not a fault
    """An error in Stripe's shape."""

    def __init__(self, status: int, message: str, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": "invalid_request_error", "message": message} | fields}


class FakeStripe:
    """The account. `broken`: a status with which every call is answered from now on."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.broken = 0
        self.sessions: dict[str, dict[str, Any]] = {}
        self.intents: dict[str, dict[str, Any]] = {}
        self.refunds: list[dict[str, Any]] = []
        self.calls: list[tuple[str, dict[str, str], str | None]] = []
        self._keys: dict[str, tuple[tuple[str, str], int, Any]] = {}
        self._numbers = itertools.count(1)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.reply()

            def do_GET(self) -> None:
                self.reply()

            def reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                key = self.headers.get("Idempotency-Key")
                allowed = self.headers.get("Authorization") == f"Bearer {KEY}"
                status, answer = fake.answer(self.command, self.path, body, key, allowed)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        look_each = 0.01  # seconds until close() is noticed
        Thread(target=self._server.serve_forever, args=(look_each,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(
        self, method: str, path: str, body: str, key: str | None, allowed: bool
    ) -> tuple[int, Any]:
        try:
            if self.broken:
                raise StripeRefused(self.broken, "Something is wrong", type="api_error")
            if not allowed:
                raise StripeRefused(401, "Invalid API Key provided")
            if method == "POST" and key and key in self._keys:
                call, status, answer = self._keys[key]
                if call != (path, body):
                    raise StripeRefused(
                        400, "Keys can only be used with the same parameters",
                        type="idempotency_error",
                    )  # fmt: skip
                return status, answer
            url = urlsplit(path)
            fields = dict(parse_qsl(body or url.query, keep_blank_values=True))
            self.calls.append((f"{method} {url.path}", fields, key))
            answer = self._route(method, url.path.removeprefix("/v1").strip("/").split("/"), fields)
            if method == "POST" and key:
                self._keys[key] = ((path, body), 200, json.loads(json.dumps(answer)))
            return 200, answer
        except StripeRefused as refused:
            return refused.status, refused.body

    def _route(self, method: str, path: list[str], fields: dict[str, str]) -> Any:
        match method, path:
            case "POST", ["checkout", "sessions"]:
                return self._create(fields)
            case "GET", ["checkout", "sessions"]:
                wanted = fields.get("payment_intent")  # without it: all; newest first, as at Stripe
                sessions = reversed(self.sessions.values())
                found = [s for s in sessions if wanted in (None, s["payment_intent"])]
                return {"object": "list", "data": found, "has_more": False, "url": "/v1/x"}
            case "GET", ["checkout", "sessions", name]:
                return self._shown(name, [v for k, v in fields.items() if "expand" in k])
            case "POST", ["checkout", "sessions", name, "expire"]:
                session = self._session(name)
                if session["status"] != "open":
                    raise StripeRefused(400, "Only Checkout Sessions with a status in [open] ...")
                session["status"] = "expired"
                return session
            case "POST", ["refunds"]:
                return self._refund(fields)
        raise StripeRefused(404, f"Unrecognized request URL ({method}: {'/'.join(path)})")

    def _session(self, name: str) -> dict[str, Any]:
        if name not in self.sessions:
            raise StripeRefused(
                404, f"No such checkout.session: {name}", code="resource_missing", param="session"
            )
        return self.sessions[name]

    def _shown(self, name: str, expand: list[str]) -> dict[str, Any]:
        session = dict(self._session(name))
        if "payment_intent.latest_charge" in expand and session["payment_intent"]:
            session["payment_intent"] = self.intents[session["payment_intent"]]
        return session

    def _create(self, fields: dict[str, str]) -> dict[str, Any]:
        now = int(time.time())
        expires_at = int(fields.get("expires_at", now + 24 * 3600))
        if not now + 30 * 60 <= expires_at <= now + 24 * 3600:
            raise StripeRefused(
                400, "The `expires_at` timestamp must be 30 minutes to 24 hours from now",
                param="expires_at",
            )  # fmt: skip
        price = "line_items[0][price_data]"
        if not fields[f"{price}[product_data][name]"]:
            raise StripeRefused(400, "You passed an empty string", param="name")
        currency = fields[f"{price}[currency]"]
        amount = int(fields[f"{price}[unit_amount]"])
        if currency != currency.lower() or len(currency) != 3:
            raise StripeRefused(400, f"Invalid currency: {currency}")
        if currency in ("kwd", "bhd", "jod", "omr", "tnd") and amount % 10:
            raise StripeRefused(400, "The last digit has to be 0")
        if currency == "isk" and amount % 100:
            raise StripeRefused(400, "Amounts have to be divisible by 100")
        name = f"cs_test_{next(self._numbers)}"
        self.sessions[name] = {
            "id": name,
            "object": "checkout.session",
            "amount_total": amount,
            "client_reference_id": fields["client_reference_id"],
            "currency": currency,
            "expires_at": expires_at,
            "metadata": _under("metadata", fields),
            "mode": fields["mode"],
            "payment_intent": None,
            "payment_status": "unpaid",
            "status": "open",
            "url": f"https://checkout.stripe.com/c/pay/{name}",
        }
        self.sessions[name]["_intent_metadata"] = _under("payment_intent_data[metadata]", fields)
        return self.sessions[name]

    def _refund(self, fields: dict[str, str]) -> dict[str, Any]:
        intent = self.intents[fields["payment_intent"]]
        charge = intent["latest_charge"]
        left = charge["amount"] - charge["amount_refunded"]
        if charge.get("disputed"):
            raise StripeRefused(
                400, f"Charge {charge['id']} has been charged back.", code="charge_disputed"
            )
        if not left:
            raise StripeRefused(
                400, f"Charge {charge['id']} has already been refunded.",
                code="charge_already_refunded",
            )  # fmt: skip
        amount = int(fields.get("amount", left))
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        refund = {"id": f"re_{next(self._numbers)}", "object": "refund", "amount": amount}
        refund |= {"payment_intent": intent["id"], "status": "succeeded", "failure_reason": None}
        self.refunds.append(refund)
        return refund

    # What happens in a browser, or at Stripe

    def customer_pays(self, name: str, *, bank: str = "succeeded") -> tuple[bytes, str]:
        """bank: succeeded, or processing for a payment method that takes days."""
        session = self._session(name)
        assert session["status"] == "open"
        number = next(self._numbers)
        charge = {
            "id": f"ch_{number}",
            "object": "charge",
            "amount": session["amount_total"],
            "amount_refunded": 0,
            "created": int(time.time()),
            "currency": session["currency"],
            "metadata": session["_intent_metadata"],
            "payment_intent": f"pi_{number}",
            "refunded": False,
        }
        self.intents[f"pi_{number}"] = {
            "id": f"pi_{number}",
            "object": "payment_intent",
            "status": bank,
            "latest_charge": charge,
        }
        session |= {
            "status": "complete",
            "payment_intent": f"pi_{number}",
            "payment_status": "paid" if bank == "succeeded" else "unpaid",
        }
        return self.event("checkout.session.completed", session)

    def bank_decides(self, name: str, bank: str) -> tuple[bytes, str]:
        """bank: succeeded, or requires_payment_method after a failure."""
        session = self._session(name)
        self.intents[session["payment_intent"]]["status"] = bank
        if bank == "succeeded":
            session["payment_status"] = "paid"
            return self.event("checkout.session.async_payment_succeeded", session)
        return self.event("checkout.session.async_payment_failed", session)

    def expires(self, name: str) -> tuple[bytes, str]:
        self._session(name)["status"] = "expired"
        return self.event("checkout.session.expired", self._session(name))

    def staff_refunds(self, name: str, amount: int | None = None) -> tuple[bytes, str]:
        intent = self._session(name)["payment_intent"]
        fields = {"payment_intent": intent} | ({"amount": str(amount)} if amount else {})
        self._refund(fields)
        return self.event("charge.refunded", self.intents[intent]["latest_charge"])

    def event(self, kind: str, thing: Any) -> tuple[bytes, str]:
        """The body and the header Stripe-Signature of an event."""
        event = {
            "id": f"evt_{next(self._numbers)}",
            "object": "event",
            "api_version": "2026-01-01",
            "created": int(time.time()),
            "data": {"object": thing},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
        return self.signed(json.dumps(event, indent=2).encode())

    def signed(self, body: bytes, age_seconds: int = 0) -> tuple[bytes, str]:
        at = str(int(time.time()) - age_seconds)
        mac = hmac.new(self.secret.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
        return body, f"t={at},v1={mac},v0={'0' * 64}"


def _under(prefix: str, fields: dict[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(prefix)[1:-1]: value
        for name, value in fields.items()
        if name.startswith(f"{prefix}[")
    }
