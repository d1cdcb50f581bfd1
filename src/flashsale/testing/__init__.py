"""A pytest kit: for teams with SQL tools of their own that call flashsale's functions, and for us.

In the conftest.py at the top of a test suite:

    pytest_plugins = ["flashsale.testing"]

Then a test asks for `flashsale_db`, a session in a migrated database of its own, and moves the time
with `flashsale_clock`. When a test has ended, `flashsale.violation` must be empty. Functions such
as `item`, `call`, `value` and `blocked` say in one line what such tests need to say often.

docs/how-to/test-your-own-sql-tools.md shows it step by step. Needs the extra `embedded` and pytest.

PYTEST_DONT_REWRITE: a conftest.py imports these functions before pytest gets to know the plugin.
"""

from flashsale.testing.calls import (
    Call,
    Connection,
    blocked,
    call,
    call_all,
    connect,
    eventually,
    item,
    one,
    pay,
    rows,
    sessions,
    value,
    violations,
)
from flashsale.testing.clock import Clock
from flashsale.testing.databases import Databases
from flashsale.testing.fixtures import (
    OwnSql,
    flashsale_clock,
    flashsale_databases,
    flashsale_db,
    flashsale_own_sql,
    flashsale_server,
    flashsale_template,
    flashsale_url,
)
from flashsale.testing.servers import (
    FAST,
    cluster_folder,
    postgres_server,
    put_cluster,
    server_folder,
)

__all__ = [
    "FAST",
    "Call",
    "Clock",
    "Connection",
    "Databases",
    "OwnSql",
    "blocked",
    "call",
    "call_all",
    "cluster_folder",
    "connect",
    "eventually",
    "flashsale_clock",
    "flashsale_databases",
    "flashsale_db",
    "flashsale_own_sql",
    "flashsale_server",
    "flashsale_template",
    "flashsale_url",
    "item",
    "one",
    "pay",
    "postgres_server",
    "put_cluster",
    "rows",
    "server_folder",
    "sessions",
    "value",
    "violations",
]
