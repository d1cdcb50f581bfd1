-- A time as it stands in the feed: RFC 3339 in UTC, whatever the time zone of the session.
create or replace function flashsale.utc(p_at timestamptz) returns text
language sql immutable parallel safe
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

comment on function flashsale.utc(timestamptz) is
$$A time in RFC 3339, in UTC$$;

create or replace function flashsale.note_item_event(
  p_type text, p_item_id integer, p_data jsonb default null)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  insert into flashsale_data.outbox (type, item_id, at, data)
  select p_type, p_item_id, flashsale.clock(), (
    select jsonb_object_agg(d.key,
      case when d.key in ('opens_at', 'closes_at')
        then to_jsonb(flashsale.utc((p_data ->> d.key)::timestamptz))
        else d.value end)
    from jsonb_each(p_data) d);
end
$$;

comment on function flashsale.note_item_event(text, integer, jsonb) is
$$Writes something that happened to an item into the outbox of the feed
The caller has locked the item. p_data: its terms, if they are new; times are put into UTC.$$;
