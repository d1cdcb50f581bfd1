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
    case when i.draw = 'entering' and i.closes_at <= flashsale.clock() then 'called_off'
      else i.draw::text end,
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

create or replace function flashsale.draw_entries(
  p_item_id integer, p_after bigint default 0, p_limit integer default 1000)
returns setof flashsale.draw_entry
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  if (flashsale.draw_status(p_item_id)).listed_at is null then
    return; -- the list is not complete
  end if;
  return query
  select e.entry_id, e.quantity, flashsale.ticket_of(e.order_id)
  from flashsale_data.drawn_entries e
  where e.entry_id > greatest(p_after, flashsale.order_id_of(p_item_id, 2000000000))
    and e.entry_id <= flashsale.order_id_of(p_item_id, 2147483647)
  order by e.entry_id
  limit least(p_limit, 10000);
end
$$;

comment on function flashsale.draw_entries(integer, bigint, integer) is
$$The list of a draw in the order of its hash, once it is complete
p_after: an entry_id, to go on after that one. p_limit: up to 10,000. ticket: the first one that the
entry got; null: it is still to be drawn. Errors: RV101 unknown item, RV104 the item has no draw.$$;
