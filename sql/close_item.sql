create or replace function flashsale.close_item(p_item_id integer) returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
begin
  perform flashsale.lock_item(p_item_id);
  v_now := flashsale.clock();
  update flashsale_data.items i
  set
    closes_at = least(i.closes_at, v_now),
    opens_at = case when i.opens_at < v_now then i.opens_at end -- null if it has never opened
  where i.item_id = p_item_id;
  perform flashsale.forget_noted_draw(p_item_id);
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.close_item(integer) is
$$Closes the sale of an item now, for good: its line ends unserved
Sweeps then end the line: waiting orders become unserved. Holds may still be paid until their
deadline. Returns the item. Errors: RV101 unknown item.$$;
