"""Makes docs/sql-api.md, the reference of the SQL API, from the comments in sql/."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from support import Connection, rows

WIDTH = 100
ROLES = ("api", "worker", "tool", "operator")
AUDIENCES: list[tuple[str, str, str]] = [
    ("api tool", "Customers' requests", "The HTTP service, and tools of yours that sell."),
    (
        "api tool operator",
        "Customers' requests that operators may make too",
        "The HTTP service, tools of yours that sell, and people who help a customer.",
    ),
    ("tool", "Taking money", "Tools of yours that take money themselves, such as a till."),
    ("api operator", "Terms of sale", "The HTTP service has these in its contract, too."),
    ("operator", "Operating a sale", "People, in psql or in a tool of theirs."),
    ("tool operator", "Support", "People who answer a customer's question, and their tools."),
    ("api", "The payment provider's events", "The HTTP service alone."),
    (
        "worker operator",
        "Sweeping",
        "The worker sweeps several times per second, and pg_cron where it is installed. "
        "Operators may sweep by hand.",
    ),
    ("worker", "The worker's jobs", "The worker alone."),
    (
        "api worker tool operator",
        "What views need",
        "Views call these functions with the rights of their reader.",
    ),
]
"""Who may call what, in the order of the page: roles, heading, introduction."""

INTRODUCTION = """\
# SQL API

<!-- Written by `make generate` from the comments in sql/. Change those, and write it again. -->

All of flashsale's behaviour is in SQL functions and views in the schema `flashsale`. The HTTP
service and the worker call them, and so may your own tools: in psql, or through any client of
PostgreSQL. This page lists them by the role that may call them. Grant a role to your login, for
example `grant flashsale_tool to checkout`.

- **An expected result is data.** Functions about orders return a row of the type
  [`order_row`](#order_row) whose first column, `outcome`, says what came of the call.
- **Misuse is an error** with a SQLSTATE of its own: `RV1nn` unknown, `RV2nn` not possible in this
  state, `RV3nn` a bad argument, `RV4nn` not allowed. Its constraint name is a code for programs,
  its message is for people, its detail has the facts, and its hint says what to do next.
- Money is in **minor units** of its currency, times are `timestamptz`, and the database's clock is
  the only one that counts.
"""

FUNCTIONS = """
select
  p.oid, p.proname as name, pg_get_function_arguments(p.oid) as arguments,
  pg_get_function_result(p.oid) as result, obj_description(p.oid, 'pg_proc') as comment,
  array(
    select r.role from unnest(%s::text[]) r (role)
    where has_function_privilege('flashsale_' || r.role, p.oid, 'execute')) as roles
from pg_proc p
where p.pronamespace = 'flashsale'::regnamespace
order by p.proname
"""

RELATIONS = """
select
  c.oid, c.relname as name, c.relkind = 'v' as is_view,
  case c.relkind when 'v' then obj_description(c.oid, 'pg_class')
    else obj_description(c.reltype, 'pg_type') end as comment,
  array(
    select r.role from unnest(%s::text[]) r (role)
    where has_table_privilege('flashsale_' || r.role, c.oid, 'select')) as roles
from pg_class c
where c.relnamespace = 'flashsale'::regnamespace and c.relkind in ('v', 'c')
order by c.relname
"""

COLUMNS = """
select a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
  col_description(a.attrelid, a.attnum) as comment
from pg_attribute a
where a.attrelid = %s and a.attnum > 0
order by a.attnum
"""


def text(db: Connection) -> str:
    """The page."""
    db.execute("set search_path = ''")  # all names are written in full
    functions = rows(db, FUNCTIONS, list(ROLES))
    relations = rows(db, RELATIONS, list(ROLES))
    parts = [INTRODUCTION]
    for roles, heading, introduction in AUDIENCES:
        named = ", ".join(f"`flashsale_{role}`" for role in roles.split())
        parts.append(f"## {heading}\n\n{_wrap(f'{introduction} Roles: {named}.')}\n")
        parts += [_function(f) for f in functions if f.roles == roles.split()]
    known = {roles for roles, _, _ in AUDIENCES} | {""}
    assert {" ".join(f.roles) for f in functions} <= known, "AUDIENCES lacks a set of roles"
    parts.append("## Views\n")
    parts += [_relation(db, r) for r in relations if r.is_view]
    parts.append("## Row types\n")
    parts += [_relation(db, r) for r in relations if not r.is_view]
    parts.append(
        "## Internal functions\n\nNo role may call these. They may change with any release.\n\n"
        "| function | what it does |\n|---|---|\n"
        + "".join(f"| `{f.name}` | {_summary(f)} |\n" for f in functions if not f.roles)
    )
    return "\n".join(parts)


def _function(f: Any) -> str:
    arguments = _plain(f.arguments)
    line = f"flashsale.{f.name}({arguments})"
    if len(line) > WIDTH - 10:
        one_a_line = re.sub(r", (?=(?:out )?\w+ \w)", ",\n  ", arguments)
        line = f"flashsale.{f.name}(\n  {one_a_line})"
    result = f"\nreturns {_plain(f.result)}" if f.result and " out " not in arguments else ""
    return f"### {f.name}\n\n```sql\n{line}{result}\n```\n\n{_prose(f)}\n"


def _relation(db: Connection, r: Any) -> str:
    readers = ", ".join(f"`flashsale_{role}`" for role in r.roles)
    by = f"Roles: {readers}.\n\n" if r.is_view else ""
    columns = "".join(
        f"| `{c.name}` | {_plain(c.type)} | {' '.join((c.comment or '').split())} |\n"
        for c in rows(db, COLUMNS, r.oid)
    )
    head = "| column | type | meaning |\n|---|---|---|\n"
    return f"### {r.name}\n\n{_prose(r)}\n\n{by}{head}{columns}"


def _plain(sql: str) -> str:
    """A signature in common form: short type names, no casts of defaults, lower-case keywords."""
    sql = sql.replace("timestamp with time zone", "timestamptz")
    sql = re.sub(r"::[\w ]+(\[\])?", "", sql)
    return re.sub(r"\b(DEFAULT|NULL|OUT|SETOF|TABLE)\b", lambda word: word[0].lower(), sql)


def _prose(thing: Any) -> str:
    """A comment: its first line is a sentence, and outcomes and errors are paragraphs."""
    _, _, rest = thing.comment.partition("\n")
    rest = re.sub(r"\s*\b(Outcomes|Errors):", r"\n\n**\1:**", " ".join(rest.split()))
    paragraphs = [_summary(thing) + ".", *(p for p in rest.split("\n\n") if p)]
    return "\n\n".join(_wrap(p) for p in paragraphs)


def _summary(thing: Any) -> str:
    return str(thing.comment.partition("\n")[0]).rstrip(".")


def _wrap(paragraph: str) -> str:
    return "\n".join(
        textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)
    )
