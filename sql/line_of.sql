-- What a waiting order is told: its place in the line, and the chance to be served.
--
-- The place is the number of orders that wait before it, plus one, so whoever has left the line is
-- before nobody. It is counted in the index of waiting orders, which holds only those. So it is
-- exact at every moment, whether or not a sweep has run. There is one exception: whoever comes back
-- because of an outage (hold_fates) is counted once expire has marked them, within a sweep. The
-- count stops at a thousand.
--
-- Beyond that the place is arithmetic. It is at most the number of tickets from the head of the
-- line to the order, and it is kept below the number of orders that wait for certain: each ticket
-- above now_serving and up to `settled` waits or has left the line, and those that left are in
-- gaps_in_line and in tallies. An order may have as many tickets as the item has ever let a
-- customer have, so the tickets that wait are divided by that. If that shows that a thousand orders
-- wait before this one, nothing is counted. So of a million customers who look, only those near the
-- head cost a count, and those for whom so many have left that one can't tell without it.
--
-- Units go to tickets, so the chance depends on the tickets that wait in front of the one that
-- brings the order its hold: its own, or that of the last unit that it needs at least. These are
-- counted up to a thousand too.
--
-- Nothing is kept for this. A sweep could note the thousandth waiting order of each line, but more
-- orders may have left since, so that the count would have to go on from there.
create or replace function flashsale.line_of(
  p_item_id integer, p_first_order_id bigint, p_last_order_id bigint)
returns flashsale_data.line
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_tickets_ahead integer; -- of the last one, and its own
  v_left integer;          -- tickets that have left the line before they held a unit
  v_item flashsale_data.items;
  v_line flashsale_data.line;
begin
  select i.* into v_item from flashsale_data.items i where i.item_id = p_item_id;
  v_line := flashsale.outlook(v_item);
  v_tickets_ahead := flashsale.ticket_of(p_last_order_id) - v_item.now_serving;
  if v_tickets_ahead > 1000 then
    select v_item.gaps_in_line + coalesce(sum(t.gaps_in_line), 0) into v_left
    from flashsale_data.tallies t
    where t.item_id = p_item_id;
    v_line.waiting := greatest(0, v_item.settled - v_item.now_serving - v_left);
    if v_line.waiting < v_tickets_ahead then
      v_line.waiting := v_line.waiting + flashsale.waiting_after(
        p_item_id, greatest(v_item.settled, v_item.now_serving));
    end if;
  end if;
  if v_left is null or 1000 * v_line.order_limit >
    least(flashsale.ticket_of(p_first_order_id) - 1, v_item.settled) - v_item.now_serving - v_left
  then
    v_line.first_waiting := array(
      select o.order_id
      from flashsale_data.orders o
      where o.order_id between flashsale.order_id_of(p_item_id, 0) and p_last_order_id
        and o.status = 'waiting' and o.head_id is null
      order by o.order_id
      limit 1000);
    if v_line.order_limit > 1 then
      v_line.next_tickets := flashsale.next_tickets(p_item_id, v_item.now_serving);
    end if;
  end if;
  return v_line;
end
$$;

comment on function flashsale.line_of(integer, bigint, bigint) is
$$An item's line, as far as place_in needs it for orders of the item
p_first_order_id, p_last_order_id: the lowest and the highest of these orders. It reads at most
1,000 waiting orders, and those that have joined a long line since the last sweep.$$;

create or replace function flashsale.next_tickets(p_item_id integer, p_now_serving integer)
returns bigint[]
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select array(
    select o.order_id
    from flashsale_data.orders o
    where o.order_id between
        flashsale.order_id_of(p_item_id, p_now_serving + 1)
        and flashsale.order_id_of(p_item_id, 2147483647)
      and o.status = 'waiting'
    order by o.order_id
    limit 1000)
$$;

comment on function flashsale.next_tickets(integer, integer) is
$$The ids of the first thousand waiting tickets that need a unit$$;

create or replace function flashsale.granting_id(p_order_id bigint) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_more integer;
begin
  select coalesce(o.min_quantity, o.quantity, 1) - 1 into v_more
  from flashsale_data.orders o
  where o.order_id = p_order_id;
  return case when v_more > 0 then (
    select p.order_id
    from flashsale_data.orders p
    where p.head_id = p_order_id
    order by p.order_id
    offset v_more - 1
    limit 1) else p_order_id end;
end
$$;

comment on function flashsale.granting_id(bigint) is
$$The id of the ticket that brings a waiting order its hold
That of the last unit that it needs at least: for most orders their own.$$;

create or replace function flashsale.waiting_after(p_item_id integer, p_ticket integer)
returns integer
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select count(*)::integer
  from (
    select from flashsale_data.orders o
    where o.order_id between
        flashsale.order_id_of(p_item_id, p_ticket + 1)
        and flashsale.order_id_of(p_item_id, 2147483647)
      and o.status = 'waiting'
    limit 10000
  ) o
$$;

comment on function flashsale.waiting_after(integer, integer) is
$$How many tickets wait behind a ticket; 10,000 means that many or more$$;

-- If the sale closes soon, units come back less often. A unit that nobody buys comes back about
-- once per hold. If a share q of the holds ends without a sale, it comes back q + q^2 + q^3 + …
-- times on average; in the first m rounds it is 1 - q^m of that. So this share of the units counts.
-- That is a rough measure, but it is right at both ends.
create or replace function flashsale.outlook(p_item flashsale_data.items)
returns flashsale_data.line
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now constant timestamptz := flashsale.clock();
  v_lost constant double precision := 2 + greatest(0, p_item.holds_lost); -- as chance() has it
  v_rounds double precision;
  v_line flashsale_data.line;
begin
  v_line.item_id := p_item.item_id;
  v_line.now_serving := p_item.now_serving;
  v_line.order_limit := p_item.highest_limit;
  v_line.units := greatest(0, p_item.stock - p_item.paid - p_item.withdrawing);
  v_line.sold := p_item.holds_sold;
  v_line.lost := p_item.holds_lost;
  v_line.is_closed := coalesce(
    flashsale.shut_by(null, p_item.closes_at, false, v_now) = 'closed', false);
  if p_item.closes_at is not null then
    v_rounds := extract(epoch from p_item.closes_at - v_now) / p_item.hold_seconds;
    v_line.units := round(v_line.units * (1 - power(
      v_lost / (v_lost + 4 + greatest(0, p_item.holds_sold)), greatest(0, least(50, v_rounds)))));
  end if;
  v_line.as_of := least(v_now, greatest(
    p_item.created_at, (select max(s.swept_at) from flashsale_data.sweepers s)));
  return v_line;
end
$$;

comment on function flashsale.outlook(flashsale_data.items) is
$$What the chances of an item's waiting orders depend on
It is all in the item's row, so it is as of the last sweep.$$;

create or replace function flashsale.place_in(p_line flashsale_data.line, p_order_id bigint)
returns flashsale_data.place
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_entitled constant bigint := flashsale.order_id_of(p_line.item_id, p_line.now_serving);
  v_granting constant bigint := case
    when p_line.order_limit > 1 then flashsale.granting_id(p_order_id) else p_order_id end;
  v_next integer; -- its place among the tickets that still need a unit
  v_place flashsale_data.place;
begin
  -- width_bucket: how many of a sorted array are not above a value
  v_place.position := case
    when p_line.first_waiting is null or p_line.first_waiting[1000] < p_order_id
      then greatest(1001, least(
        flashsale.ticket_of(p_order_id) - p_line.now_serving,
        p_line.waiting / p_line.order_limit))
    else 1 + width_bucket(p_order_id - 1, p_line.first_waiting)
  end;
  v_next := case
    when p_line.next_tickets[1000] < v_granting or p_line.next_tickets is null
      and (p_line.order_limit > 1 or v_place.position > 1000)
      then greatest(1001, least(
        flashsale.ticket_of(v_granting) - p_line.now_serving, p_line.waiting))
    when p_line.order_limit > 1 then 1 + width_bucket(v_granting - 1, p_line.next_tickets)
    else v_place.position - width_bucket(v_entitled, p_line.first_waiting)
  end;
  v_place.chance := case
    when p_line.is_closed then 0
    when v_granting <= v_entitled then 1
    when p_line.units < 1 then 0
    else least(0.99, round(100 * flashsale.chance(
      v_next, p_line.units, p_line.sold, p_line.lost)) / 100)
  end;
  v_place.as_of := p_line.as_of;
  return v_place;
end
$$;

comment on function flashsale.place_in(flashsale_data.line, bigint) is
$$The position and the chance of a waiting order
p_line: from line_of, for a range of orders that this one is in. The chance has two decimals, so
that streams tell customers only of changes that mean something.$$;

create or replace function flashsale.place_of(p_order_id bigint) returns flashsale_data.place
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return flashsale.place_in(
    flashsale.line_of(flashsale.item_of(p_order_id), p_order_id, p_order_id), p_order_id);
end
$$;

comment on function flashsale.place_of(bigint) is
$$The position of a waiting order, and the chance that it is served
A function because a view's reader has no right to the tables. Call it for waiting orders only.$$;

-- A process that streams orders asks for hundreds of them at once, so each line is read once.
create or replace function flashsale.places(p_order_ids bigint[])
returns table (order_id bigint, place flashsale_data.place)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select u.order_id, flashsale.place_in(l.line, u.order_id)
  from (
    select flashsale.line_of(flashsale.item_of(a.order_id), min(a.order_id), max(a.order_id))
        as line,
      array_agg(a.order_id) as order_ids
    from unnest(p_order_ids) a (order_id)
    group by flashsale.item_of(a.order_id)
    offset 0 -- keeps the planner from reading the line once per order
  ) l
  cross join lateral unnest(l.order_ids) u (order_id)
$$;

comment on function flashsale.places(bigint[]) is
$$The same as place_of, for many waiting orders at once$$;
