-- Times of a sale, with their time zones. Postgres reads '2026-01-01 10:00' in the session's time
-- zone, so one statement would open a sale at different times for different operators. A function
-- with an argument of type timestamptz can't notice: it gets the time that was read.
--
-- So times are of type flashsale.moment, to which only these casts lead. A timestamptz becomes one
-- as it is. A timestamp or a date, which Postgres would silently turn into a timestamptz, is
-- refused. A literal has no type yet. For Postgres it may become a text, so that it chooses the
-- form of a verb that takes texts (see create_item), and the text is read here.
-- A literal that names a type, such as timestamptz '2026-01-01 10:00', is read before we see it.
create or replace function flashsale.is_zoned(p_text text) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select p_text collate "C" ~* (
    '^\d{4,6}-\d\d-\d\d'
    || '(z|[t ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)? ?(z|[+-]\d\d(:?[0-5]\d)?))$')
$$;

comment on function flashsale.is_zoned(text) is
$$Whether a text has the form of a time with its zone; null: null
RFC 3339, or as Postgres writes a timestamptz: 2026-11-27T20:00:00Z, 2026-11-27 21:00+01; or a day
of UTC, 2026-11-27Z.$$;

create or replace function flashsale.raise_no_moment(p_text text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'This is not a time of the years 2000 to 2999 with its time zone: %.',
    left(p_text, 100)
  using
    errcode = 'RV302', constraint = 'bad_value',
    hint = 'Write it with its offset, 2026-11-27T20:00:00Z or 2026-11-27 21:00+01, or pass a '
      'timestamptz.';
end
$$;

comment on function flashsale.raise_no_moment(text) is
$$Raises RV302: a time without its time zone, or no time at all$$;

create or replace function flashsale.moment_of(p_time timestamptz) returns flashsale.moment
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
as $$ select row(p_time)::flashsale.moment $$;

comment on function flashsale.moment_of(timestamptz) is
$$A time as an argument of a verb$$;

create or replace function flashsale.moment_of(p_time timestamp) returns flashsale.moment
language plpgsql immutable strict set search_path = pg_catalog, pg_temp
as $$
begin
  perform flashsale.raise_no_moment(p_time::text);
  return null;
end
$$;

comment on function flashsale.moment_of(timestamp) is
$$Refuses a time that has no zone
Errors: RV302.$$;

create or replace function flashsale.moment_of(p_day date) returns flashsale.moment
language plpgsql immutable strict set search_path = pg_catalog, pg_temp
as $$
begin
  perform flashsale.raise_no_moment(p_day::text);
  return null;
end
$$;

comment on function flashsale.moment_of(date) is
$$Refuses a day, which begins at another moment in each zone
Errors: RV302.$$;

create or replace function flashsale.moment_of(p_text text) returns flashsale.moment
language plpgsql stable strict set search_path = pg_catalog, pg_temp
as $$
begin
  if not flashsale.is_zoned(p_text) then
    perform flashsale.raise_no_moment(p_text);
  end if;
  return flashsale.moment_of(p_text::timestamptz);
exception when data_exception then -- it has the form of a time, but is none: 2026-13-45
  perform flashsale.raise_no_moment(p_text);
  return null;
end
$$;

comment on function flashsale.moment_of(text) is
$$Reads a time that has its zone
Errors: RV302 it has none, or is no time.$$;

-- A cast can't be replaced. It keeps calling its function when that is replaced.
do $$
begin
  if not exists (
    select from pg_cast c where c.casttarget = 'flashsale.moment'::regtype)
  then
    create cast (timestamptz as flashsale.moment)
      with function flashsale.moment_of(timestamptz) as implicit;
    create cast (timestamp as flashsale.moment)
      with function flashsale.moment_of(timestamp) as implicit;
    create cast (date as flashsale.moment)
      with function flashsale.moment_of(date) as implicit;
  end if;
end
$$;
