"""docker-compose.yml agrees with the command line, the settings and the files of the images."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashsale.api import app
from flashsale.cli import build_parser
from flashsale.database.migrate import migrate
from flashsale.dev.postgres import OWNER_LIMITS, RESERVED, SETTINGS
from flashsale.settings import Settings
from flashsale.simulator import app as provider
from support import connect, postgres_server, rows, value

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
OURS = ["migrate", "api", "worker", "provider"]
DATABASES = ["db", "standby"]
RUNNING = [*DATABASES, "api", "worker", "provider"]
PORTS = {"api": "8000", "provider": "8001"}
DEBIAN_PG_CRON = Path("/usr/share/postgresql/15/extension/pg_cron.control")


def settings_of(service: str) -> Settings:
    """The settings that the service reads from its environment and its flags."""
    given = {
        name: re.sub(r"\$\{\w+:\?[^}]*\}", "x1", value)
        for name, value in SERVICES[service]["environment"].items()
    }
    return Settings.from_env(given)


def test_compose_has_exactly_these_services() -> None:
    assert sorted(SERVICES) == sorted({*OURS, *RUNNING})


@pytest.mark.parametrize("service", SERVICES)
def test_the_log_of_a_container_does_not_grow_for_ever(service: str) -> None:
    """Docker rotates what it writes with the driver `local`, and not with its usual one."""
    assert SERVICES[service]["logging"] == {"driver": "local"}


@pytest.mark.parametrize("service", OURS)
def test_every_command_is_one_that_we_have(service: str) -> None:
    program, *arguments = SERVICES[service]["command"]
    assert program == "flashsale"
    options = build_parser().parse_args(arguments)
    assert arguments[0] == {"api": "serve"}.get(service, service)
    if service in PORTS:
        assert (options.host, str(options.port)) == ("0.0.0.0", PORTS[service])


def test_the_commands_in_its_heading_are_ones_that_we_have() -> None:
    heading = TEXT[: TEXT.index("\nname:")]
    inside = re.findall(r"docker compose exec (\w+) flashsale (.*)", heading)
    assert inside
    for service, arguments in inside:
        assert service in RUNNING
        build_parser().parse_args(shlex.split(arguments))
    assert set(re.findall(r"--scale (\w+)=|logs --follow (\w+)", heading)) == {
        ("worker", ""),
        ("", "worker"),
    }


@pytest.mark.parametrize("service", OURS)
def test_every_variable_is_a_setting(service: str) -> None:
    settings_of(service)  # raises for an unknown setting


def test_the_parts_find_each_other() -> None:
    for service in ("api", "worker", "migrate"):
        url = settings_of(service).need_database_url()
        assert url == (
            "postgresql://flashsale:x1@db:5432,standby:5432/flashsale"
            "?target_session_attrs=read-write"
        )
    assert settings_of("api").need_webhook_secret()
    assert settings_of("provider").need_webhook_secret()
    assert settings_of("provider").webhook_url == f"http://api:{PORTS['api']}/webhooks/payments"
    assert settings_of("worker").provider_url == f"http://provider:{PORTS['provider']}"
    # Customers are outside, where the port is published.
    assert settings_of("provider").provider_url == f"http://127.0.0.1:{PORTS['provider']}"


def test_only_the_api_and_the_provider_are_published_and_only_to_this_machine() -> None:
    published = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s}
    assert published == {name: [f"127.0.0.1:{p}:{p}"] for name, p in PORTS.items()}
    assert not any("network_mode" in s for s in SERVICES.values())


@pytest.mark.parametrize("service", RUNNING)
def test_every_long_running_service_has_a_health_check(service: str) -> None:
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    match command:
        case ["pg_isready", *flags]:
            assert service in DATABASES
            assert "--host=127.0.0.1" in flags
        case ["python", "-m", module]:
            assert service == "worker"
            assert module == "flashsale.worker"
            assert importlib.util.find_spec(f"{module}.__main__") is not None
        case ["python", "-c", code]:
            ast.parse(code)
            (url,) = re.findall(r'urlopen\("([^"]+)"', code)
            assert url == f"http://127.0.0.1:{PORTS[service]}/health/ready"
        case _:
            pytest.fail(f"unknown check: {command}")


def test_the_route_that_the_health_checks_call_exists() -> None:
    for service, create in (("api", app.create_app), ("provider", provider.create_app)):
        paths = {
            route.path
            for route in create(Settings(database_url="postgresql://x", webhook_secret="x")).routes
        }
        assert "/health/ready" in paths, service


def test_each_service_starts_when_the_services_it_needs_are_ready() -> None:
    for name, service in SERVICES.items():
        for other, need in service.get("depends_on", {}).items():
            wanted = {"migrate": "service_completed_successfully"}.get(other, "service_healthy")
            assert need == {"condition": wanted}, name
    for name in ("api", "worker"):
        assert {"db", "migrate"} <= SERVICES[name]["depends_on"].keys()


@pytest.mark.parametrize("service", OURS)
def test_our_containers_may_do_little_and_have_time_to_stop(service: str) -> None:
    s = SERVICES[service]
    assert s["read_only"] is True
    assert s["cap_drop"] == ["ALL"]
    assert s["security_opt"] == ["no-new-privileges:true"]
    grace = int(s["stop_grace_period"].removesuffix("s"))
    defaults = Settings()
    assert grace >= 5 + max(defaults.shutdown_seconds, defaults.worker_stop_seconds)


def test_all_written_files_are_on_volumes() -> None:
    assert SERVICES["db"]["volumes"] == ["database:/var/lib/postgresql/data"]
    assert SERVICES["standby"]["volumes"] == ["standby:/var/lib/postgresql/data"]
    folder = str(Path(settings_of("provider").provider_ledger).parent)
    assert SERVICES["provider"]["volumes"] == [f"provider:{folder}"]
    assert f"install --directory --owner=flashsale --group=flashsale --mode=0700 {folder}" in (
        (ROOT / "Dockerfile").read_text()
    )
    assert set(yaml.safe_load(TEXT)["volumes"]) == {"database", "standby", "provider"}


def test_the_database_is_set_as_the_embedded_one_plus_pg_cron() -> None:
    program, *flags = SERVICES["db"]["command"]
    assert program == "postgres"
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert given == dict(SETTINGS) | dict(RESERVED) | {
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": "flashsale",
        "cron.host": "/var/run/postgresql",
        "cron.log_statement": "off",
        "wal_keep_size": "1GB",
        "wal_log_hints": "on",
    }


def test_the_standby_is_optional_and_runs_with_the_settings_of_its_primary() -> None:
    assert [name for name, s in SERVICES.items() if "profiles" in s] == ["standby"]
    db, standby = SERVICES["db"], SERVICES["standby"]
    own = {"profiles": ["standby"], "entrypoint": ["standby.sh"]}
    assert standby == db | own | {
        "volumes": standby["volumes"],
        "depends_on": {"db": {"condition": "service_healthy"}},
    }
    script = (ROOT / "docker" / "standby.sh").read_text()
    assert "user=replicator password=$REPLICATION_PASSWORD application_name=standby" in script
    init = (ROOT / "docker" / "init.sql").read_text()
    assert "\\getenv replication_password REPLICATION_PASSWORD" in init
    assert re.search(r"create role replicator .* password :'replication_password';", init)
    for part in OURS:
        assert not {"POSTGRES_PASSWORD", "REPLICATION_PASSWORD"} & set(
            re.findall(r"\$\{(\w+)", str(SERVICES[part]["environment"]))
        )


def test_no_secret_has_a_default() -> None:
    example = (ROOT / ".env.example").read_text()
    expected = {"POSTGRES_PASSWORD", "DATABASE_PASSWORD", "REPLICATION_PASSWORD"}
    expected |= {"FLASHSALE_WEBHOOK_SECRET"}
    assert set(re.findall(r"^(\w+)=$", example, re.M)) == expected
    assert len(re.findall(r"^[^#\n]", example, re.M)) == len(expected)  # and nothing has a value
    assert set(re.findall(r"\$\{(\w+):\?see \.env\.example\}", TEXT)) == expected
    assert len(re.findall(r"\$", TEXT)) == len(re.findall(r"\$\{\w+:\?see \.env\.example\}", TEXT))
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_images_are_made_of_files_that_docker_gets_to_see() -> None:
    ignore = (ROOT / ".dockerignore").read_text().split()
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    assert ignore[0] == "*"
    assert not any(fnmatch.fnmatch(".env", pattern) for pattern in allowed)
    for file in ("Dockerfile", "docker/postgres.Dockerfile"):
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / file).read_text(), re.M):
            *sources, _target = line.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in allowed, source
    built = {
        s["build"] if s["build"] == "." else s["build"]["dockerfile"] for s in SERVICES.values()
    }
    assert built == {".", "docker/postgres.Dockerfile"}
    assert {s["image"] for n, s in SERVICES.items() if n in OURS} == {"flashsale"}


def test_the_images_are_built_on_official_ones_of_fitting_versions() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert set(bases) == {"python:3.11-slim-bookworm"}
    database = (ROOT / "docker/postgres.Dockerfile").read_text()
    (major,) = re.findall(r"^FROM postgres:(\d+)-bookworm$", database, re.M)
    assert f" postgresql-{major}-cron " in database
    assert 15 <= int(major) <= 17  # from 18 on the image keeps its data somewhere else


@pytest.mark.debian
@pytest.mark.skipif(
    not DEBIAN_PG_CRON.exists(), reason="pg_cron is missing: apt-get install postgresql-15-cron"
)
def test_the_owner_migrates_a_database_that_was_prepared_like_this() -> None:
    script = (ROOT / "docker" / "init.sql").read_text()
    before, prepared = script.split("\\connect flashsale\n")
    assert "create role flashsale login createrole password :'password';" in before
    assert "\\getenv password DATABASE_PASSWORD" in before
    for limit in filter(str.strip, OWNER_LIMITS.split(";")):
        assert f"{limit.strip()};" in before
    assert (
        "create database flashsale owner flashsale template template0 encoding 'UTF8' locale 'C';"
        in before
    )
    cron = {"shared_preload_libraries": "pg_cron", "cron.database_name": "flashsale"}
    with (
        postgres_server("/usr/lib/postgresql/15/bin", cron | {"fsync": "off"}) as server,
        connect(server.url("flashsale", "postgres")) as superuser,
    ):
        superuser.execute(prepared)
        # As in the embedded Postgres, so that keys are compared byte by byte.
        own = value(
            superuser,
            "select (pg_encoding_to_char(encoding), datcollate, datctype)::text "
            "from pg_database where datname = current_database()",
        )
        assert own == "(UTF8,C,C)"
        migrate(server.url())
        jobs = rows(superuser, "select jobname, username from cron.job order by jobname")
        assert [tuple(j) for j in jobs] == [
            ("flashsale purge", "flashsale"),
            ("flashsale sweep", "flashsale"),
        ]
        assert not value(superuser, "select rolsuper from pg_roles where rolname = 'flashsale'")
