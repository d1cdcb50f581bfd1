create or replace function flashsale.restock(p_item_id integer, p_units integer)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items := flashsale.lock_item(p_item_id);
  v_kept integer := least(p_units, v_item.withdrawing);
begin
  if coalesce(p_units not between 1 and 10000000, true) then
    raise exception 'Restock by 1 to 10000000 units.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('units %s', p_units);
  end if;
  perform flashsale.check_terms(
    jsonb_build_object('stock', v_item.stock::bigint + p_units - v_kept));
  update flashsale_data.items i
  set stock = i.stock + p_units - v_kept, withdrawing = i.withdrawing - v_kept
  where i.item_id = p_item_id;
  perform flashsale.note_item_event(
    'item.restocked', p_item_id, jsonb_build_object('units', p_units));
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.restock(integer, integer) is
$$Adds units to an item's stock; the line is served first
p_units: 1 to 10,000,000. If units are still to be withdrawn (withdrawing), the new units take their
place first. Returns the item.
Errors: RV101 unknown item, RV302 p_units or the new stock is out of range.$$;
