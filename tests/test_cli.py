"""The commands' help, their exit statuses, and their messages for wrong use."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashsale.cli import build_parser, main

COMMANDS = ("dev", "demo", "serve", "worker", "provider", "migrate", "psql", "export")


@contextmanager
def restored_signals() -> Iterator[None]:
    """Restores pytest's signal handlers, because `flashsale dev` replaces them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "FLASHSALE_" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sell"],
        ["dev", "--port", "0"],
        ["dev", "--port", "http"],
        ["dev", "--port", "70000"],
        ["demo", "--customers", "-1"],
        ["psql", "--as", "root"],
    ],
)
def test_wrong_use_is_status_2_and_says_why(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "flashsale" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "worker", "migrate"])
def test_a_missing_database_is_reported(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLASHSALE_DATABASE_URL", raising=False)
    assert main([command]) == 2
    assert "FLASHSALE_DATABASE_URL is not set" in capsys.readouterr().err


def test_a_missing_secret_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLASHSALE_WEBHOOK_SECRET", raising=False)
    assert main(["provider"]) == 2
    assert "FLASHSALE_WEBHOOK_SECRET is not set" in capsys.readouterr().err


def test_a_missing_database_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--database-url", "postgresql://me:geheim@127.0.0.1:1/x"]) == 1
    said = capsys.readouterr().err
    assert "could not be used" in said
    assert "geheim" not in said


def test_psql_without_a_service_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLASHSALE_DATABASE_URL", raising=False)
    assert main(["psql", "--data-dir", "/nonexistent"]) == 2
    assert "start `make run` or `flashsale dev`" in capsys.readouterr().err


def test_the_parser_knows_all_commands() -> None:
    assert all(name in build_parser().format_help() for name in COMMANDS)


def test_a_malformed_url_is_reported_without_its_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["migrate", "--database-url", "postgres:/me:geheim@h/x"]) == 2
    said = capsys.readouterr().err
    assert "must be a URL like postgresql://" in said
    assert "geheim" not in said


def test_without_the_extra_the_demo_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "flashsale.dev.demo", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo"]) == 1
    said = capsys.readouterr().err
    assert "flashsale demo needs the package rich.console: install the extra" in said
    assert "pip install 'flashsale[embedded]'" in said


def test_a_port_that_is_taken_is_named_with_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLASHSALE_DATABASE_URL", raising=False)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as taken:
            taken.bind((host, 0))
            taken.listen()
            port = taken.getsockname()[1]
            arguments = ["dev", "--host", host, "--port", str(port), "--data-dir", str(tmp_path)]
            with restored_signals():
                assert main(arguments) == 2
        said = capsys.readouterr().err
        assert f"{host}:{port} can't be used (Address already in use)" in said
        assert "Another port: --port or FLASHSALE_PORT" in said
