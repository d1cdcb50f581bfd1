create or replace function flashsale.open_item(
  p_item_id integer, p_reason text default null, p_staff text default null)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  v_item := flashsale.lock_item(p_item_id);
  if v_item.closes_at is not null
    or flashsale.shut_by(v_item.opens_at, null, v_item.paused, flashsale.clock()) is not null
  then
    perform flashsale.apply_changes('open_item', p_item_id, jsonb_build_object(
      'opens_at', flashsale.clock(), 'closes_at', null, 'paused', false), p_reason, p_staff);
  end if;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.open_item(integer, text, text) is
$$Opens the sale of an item now, with no end
Also ends a pause. An item that is open without an end stays as it is. p_reason and p_staff: why, 1
to 1,000 characters, and who, 1 to 128, for history; null: no reason, and the login. Returns the
item. Errors: RV101 unknown item, RV302 a reason or a name that is too short or too long.$$;
