"""Settings come from the environment and from flags. The error for a bad one names it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from flashsale.settings import Settings, SettingsError, without_password


def test_the_environment_sets_and_flags_win() -> None:
    environ = {"FLASHSALE_PORT": "9000", "FLASHSALE_PAY_CONNECTIONS": "3", "HOME": "/"}
    settings = Settings.from_env(environ, port=9001, host=None)
    assert (settings.port, settings.pay_connections, settings.host) == (9001, 3, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        (
            "FLASHSALE_PAY_CONNECTIONS",
            "abc",
            "FLASHSALE_PAY_CONNECTIONS: 'abc' is not a whole number",
        ),
        ("FLASHSALE_SSE_POLL_SECONDS", "soon", "is not a number"),
        ("FLASHSALE_PAY_CONNECTIONS", "0", "must be more than 0"),
        ("FLASHSALE_SSE_POLL_SECONDS", "nan", "must be more than 0"),
        ("FLASHSALE_SSE_POLL_SECONDS", "inf", "must be more than 0, and finite"),
        ("FLASHSALE_PORT", "65536", "FLASHSALE_PORT: must be a port"),
        ("FLASHSALE_STATEMENT_CACHE_SIZE", "-1", "must be 0 or more"),
        ("FLASHSALE_DATABASE_URL", "db.example/shop", "must be a URL like postgresql://"),
        ("FLASHSALE_POOLSIZE", "3", "no such setting"),
        ("FLASHSALE_EVENTS_URL", "shop.example/events", "must be a URL like https://shop.example/"),
        ("FLASHSALE_EVENTS_URL", "ftp://shop.example/", "must be a URL like https://"),
        ("FLASHSALE_EVENTS_URL", "https:///events", "must be a URL like https://"),
        ("FLASHSALE_EVENTS_URL", "https://shop.example:port/", "must be a URL like https://"),
        ("FLASHSALE_EVENTS_URL", "https://[::1/", "must be a URL like https://"),
        ("FLASHSALE_EVENTS_URL", "https://shop.example/a b", "must be a URL like https://"),
        ("FLASHSALE_EVENTS_URL", "https://shop.example/\r\nX: y", "must be a URL like https://"),
        ("FLASHSALE_EVENTS_URL", "https://me:geheim@shop.example/", "without a user"),
        ("FLASHSALE_EVENTS_URL", "https://shop.example/#here", "without a user"),
        ("FLASHSALE_EVENTS_SECRET", "whsec_geheim", "secret 1 must be whsec_ and the base64 of 24"),
        ("FLASHSALE_DELIVERY_TIMEOUT_SECONDS", "3601", "must be at most 3600"),
        ("FLASHSALE_DELIVERY_BACKOFF_MAX_SECONDS", "3601", "must be at most 3600"),
        ("FLASHSALE_DELIVERY_BACKOFF_SECONDS", "61", "at most FLASHSALE_DELIVERY_BACKOFF_MAX_S"),
        ("FLASHSALE_PROVIDER_TIMEOUT_SECONDS", "29", "at most half of FLASHSALE_JOB_LEASE_SECONDS"),
    ],
)
def test_a_bad_setting_is_named(name: str, given: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        Settings.from_env({name: given})
    assert "geheim" not in str(refused.value)


def test_variables_that_are_for_tests_are_skipped_and_not_known_one_by_one() -> None:
    assert Settings.from_env({"FLASHSALE_TEST_ANYTHING": "x"}) == Settings()
    with pytest.raises(SettingsError, match="no such setting"):
        Settings.from_env({"FLASHSALE_TESTING": "x"})
    source = Path(sys.modules[Settings.__module__].__file__ or "").read_text()
    assert set(re.findall(r"FLASHSALE_TEST_\w*", source)) == {"FLASHSALE_TEST_"}


KUBERNETES = {
    # a Service named flashsale, with a named port
    "FLASHSALE_SERVICE_HOST": "10.96.0.17",
    "FLASHSALE_SERVICE_PORT": "80",
    "FLASHSALE_SERVICE_PORT_HTTP": "80",
    "FLASHSALE_PORT": "tcp://10.96.0.17:80",
    "FLASHSALE_PORT_80_TCP": "tcp://10.96.0.17:80",
    "FLASHSALE_PORT_80_TCP_PROTO": "tcp",
    "FLASHSALE_PORT_80_TCP_PORT": "80",
    "FLASHSALE_PORT_80_TCP_ADDR": "10.96.0.17",
    # others beside it: flashsale-provider, of which one variable is named like a setting, and IPv6
    "FLASHSALE_PROVIDER_SERVICE_HOST": "fd00::11",
    "FLASHSALE_PROVIDER_SERVICE_PORT": "8001",
    "FLASHSALE_PROVIDER_PORT": "tcp://[fd00::11]:8001",
    "FLASHSALE_PROVIDER_PORT_8001_TCP_ADDR": "fd00::11",
    "FLASHSALE_STATS_2_PORT_8125_UDP": "udp://10.96.0.18:8125",
}


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_variables_of_a_kubernetes_service_are_no_settings(name: str) -> None:
    assert Settings.from_env({name: KUBERNETES[name]}) == Settings()


def test_the_variables_of_kubernetes_do_not_hide_a_setting() -> None:
    assert Settings.from_env({**KUBERNETES, "FLASHSALE_HOST": "::"}, port=81).port == 81
    assert Settings.from_env({"FLASHSALE_PORT": "8002"}).port == 8002


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("FLASHSALE_SERVICE_HOST", "my host"),
        ("FLASHSALE_SERVICE_PORT", "tcp"),
        ("FLASHSALE_SERVICE_PORTS", "80"),
        ("FLASHSALE_PORT", "tcp://"),
        ("FLASHSALE_PORT", "http://10.96.0.17:80"),
        ("FLASHSALE_PORTS", "tcp://10.96.0.17:80"),
        ("FLASHSALE_PORT_TCP", "tcp://10.96.0.17:80"),
        ("FLASHSALE_PORT_80_TCP", "80"),
        ("FLASHSALE_PORT_80_TCP_PROTO", "http"),
        ("FLASHSALE_PORT_80_TCP_ADR", "10.96.0.17"),
    ],
)
def test_what_only_resembles_a_variable_of_kubernetes_is_told(name: str, given: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_env({name: given})


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        database_url="postgresql://me:geheim@db/x",
        webhook_secret="geheim",
        events_url="https://shop.example/events?token=geheim",
        events_secret="whsec_" + "geheim00" * 4,
    )
    assert "geheim" not in repr(settings)
    assert "geheim" not in str(settings.__rich_repr__())  # rich would go around our repr
    assert "geheim" not in without_password("host=db password=geheim user=me")


def test_a_missing_required_setting_is_reported() -> None:
    with pytest.raises(SettingsError, match="FLASHSALE_DATABASE_URL is not set"):
        Settings().need_database_url()
    with pytest.raises(SettingsError, match="FLASHSALE_WEBHOOK_SECRET is not set"):
        Settings().need_webhook_secret()
    with pytest.raises(SettingsError, match="FLASHSALE_EVENTS_SECRET is not set"):
        Settings().need_events_secret()


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_is_used_and_documented(name: str) -> None:
    root = Path(__file__).parent.parent
    sources = [p.read_text() for p in (root / "src").rglob("*.py") if p.name != "settings.py"]
    assert any(re.search(rf"\b{name}\b|need_{name}\b", source) for source in sources)
    assert f"| `{name.upper()}` |" in (root / "docs" / "reference" / "settings.md").read_text()
