create or replace function flashsale.pause_item(
  p_item_id integer, p_reason text default null, p_staff text default null)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  perform flashsale.apply_changes('pause_item', p_item_id, '{"paused": true}', p_reason, p_staff);
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.pause_item(integer, text, text) is
$$Pauses an item: no new orders, no promotions; holds run on
p_reason and p_staff: why, 1 to 1,000 characters, and who, 1 to 128, for history; null: no reason,
and the login. Returns the item.
Errors: RV101 unknown item, RV302 a reason or a name that is too short or too long.$$;
