-- The events of new orders. reserve writes none, because a request must not pay for the feed. The
-- publisher goes through each item's line in the order of the tickets, and announces the orders
-- that it sees. Tickets without an order on the way are gaps: their orders may still be committed,
-- so the next visits look there again. A gap is over when fill has come past it: nobody can insert
-- an order there any more. So a transaction that stays open keeps nobody else's order back.
create or replace function flashsale.feed_items_per_visit() returns integer
language sql immutable parallel safe
as $$ select 1000 $$;

comment on function flashsale.feed_items_per_visit() is
$$How many lines a visit of the publisher examines for new orders$$;

create or replace function flashsale.items_to_announce(p_item_ids integer[]) returns integer[]
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_per_visit constant integer := flashsale.feed_items_per_visit();
  v_item_ids integer[];
begin
  -- An item that was created while migrate replaced create_item has no line yet.
  insert into flashsale_data.feed_lines (item_id, announced)
  select i.item_id, 0 from flashsale_data.items i
  where i.item_id = any (p_item_ids)
  on conflict do nothing;
  select array_agg(l.item_id order by l.item_id) into v_item_ids
  from (
    select l.item_id from flashsale_data.feed_lines l
    where l.item_id > (select f.last_examined_item_id from flashsale_data.feed f where f.one_row)
    order by l.item_id
    limit v_per_visit
  ) l;
  update flashsale_data.feed f
  set last_examined_item_id = n.item_id
  from (
    select case when cardinality(v_item_ids) = v_per_visit then v_item_ids[v_per_visit] else 0 end
  ) n (item_id)
  where f.one_row and f.last_examined_item_id <> n.item_id;
  return array(
    select l.item_id
    from unnest(v_item_ids || p_item_ids) i (item_id)
    cross join lateral (
      select * from flashsale_data.feed_lines a where a.item_id = i.item_id limit 1) l
    where l.gaps <> '{}' or exists (
      select from flashsale_data.orders o
      where o.order_id between
          flashsale.order_id_of(l.item_id, l.announced + 1)
          and flashsale.order_id_of(l.item_id, 2000000000)
      offset 0)
    group by l.item_id);
end
$$;

comment on function flashsale.items_to_announce(integer[]) is
$$The items that have orders to announce, or gaps to look at
Of the next items in turn, which are all items if they are up to 1,000, and of p_item_ids.$$;

-- What an order was at first, by its row and by the first thing that happened to it.
create or replace function flashsale.first_status(
  p_change text, p_created_at timestamptz, p_reserved_at timestamptz)
returns text
language sql immutable parallel safe
as $$
  select case
    when p_change in ('order.reserved', 'order.unserved') then 'waiting'
    when p_reserved_at is null and p_change is distinct from 'order.waiting' then 'waiting'
    when p_change is null and p_reserved_at > p_created_at then 'waiting'
    else 'reserved'
  end
$$;

comment on function flashsale.first_status(text, timestamptz, timestamptz) is
$$Whether a new order was reserved or waiting when it was made
p_change: the type of the first event after that; null: none is known.$$;

create or replace function flashsale.orders_to_announce(p_item_ids integer[], p_limit integer)
returns table (item_id integer, is_late boolean, ticket integer)
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select l.item_id, o.*
  from unnest(p_item_ids) i (item_id)
  cross join lateral (
    select * from flashsale_data.feed_lines a where a.item_id = i.item_id limit 1) l
  cross join lateral (
    (select false, n.ticket
    from flashsale_data.orders n
    where n.order_id between
        flashsale.order_id_of(l.item_id, l.announced + 1)
        and flashsale.order_id_of(l.item_id, 2000000000)
    order by n.order_id
    limit p_limit)
    union all
    (select true, n.ticket
    from unnest(l.gaps) g (tickets)
    cross join lateral (
      select n.ticket
      from flashsale_data.orders n
      where n.order_id between
          flashsale.order_id_of(l.item_id, lower(g.tickets))
          and flashsale.order_id_of(l.item_id, upper(g.tickets) - 1)
      order by n.order_id
      limit p_limit
    ) n
    order by n.ticket
    limit p_limit)
  ) o
$$;

comment on function flashsale.orders_to_announce(integer[], integer) is
$$The orders that are there and not announced, voids too, by ticket
p_limit: of each item at most so many after those that are announced, and so many in its gaps
(is_late).$$;

create or replace function flashsale.announce_orders(
  p_item_ids integer[], p_limit integer, out announced integer, out more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_share constant integer := greatest(1, p_limit / greatest(1, cardinality(p_item_ids)));
begin
  with found as materialized (
    select * from flashsale.orders_to_announce(p_item_ids, v_share)
  ), lines as (
    select
      i.item_id, i.settled, max(f.ticket) as last,
      coalesce(range_agg(int4range(f.ticket, f.ticket, '[]'))
        filter (where f.ticket is not null), '{}') as tickets,
      count(*) filter (where not f.is_late) >= v_share as has_more,
      count(*) filter (where f.is_late) >= v_share as has_more_late
    from unnest(p_item_ids) u (item_id)
    join flashsale_data.items i on i.item_id = u.item_id
    left join found f on f.item_id = u.item_id
    group by i.item_id
  ), walked as (
    update flashsale_data.feed_lines l
    set
      announced = greatest(l.announced, n.last),
      gaps = (l.gaps + int4multirange(
          int4range(l.announced + 1, greatest(l.announced, n.last) + 1)) - n.tickets)
        * int4multirange(int4range(case when not n.has_more_late then n.settled + 1 end, null))
    from lines n
    where l.item_id = n.item_id
    returning n.has_more or n.has_more_late as has_more
  ), changed as (
    select distinct on (c.order_id) c.order_id, c.type
    from flashsale.new_in_outbox(p_limit) c
    order by c.order_id, c.outbox_id
  ), numbered as (
    insert into flashsale_data.events (event_id, item_id, order_id, at, type, data)
    select
      (select r.last_event_id from flashsale_data.feed r where r.one_row)
        + row_number() over (order by o.order_id),
      o.item_id, o.order_id,
      case when d.entry_id is null then o.created_at else flashsale.clock() end,
      case when d.entry_id is null then 'order.created' else 'order.placed' end,
      jsonb_build_object(
        'status', s.status, 'ticket', o.ticket, 'quantity', coalesce(o.quantity, 1),
        'units', case when s.status = 'reserved' then coalesce(o.units, 1) end)
    from found f
    cross join lateral (
      select * from flashsale_data.orders n
      where n.order_id = flashsale.order_id_of(f.item_id, f.ticket)
      limit 1
    ) o
    left join changed c on c.order_id = o.order_id
    left join lateral (
      select e.entry_id from flashsale_data.drawn_entries e where e.order_id = o.order_id limit 1
    ) d on true
    cross join lateral (
      select flashsale.first_status(c.type, o.created_at, o.reserved_at) as status) s
    where o.customer_id is not null -- else it is a void, or part of another order
      and (d.entry_id is null or o.ended_at is null) -- else it has ended as an entry
    order by o.order_id
    returning 1
  )
  select (select count(*) from numbered), coalesce(bool_or(w.has_more), false)
  into announced, more from walked w;
  update flashsale_data.feed f set last_event_id = f.last_event_id + announced
  where f.one_row and announced > 0;
end
$$;

comment on function flashsale.announce_orders(integer[], integer) is
$$Writes the events of orders that are new; returns how many
The caller has locked feed. p_limit: about so many, shared by the items; more: there are more.$$;
