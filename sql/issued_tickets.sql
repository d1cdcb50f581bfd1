create or replace function flashsale.issued_tickets(p_item_id integer) returns integer
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
  select coalesce(pg_sequence_last_value(i.line), 0)::integer
  from flashsale_data.items i
  where i.item_id = p_item_id
$$;

comment on function flashsale.issued_tickets(integer) is
$$How many tickets an item's line has given out; null for an unknown item
A function because a view's reader has no right to the sequence.$$;
