-- Without settings, so that it is inlined.
create or replace function flashsale.utc(p_at timestamptz) returns text
language sql immutable parallel safe
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

comment on function flashsale.utc(timestamptz) is
$$A time in RFC 3339, in UTC, as it stands in the feed$$;
