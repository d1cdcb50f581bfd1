create or replace function flashsale.skip_event(
  p_event_id bigint, p_reason text, p_staff text default null)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_delivery flashsale_data.event_deliveries;
  v_next bigint;
begin
  perform flashsale.check_act(p_staff, p_reason);
  v_delivery := flashsale.lock_event_delivery();
  v_next := (select e.event_id from flashsale.events(v_delivery.delivered_id, 1) e);
  if v_next is distinct from p_event_id then
    raise exception 'Only the event that is to be delivered next can be left out.' using
      errcode = 'RV219', constraint = 'not_next_event',
      detail = format(
        'event_id %s; the next one is %s', p_event_id, coalesce(v_next::text, 'none')),
      hint = 'select * from flashsale.event_delivery; shows the last one that was delivered.';
  end if;
  perform flashsale.put_event_cursor(v_delivery, p_event_id, 'skip_event', p_reason, p_staff);
  return p_event_id;
end
$$;

comment on function flashsale.skip_event(bigint, text, text) is
$$Leaves out the event that is to be delivered next; returns its event_id
It is for an event that the receiver will never take, since all later ones wait for it. The event
stays in the feed. p_event_id: the one after delivered_id of the view event_delivery. p_reason: why,
for history, 1 to 1,000 characters. p_staff: who, for history, 1 to 128 characters; null: the login.
Errors: RV219 it is not the next one, RV302 a reason or a name that is too short or too long.$$;
