-- Orders lie by ticket in their primary key. There is no index by status, because every order would
-- pay for it. So a page looks at a limited number of orders, and says where it has stopped.
create or replace function flashsale.orders_of_item(
  p_item_id integer,
  p_status text default null,
  p_after bigint default null,
  p_limit integer default 100)
returns setof flashsale.order_row
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_limit constant integer := least(p_limit, 1000);
  v_ids bigint[];  -- the page
  v_next bigint;   -- where the next page begins, if there may be one
  v_row flashsale.order_row;
begin
  perform flashsale.check_page(p_item_id, p_status, p_limit);
  with looked as materialized (
    select o.order_id, o.status, o.customer_id
    from flashsale_data.orders o
    where o.order_id > greatest(flashsale.current_id(p_after), flashsale.order_id_of(p_item_id, 0))
      and o.order_id <= flashsale.order_id_of(p_item_id, 2147483647)
    order by o.order_id
    limit 10000
  ), fitting as (
    select l.order_id
    from looked l
    where l.customer_id is not null
      and (p_status is null or l.status::text = p_status
        -- What a hold past its deadline is shown as.
        or l.status = 'reserved' and p_status in ('settling', 'expired', 'waiting'))
    order by l.order_id
    limit v_limit
  )
  select
    (select array_agg(f.order_id order by f.order_id) from fitting f),
    case
      when (select count(*) from fitting) = v_limit then (select max(f.order_id) from fitting f)
      when (select count(*) from looked) = 10000 then (select max(l.order_id) from looked l)
    end
  into v_ids, v_next;
  return query
  select r.*
  from unnest(v_ids) with ordinality u (order_id, n)
  cross join lateral flashsale.as_row(u.order_id, 'found') r
  where p_status is null or r.status = p_status
  order by u.n;
  if v_next is not null then
    v_row.outcome := 'more';
    v_row.order_id := v_next;
    return next v_row;
  end if;
end
$$;

comment on function flashsale.orders_of_item(integer, text, bigint, integer) is
$$The orders of an item, of all customers, by ticket
p_status: only those that are shown with this status; null: all. p_after: an order_id, to go on
after that order. p_limit: at most so many, 1 to 1,000. A page looks at 10,000 orders at most, so it
may have fewer rows than p_limit, or none, although more follow.
Outcomes: found; more (of a last row that is no order: pass its order_id as p_after to go on).
Errors: RV101 unknown item, RV302 there is no such status, or p_limit is out of range.$$;

create or replace function flashsale.check_page(
  p_item_id integer, p_status text, p_limit integer)
returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  perform from flashsale_data.items i where i.item_id = p_item_id;
  if not found then
    perform flashsale.raise_unknown_item(p_item_id);
  elsif p_status = 'void' or p_status is not null and not exists (
    select from unnest(enum_range(null::flashsale_data.order_status)) s (status)
    where s.status::text = p_status)
  then
    raise exception 'There is no such status.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('status %L', p_status),
      hint = 'An order is entered, waiting, reserved, settling, paid, refunded, expired, '
        'cancelled or unserved.';
  elsif coalesce(p_limit not between 1 and 1000, true) then
    raise exception 'A page has 1 to 1000 rows.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('limit %s', p_limit);
  end if;
end
$$;

comment on function flashsale.check_page(integer, text, integer) is
$$Raises if there can be no such page of an item's orders
Errors: RV101 unknown item, RV302 there is no such status, or p_limit is not 1 to 1,000.$$;
