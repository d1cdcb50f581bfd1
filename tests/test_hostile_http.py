"""Hostile clients over real sockets: they get a 4xx or nothing, and don't affect other clients."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from dev_support import Dev
from sockets import all_answered
from support import eventually

CROWD = 300


@contextmanager
def good_clients_notice_nothing(dev: Dev) -> Iterator[None]:
    """Checks that other clients can read the items meanwhile, each time on a new connection."""
    over = threading.Event()
    problems: list[object] = []

    def read() -> None:
        while not over.wait(0.05):
            try:
                answer = httpx.get(f"http://127.0.0.1:{dev.port}/items", timeout=30)
                if answer.status_code != 200:
                    problems.append(answer)
            except httpx.HTTPError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()
    assert not problems


def connect(dev: Dev) -> socket.socket:
    return socket.create_connection(("127.0.0.1", dev.port), timeout=15)


def answer_to(dev: Dev, request: bytes, silence: float = 0.3, first: float | None = None) -> bytes:
    """All bytes until the server disconnects, or is silent for a moment after its first byte.

    first: for how long to wait for that one, if there may be none.
    """
    with connect(dev) as client:
        return all_answered(client, request, silence, first)


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /items HTTP/1.1", b"Host: x", b"Content-Type: application/json", *headers]
    if not any(h.lower().startswith((b"content-length", b"transfer")) for h in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: x", *headers]) + b"\r\n\r\n"


HOSTILE = {
    "noise": b"\x00\x01\xff\xfe\r\n\r\n" * 20,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "two lengths": post(b"{}", b"Content-Length: 2", b"Content-Length: 3"),
    "length and chunks": post(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "negative length": post(b"{}", b"Content-Length: -1"),
    "huge length": post(b"{}", b"Content-Length: 99999999999999999999999"),
    "length over the limit": post(b"{", b"Content-Length: 1000000"),
    "bad chunk": post(b"zz\r\n{}\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "endless header": get(b"/items", b"X-Long: " + b"x" * 1_000_000),
    "many headers": get(b"/items", *(b"X-%d: x" % n for n in range(5000))),
    "NUL in a header": get(b"/orders", b"X-Customer-Id: a\x00b"),
    "bytes in a header": get(b"/orders", b"X-Customer-Id: \xff\xfe\x80"),
    "line break in a header": get(b"/orders", b"X-Customer-Id: a\n b"),
    "bytes in the path": get(b"/items/\xff\xfe"),
    "escaped bytes in the path": get(b"/orders/%ff%fe%00", b"X-Customer-Id: a"),
    "dots in the path": get(b"/../../etc/passwd"),
    "huge number in the path": get(b"/items/" + b"9" * 400),
    "huge number in the query": get(b"/items?limit=" + b"9" * 400),
    "bytes in the query": get(b"/items?after=%ff%00"),
    "invalid UTF-8": post(b'{"sku": "\xff\xfe"}'),
    "lone surrogate": post(b'{"sku": "\\ud800"}'),
    "NUL in a text": post(b'{"sku": "a\\u0000", "name": "n", "price": 1, "currency": "EUR"}'),
    "deep nesting": post(b"[" * 16_000),
    "deep objects": post(b'{"a":' * 3_000),
    "huge number": post(b'{"price": ' + b"9" * 5_000 + b"}"),
    "no method": b"HELLO\r\n\r\n",
    "another version": b"GET /items HTTP/9.9\r\nHost: x\r\n\r\n",
}


def test_hostile_requests_are_refused_or_dropped(dev: Dev) -> None:
    before = httpx.get(f"http://127.0.0.1:{dev.port}/items").json()
    with good_clients_notice_nothing(dev), ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda request: answer_to(dev, request, first=1), HOSTILE.values())
        for name, answer in zip(HOSTILE, answers, strict=True):
            if answer:
                assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), (name, answer[:200])
                for leak in (b"Traceback", b"asyncpg", b"postgresql://", b'File "'):
                    assert leak not in answer, name
    assert dev.is_ready()
    assert httpx.get(f"http://127.0.0.1:{dev.port}/items").json() == before


AMBIGUOUS = {
    "an escaped slash": b"/items/%d%%2Forders",
    "an escaped digit": b"/items/%%3%d/orders",
    "an escaped letter": b"/items/%d/%%6Frders",
    "an empty segment": b"//items/%d/orders",
    "an empty segment inside": b"/items//%d/orders",
    "a slash at the end": b"/items/%d/orders/",
    "a dot": b"/items/./%d/orders",
    "two dots": b"/orders/../items/%d/orders",
    "escaped dots": b"/orders/%%2e%%2e/items/%d/orders",
    "a plus": b"/items/+%d/orders",
    "a zero in front": b"/items/0%d/orders",
    "an underscore in front": b"/items/0_%d/orders",
    "a parameter": b"/items/%d/orders;x=1",
    "a backslash": b"/items\\%d/orders",
    "a space": b"/items/%%20%d/orders",
    "an Arabic digit": b"/items/%D9%A1/orders",
    "a full-width digit": b"/items/%EF%BC%91/orders",
    "a NUL": b"/items/%d%%00/orders",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_path_that_can_be_read_in_two_ways_is_refused(dev: Dev, name: str) -> None:
    """A gateway that lets customers call only /items/{item_id}/orders must not be got round."""
    item_id = dev.put_on_sale(sku=f"shoe {name}", stock=5)
    path = AMBIGUOUS[name]
    path = path % item_id if b"%d" in path else path.replace(b"%%", b"%")
    customer = b"X-Customer-Id: ann"
    length = b"Content-Length: 0"
    for method in (b"POST", b"GET", b"PATCH"):
        answer = answer_to(dev, get(path, customer, length).replace(b"GET", method, 1))
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404")), (method, answer[:200])
    assert dev.http.get("/orders", headers={"X-Customer-Id": "ann"}).json() == []


TWICE = [b"Host: y", b"X-Customer-Id: bob", b"X-Staff-Id: s", b"Idempotency-Key: k"]
TWICE += [b"Content-Type: application/json", b"Flashsale-Signature: t=1,v1=00"]


@pytest.mark.parametrize("path", [b"/items/%d/orders", b"/items/%d", b"/webhooks/payments"])
@pytest.mark.parametrize("header", TWICE, ids=lambda h: h.decode().split(":")[0])
def test_a_header_that_comes_twice_is_refused(dev: Dev, header: bytes, path: bytes) -> None:
    item_id = dev.put_on_sale(sku=f"shoe {header!r} {path!r}", stock=5)
    path = path % item_id if b"%d" in path else path
    request = b"POST " + path + b" HTTP/1.1\r\nContent-Length: 2\r\n"
    request += b"".join(h + b"\r\n" for h in TWICE) + header + b"\r\n\r\n{}"
    answer = answer_to(dev, request)
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert header.lower().split(b":")[0] in answer.split(b"\r\n\r\n", 1)[1]
    assert dev.http.get("/orders", headers={"X-Customer-Id": "bob"}).json() == []


def test_a_request_names_its_host_exactly_once(dev: Dev) -> None:
    for path in (b"/items", b"/items/1/orders"):
        for method in (b"GET ", b"POST "):
            answer = answer_to(dev, method + path + b" HTTP/1.1\r\nX-Customer-Id: ann\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
            assert b"host" in answer
    assert answer_to(dev, b"GET /items HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"identity, gzip", b"x"])
def test_an_encoded_body_is_refused_with_words(dev: Dev, encoding: bytes) -> None:
    body = gzip.compress(b'{"wait": false}')
    length = b"Content-Length: %d" % len(body)
    headers = (b"X-Customer-Id: ann", b"Content-Type: application/json", length)
    for path in (b"/items/1/orders", b"/items", b"/webhooks/payments"):
        request = get(path, *headers, b"Content-Encoding: " + encoding) + body
        answer = answer_to(dev, request.replace(b"GET", b"POST", 1))
        assert answer.startswith(b"HTTP/1.1 415"), answer[:200]
        assert b"unsupported_media_type" in answer and b"Content-Encoding" in answer


def test_a_body_in_chunks_is_read(dev: Dev) -> None:
    item_id = dev.put_on_sale(sku="in chunks", stock=0)
    headers = (b"X-Customer-Id: ann", b"Transfer-Encoding: chunked")
    path = b"/items/%d/orders" % item_id
    for chunks, status in ((b'f\r\n{"wait": false}', b"409"), (b"7\r\nno JSON", b"400")):
        request = get(path, *headers).replace(b"GET", b"POST", 1) + chunks + b"\r\n0\r\n\r\n"
        answer = answer_to(dev, request)
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]


def half_a_header(client: socket.socket) -> None:
    client.sendall(b"GET /items HTTP/1.1\r\nX-Slow: ")


def half_a_body(client: socket.socket) -> None:
    client.sendall(post(b"{", b"Content-Length: 100"))


def half_an_order(client: socket.socket) -> None:
    head = b"POST /items/1/orders HTTP/1.1\r\nHost: x\r\nX-Customer-Id: slow\r\n"
    client.sendall(head + b"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{")


def nothing(client: socket.socket) -> None:
    """Sends nothing."""


def one_answer_and_silence(client: socket.socket) -> None:
    client.sendall(get(b"/health/live"))
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "begin", [half_a_header, half_a_body, half_an_order, nothing, one_answer_and_silence]
)
def test_many_kept_connections_hold_nobody_up(
    dev: Dev, begin: Callable[[socket.socket], None]
) -> None:
    with ExitStack() as crowd, good_clients_notice_nothing(dev):
        kept = [crowd.enter_context(connect(dev)) for _ in range(CROWD)]
        for client in kept:
            begin(client)
        assert httpx.get(f"http://127.0.0.1:{dev.port}/items", timeout=30).status_code == 200
        kept[-1].setblocking(False)
        with pytest.raises(BlockingIOError):  # the crowd is still there, and waits
            kept[-1].recv(1)
    eventually(dev.is_ready)


@pytest.mark.storm  # it takes as long as a body may
def test_a_body_that_does_not_come_is_not_waited_for(dev: Dev) -> None:
    with connect(dev) as items, connect(dev) as orders:
        half_a_body(items)
        half_an_order(orders)
        for client in (items, orders):
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408"), answer[:200]
            assert b"body_timeout" in answer


def test_requests_in_one_packet_are_answered_in_turn(dev: Dev) -> None:
    answers = answer_to(dev, get(b"/health/live") + get(b"/items/0"), silence=3)
    assert answers.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 404" in answers
