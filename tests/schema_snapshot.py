"""The schema as text, which a test compares with tests/schema_snapshot.txt.

A change of the schema shows in the diff of that file, whatever SQL file it came from. The text does
not depend on the version of PostgreSQL.
"""

from __future__ import annotations

from support import Connection, rows

TABLES = """
select c.relname as name, c.reloptions
from pg_class c
where c.relnamespace = 'flashsale_data'::regnamespace and c.relkind = 'r' and c.relname !~ 'yoyo'
order by 1
"""

COLUMNS = """
select concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),
  case when a.attnotnull then 'not null' end,
  case when a.attidentity <> '' then 'identity from ' || (
    select s.seqstart from pg_sequence s join pg_depend n on n.objid = s.seqrelid
    where n.refobjid = a.attrelid and n.refobjsubid = a.attnum and n.deptype = 'i') end,
  case when a.attgenerated <> '' then 'generated' end,
  'default ' || pg_get_expr(d.adbin, d.adrelid)) as line
from pg_attribute a
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

# Without 'n': PostgreSQL 18 has a constraint for each column that is not null.
CONSTRAINTS = """
select concat_ws(' ', 'constraint', c.conname, pg_get_constraintdef(c.oid)) as line
from pg_constraint c
where c.conrelid = %s::regclass and c.contype <> 'n'
order by c.conname
"""

INDEXES = """
select pg_get_indexdef(i.indexrelid) as line
from pg_index i
where i.indrelid = %s::regclass
  and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
order by 1
"""

TYPES = """
select t.oid::regtype::text as name,
  coalesce(
    (select string_agg(e.enumlabel, ', ' order by e.enumsortorder)
     from pg_enum e where e.enumtypid = t.oid),
    (select string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', '
       order by a.attnum)
     from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0)) as parts
from pg_type t
left join pg_class c on c.oid = t.typrelid
where t.typnamespace in ('flashsale'::regnamespace, 'flashsale_data'::regnamespace)
  and (t.typtype = 'e' or c.relkind = 'c')
order by 1
"""

VIEWS = """
select c.relname as name, c.relacl as acl
from pg_class c
where c.relnamespace = 'flashsale'::regnamespace and c.relkind = 'v'
order by 1
"""

FUNCTIONS = """
select
  format('%s(%s)', p.proname, pg_get_function_arguments(p.oid)) as name,
  concat_ws(' ',
    'returns ' || pg_get_function_result(p.oid), l.lanname,
    case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
    case when p.prosecdef then 'as owner' end,
    (select string_agg(s.setting, '; ') from unnest(p.proconfig) s (setting))) as line,
  p.proacl as acl
from pg_proc p join pg_language l on l.oid = p.prolang
where p.pronamespace = 'flashsale'::regnamespace
order by 1
"""

CALLERS = """
select string_agg(distinct r.rolname, ', ' order by r.rolname) as line
from aclexplode(%s::aclitem[]) a join pg_roles r on r.oid = a.grantee
where r.rolname like 'flashsale\\_%%'
"""


def text(db: Connection) -> str:
    """The snapshot of a migrated database."""
    db.execute("set search_path = ''")  # all names are written in full
    lines = ["# Written by `make generate`. A test compares it with the schema."]
    for table in rows(db, TABLES):
        name = f"flashsale_data.{table.name}"
        options = f" with ({', '.join(table.reloptions)})" if table.reloptions else ""
        lines += ["", f"table {name}{options}"]
        for query in (COLUMNS, CONSTRAINTS, INDEXES):
            lines += [f"  {row.line}" for row in rows(db, query, name)]
    lines += [""]
    for type_ in rows(db, TYPES):
        lines += [f"type {type_.name}: {type_.parts}"]
    for view in rows(db, VIEWS):
        lines += ["", f"view flashsale.{view.name}", f"  for {_callers(db, view.acl)}"]
        lines += [f"  {row.line}" for row in rows(db, COLUMNS, f"flashsale.{view.name}")]
    lines += [""]
    for function in rows(db, FUNCTIONS):
        lines += [f"function {function.name}", f"  {function.line}"]
        lines += [f"  for {_callers(db, function.acl)}"]
    return "\n".join(lines) + "\n"


def _callers(db: Connection, acl: object) -> str:
    (row,) = rows(db, CALLERS, acl)
    return row.line or "nobody"
