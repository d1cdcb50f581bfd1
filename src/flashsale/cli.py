"""The command line: `flashsale dev`, and a command for each of its parts.

Each command imports what it needs when it runs. So `--version` and `--help` import nothing, and a
process loads only the code of its own command.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flashsale.refusals import CommandError
from flashsale.settings import Settings, SettingsError

AUDIENCES = ("api", "worker", "tool", "operator")

EPILOG = """\
Every setting is an environment variable FLASHSALE_<NAME>; flags win over them.
The most important: FLASHSALE_DATABASE_URL (postgresql://…, PostgreSQL 15 or later),
FLASHSALE_WEBHOOK_SECRET, FLASHSALE_PROVIDER_URL. docs/reference/settings.md lists them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, 1 for a failure, 2 for wrong use."""
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("run")
    try:
        return int(command(**options))
    except (SettingsError, CommandError, PermissionError) as error:
        print(f"flashsale: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="flashsale",
        description="Flash sale reservations in one Postgres: correct, fair and fast.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flashsale {version('flashsale')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    def add(name: str, run: Any, summary: str, details: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}. {details}".strip(),
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    dev = add("dev", _dev, "Start everything", "Ready when GET /health/ready says 200.")
    _address(dev, "API")
    dev.add_argument("--provider-port", type=_port, help="of the simulated provider (8001)")
    _data_dir(dev)

    demo = add(
        "demo",
        _demo,
        "Run a whole sale against a fresh service, with live progress",
        "Exit status 1 if a promise was broken.",
    )
    demo.add_argument("--customers", type=_count, default=2000, help="how many ask (2000)")
    demo.add_argument("--stock", type=_count, default=200, help="units on sale (200)")
    demo.add_argument("--hold-seconds", type=_count, default=5, help="time to pay (5)")
    demo.add_argument("--seed", type=int, default=1, help="of the customers' dice (1)")

    serve = add("serve", _serve, "Serve the HTTP API")
    _address(serve, "API")
    worker = add(
        "worker",
        _worker,
        "Work the payment and e-mail queues, and sweep",
        "Any number may run at once.",
    )
    provider = add("provider", _provider, "Serve the simulated payment provider")
    _address(provider, "provider")
    provider.add_argument(
        "--faults", metavar="JSON", help='from the start, as PUT /faults takes: {"latency_ms": 200}'
    )
    migrating = add(
        "migrate",
        _migrate,
        "Bring the database up to date",
        "Safe from any number of processes at once.",
    )
    migrating.add_argument(
        "--force", action="store_true", help="replay all of sql/, changed or not"
    )
    for command in (serve, worker, migrating):
        command.add_argument("--database-url", help="postgresql://… (FLASHSALE_DATABASE_URL)")

    check = add(
        "check-draw",
        _check_draw,
        "Compute a draw again from what is public, and compare",
        "Exit status 1 if it is not as its secret says.",
    )
    check.add_argument("item", type=_item, help="the item_id")
    check.add_argument("--url", default="http://127.0.0.1:8000", help="of the service")
    check.add_argument("--commitment", metavar="HEX", help="as you have noted it before")
    check.add_argument("--entry", metavar="ORDER_ID", help="that has to be on the list")

    psql = add(
        "psql",
        _psql,
        "Open psql on the service's database",
        "Further arguments go to psql: flashsale psql -- -c 'select …'",
    )
    psql.add_argument("--as", dest="audience", choices=AUDIENCES, default="operator")
    _data_dir(psql)
    psql.add_argument("arguments", nargs="*", help="for psql, after --")

    export = add(
        "export",
        _export,
        "Write the orders of an item as CSV",
        "By ticket, to the standard output: flashsale export 1 > orders.csv",
    )
    export.add_argument("item_id", metavar="ITEM", type=_item, help="its item_id")
    _data_dir(export)
    return parser


def _address(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--host", help=f"address of the {what} (127.0.0.1)")
    parser.add_argument(
        "--port", type=_port, help=f"port of the {what} ({8001 if what == 'provider' else 8000})"
    )


def _data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("FLASHSALE_DATA_DIR", ".flashsale")),
        help="where the data is, and stays (.flashsale)",
    )


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000000")
    return int(text)


def _item(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not an item_id; `:sale` in psql shows them")
    return int(text)


def _dev(data_dir: Path, **flags: Any) -> int:
    from flashsale.dev import stack

    return stack.run(Settings.from_env(**flags), data_dir)


def _demo(**options: Any) -> int:
    from flashsale.dev.extra import needed

    with needed("flashsale demo"):
        from flashsale.dev import demo

    return demo.run(**options)


def _serve(**flags: Any) -> int:
    import asyncio

    from flashsale.plugins import try_out
    from flashsale.providers.interface import PaymentProvider
    from flashsale.server import run_granian

    settings = Settings.from_env(**flags)
    settings.need_database_url()
    settings.need_webhook_secret()
    # Else granian would start a process that ends at once, again and again.
    asyncio.run(try_out(settings, "provider", PaymentProvider))
    return run_granian("flashsale.server:api", settings.host, settings.port, settings, flags)


def _provider(host: str | None, port: int | None, faults: str | None) -> int:
    from flashsale.server import run_granian

    flags: dict[str, Any] = {"provider_host": host, "provider_port": port, "faults": faults}
    settings = Settings.from_env(**flags)
    settings.need_webhook_secret()
    return run_granian(
        "flashsale.simulator.app:in_process",
        settings.provider_host,
        settings.provider_port,
        settings,
        flags,
    )


def _worker(**flags: Any) -> int:
    import uvloop

    from flashsale.server import files_for, start_log
    from flashsale.worker.run import run

    settings = Settings.from_env(**flags)
    settings.need_database_url()
    start_log()
    files_for("MAIL_CONCURRENCY", settings.mail_concurrency, settings.job_concurrency)
    uvloop.run(run(settings))
    return 0


def _migrate(force: bool, **flags: Any) -> int:
    from flashsale.database.migrate import migrate

    report = migrate(Settings.from_env(**flags).need_database_url(), force=force)
    for name in report.applied:
        print(f"applied  {name}")
    print("replayed sql/" if report.replayed else "sql/ is up to date")
    for name in report.advanced:
        print(f"advanced {name}, which was behind the rows of its table")
    return 0


def _check_draw(item: int, url: str, commitment: str | None, entry: str | None) -> int:
    from flashsale import check_draw

    return check_draw.run(item, url, commitment, entry)


def _psql(audience: str, data_dir: Path, arguments: list[str]) -> int:
    from flashsale.database.operators import as_operator, parsed
    from flashsale.database.version import sql_folder
    from flashsale.dev.binaries import wheel_binaries

    url = _database_url(data_dir)
    if audience == "operator":
        given = as_operator(url)
    else:
        given = parsed(url) | {"options": f"-c role=flashsale_{audience}"}
    program = shutil.which("psql") or str(wheel_binaries() / "psql")
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    names |= {"password": "PGPASSWORD", "sslmode": "PGSSLMODE", "options": "PGOPTIONS"}
    names |= {"target_session_attrs": "PGTARGETSESSIONATTRS"}
    environ = os.environ | {names[k]: str(v) for k, v in given.items() if k in names}
    environ |= {
        "PSQLRC": str(sql_folder() / "psqlrc"),
        "PGAPPNAME": f"flashsale psql ({audience})",
    }
    if arguments:  # psql runs one command, so it shows no greeting
        arguments = ["--no-psqlrc", *arguments]
    os.execve(program, ["psql", *arguments], environ)  # noqa: S606 - psql takes our place


def _export(item_id: int, data_dir: Path) -> int:
    from flashsale.database.export import export

    url = _database_url(data_dir)
    try:
        export(url, item_id, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # of a reader that has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _database_url(data_dir: Path) -> str:
    """The URL of the settings, or of the `flashsale dev` that runs. Errors: SettingsError."""
    from flashsale.dev.stack import URL_FILE

    if url := Settings.from_env().database_url:
        return url
    try:
        return (data_dir / URL_FILE).read_text().strip()
    except OSError:
        raise SettingsError(
            f"no database: start `make run` or `flashsale dev` (its data is looked for in "
            f"{data_dir}), or set FLASHSALE_DATABASE_URL"
        ) from None
