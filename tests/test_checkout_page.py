"""The checkout page of the simulated provider: over HTTP, and in headless Chromium (Debian's)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from flashsale.currencies import DECIMALS, money
from simulator_support import Stage, staged

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
HOSTILE = """<script>alert(1)</script>"'& <b>bold</b>"""


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield await stage.start()


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def page(provider: Stage, session: Any) -> httpx.Response:
    return await provider.client.get(session["checkout_url"], headers=BROWSER)


async def press(provider: Stage, session: Any, button: str) -> httpx.Response:
    """Submits the form with this button, as a browser does without JavaScript."""
    url = session["checkout_url"]
    shown = (await page(provider, session)).text
    form = re.search(rf'<form method="post" action="([^"]+)"><button[^>]*>{button}', shown)
    assert form, shown
    address = httpx.URL(url).join(form[1])
    return await provider.client.post(
        address, headers=BROWSER | {"Content-Type": "application/x-www-form-urlencoded"}
    )


def text(answer: httpx.Response) -> str:
    body = re.sub(r"<(style|script|noscript)>.*?</\1>", "", answer.text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_amounts_are_in_the_currency_s_own_format() -> None:
    written = [money(*it) for it in ((4900, "EUR"), (1250, "KWD"), (4900, "JPY"), (5, "USD"))]
    assert written == ["49.00 EUR", "1.250 KWD", "4900 JPY", "0.05 USD"]
    assert money(12345, "CLF") == "1.2345 CLF"
    assert money(10**15, "EUR") == "10000000000000.00 EUR"
    assert all(len(code) == 3 and code.isupper() for code in DECIMALS)


async def test_a_browser_gets_a_page_and_a_program_gets_json(provider: Stage) -> None:
    session = await provider.open(
        "7", amount=4900, order_id="8", description="Shoe", expires_at=in_seconds(90)
    )
    answer = await page(provider, session)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    said = text(answer)
    assert said.startswith("Shoe Shoe 49.00 EUR Time left to pay: 1:")
    assert "Pay 49.00 EUR Decline" in said and "Order 8" in said
    for accept in ("*/*", "application/json", ""):
        json = await provider.client.get(session["checkout_url"], headers={"Accept": accept})
        assert json.json()["session_id"] == session["session_id"]
        assert json.headers["vary"] == answer.headers["vary"] == "Accept"


async def test_a_customer_pays_on_the_page_and_sees_it(provider: Stage) -> None:
    session = await provider.open(description="Shoe", expires_at=in_seconds(90))
    answer = await press(provider, session, "Pay")
    assert answer.status_code == 303
    assert httpx.URL(answer.url).join(answer.headers["location"]) == session["checkout_url"]
    said = text(await page(provider, session))
    assert "Paid on 2" in said and "Decline" not in said and "Time left" not in said
    assert provider.moves() == [("captured", "1")]
    # a second click on a page that is still open changes nothing
    again = await provider.client.post(session["checkout_url"] + "/pay", headers=BROWSER)
    late = await provider.client.post(session["checkout_url"] + "/decline", headers=BROWSER)
    assert again.status_code == late.status_code == 303
    assert provider.moves() == [("captured", "1")]


async def test_a_customer_declines_on_the_page_and_sees_it(provider: Stage) -> None:
    session = await provider.open()
    await press(provider, session, "Decline")
    said = text(await page(provider, session))
    assert "The payment was declined on 2" in said and "Pay 10.00" not in said
    await provider.faults(decline_keeps_open=1)
    other = await provider.open("2")
    await press(provider, other, "Decline")
    assert "declined. You can try again here. Pay 10.00 EUR" in text(await page(provider, other))
    await press(provider, other, "Pay")
    assert provider.moves() == [("failed", "1"), ("failed", "2"), ("captured", "2")]


async def test_the_page_tells_every_end(provider: Stage) -> None:
    voided, refunded = await provider.open("1"), await provider.open("2")
    await provider.void(voided)
    await provider.complete(refunded)
    await provider.refund(refunded)
    assert "The shop has closed this payment on 2" in text(await page(provider, voided))
    assert "Refunded on 2" in text(await page(provider, refunded))
    over = await provider.open("3", expires_at=in_seconds(-5))
    said = text(await page(provider, over))
    assert "Money that comes now may be too late" in said and "Time left" not in said
    endless = text(await page(provider, await provider.open("4")))
    assert "left" not in endless and "too late" not in endless and "Pay 10.00 EUR" in endless


async def test_a_browser_gets_refusals_as_a_page(provider: Stage) -> None:
    url = f"{provider.url}/sessions/cs_none"
    for answer in (
        await provider.client.get(url, headers=BROWSER),
        await provider.client.post(url + "/pay", headers=BROWSER),
    ):
        assert answer.status_code == 404
        assert text(answer) == "Not Found Not Found There is no such session."


async def test_all_text_is_escaped(provider: Stage) -> None:
    names = {"description": HOSTILE, "order_id": "<i>8</i>"}
    session = await provider.open("<u>7</u>", **names)
    shown = (await page(provider, session)).text
    assert not re.search(r"<(b|i|u)>|<script>alert|[^=]\"'&", shown)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp; &lt;b&gt;bold" in shown
    assert "&lt;i&gt;8&lt;/i&gt;" in shown and "&lt;u&gt;7&lt;/u&gt;" in shown


async def test_the_page_loads_nothing_and_is_kept_nowhere(provider: Stage) -> None:
    answer = await page(provider, await provider.open(expires_at=in_seconds(90)))
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["form-action"] == "'self'"
    assert "unsafe" not in str(policy) and "http" not in str(policy)
    assert not re.search(
        r"(src|href)=|@import|url\(|//", answer.text.replace("<!doctype html>", "")
    )
    assert answer.headers["cache-control"] == "no-store"


# In a browser

CHROMIUM = shutil.which("chromium")
in_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is missing: apt-get install chromium"
)
PHONE = "360,740"


async def chromium(folder: Path, url: str, *flags: str) -> str:
    """What headless Chromium prints, with a profile of its own and a phone's width."""
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size={PHONE}", *flags, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 100)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, errors.decode()[-2000:]
    refused = [line for line in errors.decode().splitlines() if "Content Security Policy" in line]
    assert refused == []
    return out.decode()


@in_chromium
async def test_the_time_left_counts_down_in_a_browser(provider: Stage, tmp_path: Path) -> None:
    session = await provider.open(description=HOSTILE, expires_at=in_seconds(3600 + 300))
    dom = await chromium(
        tmp_path,
        session["checkout_url"],
        *("--enable-logging=stderr", "--virtual-time-budget=65000", "--dump-dom"),
    )
    left = re.search(r'data-seconds="([\d.]+)">1:0(\d):(\d\d)<', dom)
    assert left, dom
    shown = 3600 + 60 * int(left[2]) + int(left[3])
    assert 55 <= float(left[1]) - shown <= 70, dom  # a minute later
    assert "&lt;script&gt;alert(1)" in dom and "<b>" not in dom


@in_chromium
async def test_the_page_fits_a_phone(provider: Stage, tmp_path: Path) -> None:
    name = "Sneaker, size 42, limited edition " + "w" * 120
    session = await provider.open(
        order_id="9" * 40, description=name, amount=10**15, expires_at=in_seconds(290)
    )
    # The page itself has no other script, so the test measures what a screenshot shows.
    shot = tmp_path / "phone.png"
    await chromium(
        tmp_path, session["checkout_url"], "--enable-logging=stderr", f"--screenshot={shot}"
    )
    assert shot.read_bytes().startswith(b"\x89PNG")
    framed = tmp_path / "frame.html"
    framed.write_text(measuring((await page(provider, session)).text))
    dom = await chromium(tmp_path, framed.as_uri(), "--virtual-time-budget=1000", "--dump-dom")
    widths = re.search(r'data-widths="(\d+) (\d+) (\d+)"', dom)
    assert widths, dom
    inner, content, smallest_button = map(int, widths.groups())
    assert content <= inner
    assert smallest_button >= 44  # CSS pixels that a finger hits


def measuring(document: str) -> str:
    """The page with a script that writes down its widths, and the lowest button's height."""
    script = """<script>addEventListener("load", () => {
      const buttons = [...document.querySelectorAll("button")];
      document.body.dataset.widths = [innerWidth, document.documentElement.scrollWidth,
        Math.min(...buttons.map((b) => Math.round(b.getBoundingClientRect().height)))].join(" ");
    })</script>"""
    return document.replace("</body>", script + "</body>")


@in_chromium
async def test_the_page_works_in_a_browser_without_javascript(
    provider: Stage, tmp_path: Path
) -> None:
    # given a browser that runs no scripts
    settings = tmp_path / "profile" / "Default" / "Preferences"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"profile": {"default_content_setting_values": {"javascript": 2}}}')
    session = await provider.open(description="Shoe", expires_at=in_seconds(290))
    # then the page says how much time was left, and reloads itself to say it again
    flags = ("--virtual-time-budget=5000", "--dump-dom")
    dom = await chromium(tmp_path, session["checkout_url"], *flags)
    left = re.search(r'data-seconds="([\d.]+)">4:(\d\d)<', dom)
    assert left, dom
    assert 0 <= 240 + int(left[2]) - float(left[1]) <= 1
    assert re.search(r'<noscript><meta http-equiv="refresh" content="\d+"></noscript>', dom)
    # and its buttons work
    await press(provider, session, "Pay")
    assert "Paid on" in await chromium(tmp_path, session["checkout_url"], *flags)


class Tab:
    """A tab of headless Chromium, told what to do over a pipe (the DevTools protocol)."""

    def __init__(self, folder: Path) -> None:
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{reads} 4>&{writes}', str(CHROMIUM), *flags.split(),
             f"--user-data-dir={folder / 'tab'}", "--remote-debugging-pipe"],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._answers = os.fdopen(self._from, "rb")
        self._session: dict[str, str] = {}
        self._number = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._heard()).get("id") != self._number:
            pass  # what happens in the tab
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def _heard(self) -> Any:
        heard = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            heard += byte
        return json.loads(heard)

    def text(self) -> str:
        with suppress(RuntimeError):  # between two pages
            found = self.call("Runtime.evaluate", expression="document.body.innerText")
            return str(found["result"].get("value"))
        return ""

    def press(self, key: str) -> None:
        typed = {"key": key, "code": key, "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **typed, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **typed)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        self._answers.close()


@in_chromium
@pytest.mark.parametrize(
    ("tabs", "says", "moved"),
    [(1, "Paid on", "captured"), (2, "The payment was declined", "failed")],
)
@pytest.mark.parametrize("scripts", [True, False])
async def test_the_page_is_used_by_the_keyboard_alone(
    provider: Stage, tmp_path: Path, tabs: int, says: str, moved: str, scripts: bool
) -> None:
    session = await provider.open(description="Shoe", expires_at=in_seconds(290))

    def use() -> None:
        tab = Tab(tmp_path)
        try:
            tab.call("Emulation.setScriptExecutionDisabled", value=not scripts)
            tab.call("Page.navigate", url=session["checkout_url"])
            wait_for(tab, "Time left to pay")
            for _ in range(tabs):
                tab.press("Tab")
            tab.press("Enter")
            wait_for(tab, says)
        finally:
            tab.close()

    await asyncio.to_thread(use)
    assert provider.moves() == [(moved, "1")]


def wait_for(tab: Tab, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in (shown := tab.text()):
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)
