"""Deliveries are signed as the Standard Webhooks specification says."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest

from flashsale.standard_webhooks import headers, keys_of

# The example that the specification's own libraries test themselves with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID, UNIX_SECONDS, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def another_way(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """The signature by the definition of HMAC in RFC 2104, without the module hmac."""
    key = base64.b64decode(secret.split("_")[1]).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key))
    inner.update(message_id.encode() + b"." + timestamp.encode() + b"." + body)
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner.digest())
    return "v1," + base64.b64encode(outer.digest()).decode()


def secret(size: int = 32) -> str:
    return "whsec_" + base64.b64encode(os.urandom(size)).decode()


def test_the_example_of_the_specification_has_its_signature() -> None:
    assert headers(keys_of(SECRET), MESSAGE_ID, UNIX_SECONDS, BODY) == {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }
    assert another_way(SECRET, MESSAGE_ID, "1614265330", BODY) == SIGNATURE


@pytest.mark.parametrize("size", [24, 32, 63, 64])
@pytest.mark.parametrize("body", [b"", b"{}", "{'é': \0}".encode(), b"x" * 100_000])
def test_a_second_way_comes_to_the_same_signature(size: int, body: bytes) -> None:
    made = secret(size)
    signed = headers(keys_of(made), "evt_1", 1_700_000_000, body)
    assert signed["webhook-signature"] == another_way(made, "evt_1", "1700000000", body)


def test_while_secrets_are_rotated_each_of_them_signs() -> None:
    old, new = secret(), secret()
    for given in (f"{new} {old}", f"  {new}\n{old} "):
        signed = headers(keys_of(given), "evt_1", 1, b"x")["webhook-signature"].split(" ")
        assert signed == [another_way(it, "evt_1", "1", b"x") for it in (new, old)]


def test_id_time_and_body_are_all_signed() -> None:
    keys = keys_of(SECRET)
    changed = [
        headers(keys, *it)["webhook-signature"]
        for it in [
            (MESSAGE_ID, UNIX_SECONDS, BODY),
            (MESSAGE_ID + "x", UNIX_SECONDS, BODY),
            (MESSAGE_ID, UNIX_SECONDS + 1, BODY),
            (MESSAGE_ID, UNIX_SECONDS, BODY + b" "),
        ]
    ]
    assert len(set(changed)) == 4


@pytest.mark.parametrize("message_id", ["", "evt.1", "evt 1", "evt_1\r\nX: y", "é", "x" * 256])
def test_an_id_that_a_receiver_could_misread_is_refused(message_id: str) -> None:
    with pytest.raises(ValueError, match="no id of a message"):
        headers(keys_of(SECRET), message_id, 1, b"")


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "geheim",
        secret()[6:],
        "whsec_",
        "whsec_geheim!",
        "WHSEC_" + secret()[6:],
        secret(23),
        secret(65),
        f"{secret()},{secret()}",
        f"{secret()} geheim",
        " ".join(secret() for _ in range(9)),
    ],
    ids=[
        "none",
        "a space",
        "a word",
        "no prefix",
        "only the prefix",
        "not base64",
        "capitals",
        "too short",
        "too long",
        "a comma",
        "one of two",
        "nine",
    ],  # the values differ between the processes that run the tests
)
def test_a_bad_secret_is_refused_and_not_quoted(given: str) -> None:
    with pytest.raises(ValueError, match=r"secret \d must be whsec_|must have 1 to 8 secrets") as e:
        keys_of(given)
    assert not [word for word in given.split() if word != "whsec_" and word in str(e.value)]
