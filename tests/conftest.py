"""The kit's databases under the names of our tests, the whole service, and two options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from dev_support import Dev, running
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing import Clock, Connection, put_cluster, server_folder

pytest_plugins = ["flashsale.testing"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test fails the run")
    parser.addoption("--server", help="folder:port of a running server; prove/mutants keeps one")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--fail-on-skip") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("skips are failures here (--fail-on-skip)", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        session.config.getoption("--fail-on-skip")
        and reporter is not None
        and reporter.stats.get("skipped")
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Skips initdb's final sync of all disks, which would also wait for data of other programs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "sync", lambda: None)
        yield


@pytest.fixture(scope="session")
def flashsale_server(request: pytest.FixtureRequest) -> EmbeddedPostgres:
    """The kit's server, or one that runs already, because prove/mutants starts pytest often."""
    if shared := request.config.getoption("--server"):
        folder, port = shared.split(":")
        return EmbeddedPostgres(folder, port=int(port))
    kits: EmbeddedPostgres = request.getfixturevalue("flashsale_server")
    return kits


@pytest.fixture(scope="session")
def postgres(flashsale_server: EmbeddedPostgres) -> EmbeddedPostgres:
    return flashsale_server


@pytest.fixture
def database_url(flashsale_url: str) -> str:
    return flashsale_url


@pytest.fixture
def db(flashsale_db: Connection) -> Connection:
    return flashsale_db


@pytest.fixture
def clock(flashsale_clock: Clock) -> Clock:
    return flashsale_clock


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    """The whole service, as `flashsale dev` runs it; a module's tests share it."""
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            yield dev
