-- Which texts are taken. The HTTP service has the same rules (api/parameters.py, models.py), and
-- tests/test_doors.py holds them together. Otherwise 'c1', 'c1 ' and E'c1\r' would be three
-- customers in SQL, with one unit each, and one customer for everybody who reads their names.
--
-- These two are plain SQL without settings, so that they are inlined, also into the hot path. A
-- length and a short expression cost a third of a microsecond; an expression that counts the
-- characters itself, such as [ -~]{0,126}, costs 6, and 44 for a key. Collation "C" makes
-- the classes sets of code points, whatever the database's own is.
create or replace function flashsale.is_id(p_text text, p_longest integer) returns boolean
language sql immutable parallel safe
as $$
  select length(p_text) <= p_longest and p_text collate "C" ~ '^[!-~](?:[ -~]*[!-~])?$'
$$;

comment on function flashsale.is_id(text, integer) is
$$Whether this can be somebody's id, or a key: printable ASCII; null: null
1 to p_longest characters, without spaces at the ends, as in a header of HTTP.$$;

create or replace function flashsale.is_text(p_text text, p_longest integer) returns boolean
language sql immutable parallel safe
as $$
  select length(p_text) <= p_longest
    and p_text collate "C" !~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'
    and p_text collate "C" ~ '[^ \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]'
$$;

comment on function flashsale.is_text(text, integer) is
$$Whether this can be a text for people: no control characters; null: null
1 to p_longest characters, among them a visible one; no line separators.$$;
