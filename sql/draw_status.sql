-- What everybody may know of a draw. From the beginning: the commitment. From the opening on: the
-- list of entries and its hash. When all have their tickets: the secret.
create or replace function flashsale.draw_status(p_item_id integer) returns flashsale.draw_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_row flashsale.draw_row;
begin
  perform flashsale.item_status(p_item_id);
  select
    i.item_id,
    case when i.draw = 'entering'
      and flashsale.shut_by(null, i.closes_at, false, flashsale.clock()) = 'closed'
      then 'called_off' else i.draw::text end,
    case when d.listed_at is null then greatest(0, d.entered) else d.entries end,
    case when d.listed_at is not null then d.units end,
    encode(d.commitment, 'hex'),
    case when d.listed_at is not null then encode(d.list_hash, 'hex') end,
    case when i.draw = 'drawn' then encode(d.secret, 'hex') end,
    i.opens_at, d.listed_at, case when i.draw = 'drawn' then d.done_at end
  into v_row
  from flashsale_data.items i
  join flashsale_data.draws d on d.item_id = i.item_id
  where i.item_id = p_item_id;
  if not found then
    raise exception 'This item has no draw.' using
      errcode = 'RV104', constraint = 'no_draw', detail = format('item_id %s', p_item_id),
      hint = 'An item gets a draw when it is created.';
  end if;
  return v_row;
end
$$;

comment on function flashsale.draw_status(integer) is
$$The draw of an item: its state, and what is public of it by now
state: entering (until it opens), listing, drawing, drawn, or called_off (the sale closed before it
opened). entries: how many have entered, as of the last sweep; then how many are on the list.
commitment, list_hash (from the opening on) and secret (when it is drawn) are hexadecimal.
Errors: RV101 unknown item, RV104 the item has no draw.$$;
