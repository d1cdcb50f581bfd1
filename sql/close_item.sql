create or replace function flashsale.close_item(
  p_item_id integer, p_reason text default null, p_staff text default null)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
  v_now timestamptz;
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  v_item := flashsale.lock_item(p_item_id);
  v_now := flashsale.clock();
  update flashsale_data.items i
  set
    closes_at = least(i.closes_at, v_now),
    opens_at = case when i.opens_at < v_now then i.opens_at end -- null if it has never opened
  where i.item_id = p_item_id;
  perform flashsale.forget_noted_draw(p_item_id);
  perform flashsale.note_item('close_item', p_item_id, v_item, p_reason, p_staff);
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.close_item(integer, text, text) is
$$Closes the sale of an item now, for good: its line ends unserved
Sweeps then end the line: waiting orders become unserved. Holds may still be paid until their
deadline. p_reason and p_staff: why, 1 to 1,000 characters, and who, 1 to 128, for history; null: no
reason, and the login. Returns the item.
Errors: RV101 unknown item, RV302 a reason or a name that is too short or too long.$$;
