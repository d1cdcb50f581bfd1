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
