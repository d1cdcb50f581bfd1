-- A report that may be shown to customers: it lets each of them see that nobody who asked later was
-- served earlier, and tells nobody who the others are.
create or replace function flashsale.shortened(p_customer_id text) returns text
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select left(p_customer_id, least(3, length(p_customer_id) / 3)) || '…' $$;

comment on function flashsale.shortened(text) is
$$The first third of a customer's id, three characters at most$$;

create or replace function flashsale.fairness(
  p_item_id integer,
  p_customer_id text default null,
  p_after integer default 0,
  p_limit integer default 1000)
returns setof flashsale.fairness_row
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  perform flashsale.check_page(p_item_id, null, p_limit);
  return query
  select
    o.ticket,
    case
      when o.customer_id = p_customer_id then o.customer_id
      else flashsale.shortened(o.customer_id)
    end,
    coalesce(o.customer_id = p_customer_id, false),
    o.status,
    o.created_at,
    o.reserved_at,
    o.ended_at
  from flashsale.order_status o
  where o.order_id > flashsale.order_id_of(p_item_id, greatest(p_after, 0))
    and o.order_id <= flashsale.order_id_of(p_item_id, 2147483647)
  order by o.order_id
  limit p_limit;
end
$$;

comment on function flashsale.fairness(integer, text, integer, integer) is
$$Who was served when, by ticket: a report that a customer may see
p_customer_id: the customer who looks. Their own rows have their id and is_you; of the ids of all
others only the first third is shown, three characters at most. null: all ids are shortened.
p_after: a ticket, to go on after it. p_limit: at most so many rows, 1 to 1,000. Tickets that were
withdrawn from sale have no row.
Errors: RV101 unknown item, RV302 p_limit is out of range.$$;
