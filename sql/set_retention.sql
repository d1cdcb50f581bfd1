create or replace view flashsale.retention as
select r.kind, r.days, r.next_at
from flashsale_data.retention r;

comment on view flashsale.retention is
$$For how many days what only grows is kept; set_retention changes it$$;

comment on column flashsale.retention.kind is
  'keys (of orders that have ended), request_keys (of other calls), payment_events, dead_mail,
  events (of the feed) or history.';
comment on column flashsale.retention.days is 'For so many days; null: for ever.';
comment on column flashsale.retention.next_at is
  'When the next walk begins that deletes what is older; in the past: it is under way.';

create or replace function flashsale.set_retention(
  p_kind text, p_days integer, p_reason text, p_staff text default null)
returns flashsale.retention
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_before flashsale_data.retention;
  v_row flashsale.retention;
begin
  perform flashsale.check_act(p_staff, p_reason);
  select * into v_before from flashsale_data.retention r where r.kind = p_kind for no key update;
  if not found or p_days not between 1 and 36500 then
    raise exception 'There is no such retention.' using
      errcode = 'RV302', constraint = 'bad_value',
      detail = format('kind %L, days %s', p_kind, p_days),
      hint = 'The view flashsale.retention has the kinds; days are 1 to 36500, or null: for ever.';
  end if;
  update flashsale_data.retention r
  set days = p_days, next_at = flashsale.clock(), walked_to = null
  where r.kind = p_kind;
  perform flashsale.note_history(
    coalesce(p_staff, session_user), 'set_retention', null,
    jsonb_build_object('kind', p_kind, 'days', v_before.days),
    jsonb_build_object('kind', p_kind, 'days', p_days), p_reason);
  select * into v_row from flashsale.retention r where r.kind = p_kind;
  return v_row;
end
$$;

comment on function flashsale.set_retention(text, integer, text, text) is
$$Sets for how many days a kind of rows is kept
p_kind: a kind of the view retention. p_days: 1 to 36,500; null: for
ever. p_reason: why, for history, 1 to 1,000 characters. p_staff: who, for history, 1 to 128
characters; null: the login. The next walk begins at once.
Errors: RV302 no such kind, or days, a reason or a name that is not possible.$$;
