create or replace function flashsale.move_event_cursor(
  p_after bigint, p_reason text, p_staff text default null)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_delivery flashsale_data.event_deliveries;
  v_last bigint;
  v_after bigint;
begin
  perform flashsale.check_act(p_staff, p_reason);
  v_delivery := flashsale.lock_event_delivery();
  v_last := greatest(
    v_delivery.delivered_id,
    (select f.last_event_id from flashsale_data.feed f where f.one_row));
  v_after := coalesce(p_after, v_last);
  if v_after not between 0 and v_last then
    raise exception 'There is no such place in the feed.' using
      errcode = 'RV302', constraint = 'bad_value',
      detail = format('after %s; the last event is %s', p_after, v_last),
      hint = 'Give the event_id of the last event that is not to be delivered, or 0 for all.';
  end if;
  perform flashsale.put_event_cursor(v_delivery, v_after, 'move_event_cursor', p_reason, p_staff);
  return v_after;
end
$$;

comment on function flashsale.move_event_cursor(bigint, text, text) is
$$Makes the delivery of events go on after this one; returns its event_id
It delivers events again, after the receiver has lost some, or leaves many out. p_after: the
event_id; 0: everything that the feed still has; null: its last one, so that only later events are
delivered. p_reason: why, for history, 1 to 1,000 characters. p_staff: who, for history, 1 to 128
characters; null: the login.
Errors: RV302 there is no such event yet, or a reason or a name that is too short or too long.$$;
