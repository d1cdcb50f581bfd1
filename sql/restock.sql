create or replace function flashsale.restock(
  p_item_id integer,
  p_units integer,
  p_reason text default null,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  if not flashsale.is_repeated('', p_idempotency_key, 'restock',
    jsonb_build_object('item_id', p_item_id, 'units', p_units))
  then
    v_item := flashsale.lock_item(p_item_id);
    perform flashsale.add_units(v_item, p_units);
    perform flashsale.note_item('restock', p_item_id, v_item, p_reason, p_staff);
  end if;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.restock(integer, integer, text, text, text) is
$$Adds units to an item's stock; the line is served first
p_units: 1 to 10,000,000. If units are still to be withdrawn (withdrawing), the new units take their
place first. p_reason and p_staff: why, 1 to 1,000 characters, and who, 1 to 128, for history; null:
no reason, and the login. p_idempotency_key: 1 to 255 characters; the same call with the same key
adds the units once. Returns the item.
Errors: RV101 unknown item, RV302 p_units, the new stock, a reason, a name or a key is out of range,
RV304 the key was used for another request.$$;

create or replace function flashsale.add_units(p_item flashsale_data.items, p_units integer)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_kept constant integer := least(p_units, p_item.withdrawing);
begin
  if coalesce(p_units not between 1 and 10000000, true) then
    raise exception 'Restock by 1 to 10000000 units.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('units %s', p_units);
  end if;
  perform flashsale.check_terms(
    jsonb_build_object('stock', p_item.stock::bigint + p_units - v_kept));
  update flashsale_data.items i
  set stock = i.stock + p_units - v_kept, withdrawing = i.withdrawing - v_kept
  where i.item_id = p_item.item_id;
end
$$;

comment on function flashsale.add_units(flashsale_data.items, integer) is
$$Adds units to an item that the caller has locked
Errors: RV302 p_units or the new stock is out of range.$$;
