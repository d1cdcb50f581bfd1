"""The checkout page: what a customer's browser shows of a session.

It is one answer: nothing is loaded from anywhere, which its Content-Security-Policy also says. It
works without JavaScript: Pay and Decline are forms, and the page then reloads itself now and again.
With JavaScript the time left counts down every second.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from html import escape

from flashsale.currencies import money
from flashsale.simulator.messages import PaymentSession

_RELOAD_SECONDS = 10

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --dim: #5b6475; --paper: #fff; --back: #eef0f4;
  --line: #d5d9e2; --go: #0b6b3a; --stop: #a3242b }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceff5; --dim: #a6afc0; --paper: #1c212b; --back: #12151c; --line: #3a4252;
    --go: #2f9e63; --stop: #f0868c }
}
* { box-sizing: border-box }
body { margin: 0; padding: 1.5rem 1rem; background: var(--back); color: var(--ink);
  font: 1.0625rem/1.5 system-ui, sans-serif }
main { max-width: 26rem; margin: 0 auto; padding: 1.5rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: .75rem }
h1 { margin: 0; font-size: 1.25rem; line-height: 1.3; overflow-wrap: anywhere }
.amount { margin: .25rem 0 1rem; font-size: 2rem; font-weight: 600; line-height: 1.2;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
.left { font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap }
.note { padding: .75rem 1rem; border-left: .25rem solid var(--stop); background: var(--back) }
.good { border-color: var(--go) }
form { margin: .75rem 0 0 }
button { width: 100%; min-height: 3rem; padding: .5rem 1rem; border: 1px solid var(--line);
  border-radius: .5rem; background: none; color: var(--ink); font: inherit; cursor: pointer }
button.pay { border-color: #0b6b3a; background: #0b6b3a; color: #fff; font-weight: 600 }
small { display: block; margin-top: 1.25rem; color: var(--dim); overflow-wrap: anywhere }
"""

# The server says how many seconds are left, because the browser's clock may be wrong. It is only
# asked how much time has passed, which performance.now() does not know after a phone has slept.
_SCRIPT = """
const left = document.getElementById("left");
const end = Date.now() + 1000 * Number(left.dataset.seconds);
const two = (n) => String(n).padStart(2, "0");
const show = () => {
  const s = Math.max(0, Math.ceil((end - Date.now()) / 1000));
  const hours = Math.floor(s / 3600), minutes = Math.floor(s / 60) % 60;
  left.textContent = (hours ? hours + ":" + two(minutes) : minutes) + ":" + two(s % 60);
  if (s === 0) { clearInterval(timer); location.reload(); }
};
const timer = setInterval(show, 250);
show();
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
    "X-Content-Type-Options": "nosniff",
}


def checkout_page(session: PaymentSession, now: datetime) -> str:
    """The page of a session. Whatever the service sent is escaped."""
    order = session.order_id or session.payment_id
    title = session.description or f"Order {order}"
    seconds = None
    if session.expires_at is not None and session.status == "open":
        seconds = (session.expires_at - now).total_seconds()
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="amount">{escape(money(session.amount, session.currency))}</p>',
        *(_open(session, seconds) if session.status == "open" else [_ended(session)]),
        f"<small>Order {escape(order)} · payment {escape(session.payment_id)} · simulated payment "
        "provider: no real money moves.</small>",
    ]
    counts = seconds is not None and seconds > 0
    reload = f'<noscript><meta http-equiv="refresh" content="{_RELOAD_SECONDS}"></noscript>'
    return _document(
        title, parts, reload if counts else "", f"<script>{_SCRIPT}</script>" if counts else ""
    )


def problem_page(title: str, detail: str) -> str:
    """The page of a refusal."""
    return _document(title, [f"<h1>{escape(title)}</h1>", f"<p>{escape(detail)}</p>"])


def _open(session: PaymentSession, seconds: float | None) -> list[str]:
    parts = []
    if session.failed_at is not None:
        parts.append('<p class="note">The payment was declined. You can try again here.</p>')
    if seconds is not None and session.expires_at is not None:
        until = f"until {_time(session.expires_at)}"
        if seconds > 0:
            parts.append(
                f'<p>Time left to pay: <span class="left" id="left" data-seconds="{seconds:.3f}">'
                f"{_left(seconds)}</span><br>{until}</p>"
            )
        else:
            parts.append(
                f'<p class="note">There was time to pay {until}. Money that comes now may be too '
                "late, and then it goes back.</p>"
            )
    name = escape(session.session_id)
    for verb, label in (("pay", "Pay " + money(session.amount, session.currency)), ("decline", "")):
        button = f'<button class="{verb}">{escape(label or "Decline")}</button>'
        parts.append(f'<form method="post" action="{name}/{verb}">{button}</form>')
    return parts


def _ended(session: PaymentSession) -> str:
    at = {
        "captured": session.captured_at,
        "refunded": session.refunded_at,
        "failed": session.failed_at,
        "voided": session.voided_at,
    }[session.status]
    when = f"on {_time(at)}" if at else ""
    text = {
        "captured": f"Paid {when}. Thank you. The shop tells you whether the unit is yours.",
        "refunded": f"Refunded {when}. All the money is on its way back.",
        "failed": f"The payment was declined {when}. Ask the shop for another attempt.",
        "voided": f"The shop has closed this payment {when}. Nothing was taken.",
    }[session.status]
    good = " good" if session.status == "captured" else ""
    return f'<p class="note{good}">{text}</p>'


def _document(title: str, parts: list[str], head: str = "", end: str = "") -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{head}</head>\n"
        f"<body><main>{''.join(parts)}</main>{end}</body></html>\n"
    )


def _left(seconds: float) -> str:
    whole = max(0, int(-(-seconds // 1)))
    hours, minutes = whole // 3600, whole // 60 % 60
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole % 60:02}"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
