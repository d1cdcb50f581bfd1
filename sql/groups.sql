-- Orders for several units. An order for q units has q tickets, and a row for each: the row of the
-- first ticket is the order itself, the head, and the others are its parts. A part names its head
-- (head_id), and has neither a customer nor a deadline. Whoever changes the order locks the head
-- first, changes it, and lets the parts follow. So the parts need no locks of their own, and every
-- statement that is about orders, and not about tickets, leaves rows with a head_id out.
--
-- The line counts tickets, so parts are served, forfeited and recycled like any other ticket, and
-- the sums of the line stay as they are. What is new is when an order is granted: as soon as
-- min_quantity of its tickets are served, with all that are served by then. Its other tickets are
-- given up: they end as unserved. Until then, units are set aside for a group that it can't use
-- yet. It keeps them for at most hold_seconds, from the first one on. Then it ends as unserved, and
-- they move on.
create or replace function flashsale.parts_follow(p_order_ids bigint[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  update flashsale_data.orders p
  set status = h.status, paid_at = h.paid_at, ended_at = h.ended_at
  from flashsale_data.orders h
  where p.head_id = any (p_order_ids) and p.ended_at is null
    and h.order_id = any (p_order_ids) and h.order_id = p.head_id
    and p.status <> h.status;
end
$$;

comment on function flashsale.parts_follow(bigint[]) is
$$Brings the parts of orders for several units into the state of the order
The caller has locked and changed these orders. Tickets that were given up stay as they are.$$;

create or replace function flashsale.serve_groups(
  p_item flashsale_data.items,
  p_limit integer,
  out promoted integer,
  out unserved integer)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_served bigint[]; -- those of whose tickets enough are served
  v_again bigint[];  -- ... and that have lost a hold to an outage
begin
  promoted := 0;
  unserved := 0;
  if exists (select from flashsale.outage()) then -- no clock starts while nobody can pay
    return;
  end if;
  select array_agg(s.order_id), array_agg(s.order_id) filter (where s.reserved_at is not null)
  into v_served, v_again
  from (
    select h.order_id, h.reserved_at
    from flashsale_data.orders h
    where h.order_id between
        flashsale.order_id_of(p_item.item_id, 0)
        and flashsale.order_id_of(p_item.item_id, p_item.now_serving)
      and h.status = 'waiting' and h.quantity > 1
      and flashsale.served_tickets(h.order_id, p_item.now_serving)
        >= coalesce(h.min_quantity, h.quantity)
    order by h.order_id
    limit p_limit
    for update skip locked
  ) s;
  if v_again is not null then
    v_served := flashsale.in_time_for_sessions(v_served, v_again, p_item.hold_seconds);
  end if;
  promoted := flashsale.grant_groups(p_item, v_served, v_again);
  unserved := flashsale.end_late_groups(p_item, p_limit);
end
$$;

comment on function flashsale.serve_groups(flashsale_data.items, integer) is
$$Reserves units for waiting orders that asked for several
The caller has locked the item; p_item.now_serving is up to date. Returns how many orders got theirs
and how many had to give theirs up, each at most p_limit, the lowest tickets first.$$;

create or replace function flashsale.served_tickets(p_order_id bigint, p_now_serving integer)
returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  return (
    select 1 + count(*)
    from flashsale_data.orders p
    where p.head_id = p_order_id and p.ended_at is null and p.ticket <= p_now_serving);
end
$$;

comment on function flashsale.served_tickets(bigint, integer) is
$$How many tickets of an order are served, of one whose first ticket is$$;

create or replace function flashsale.grant_groups(
  p_item flashsale_data.items, p_order_ids bigint[], p_again bigint[])
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now constant timestamptz := flashsale.clock(); -- after the locks: see promote
  v_granted bigint[];
begin
  with granted as (
    update flashsale_data.orders o
    set
      status = 'reserved',
      reserved_at = v_now,
      expires_at = v_now + p_item.hold_seconds * interval '1 second',
      units = flashsale.served_tickets(o.order_id, p_item.now_serving)
    where o.order_id = any (p_order_ids)
      and o.status = 'waiting'
      and flashsale.shut_by(null, p_item.closes_at, false, v_now) is null
    returning o.order_id
  )
  select array_agg(g.order_id order by g.order_id) into v_granted from granted g;
  if v_granted is null then
    return 0;
  end if;
  update flashsale_data.orders p
  set status = 'reserved', reserved_at = v_now
  where p.head_id = any (v_granted) and p.status = 'waiting' and p.ticket <= p_item.now_serving;
  with given_up as (
    update flashsale_data.orders p
    set status = 'unserved', ended_at = v_now
    where p.head_id = any (v_granted) and p.status = 'waiting'
    returning p.reserved_at
  )
  update flashsale_data.items i
  set gaps_in_line = i.gaps_in_line + g.tickets
  from (select count(*)::integer as tickets from given_up u where u.reserved_at is null) g
  where i.item_id = p_item.item_id and g.tickets > 0;
  if p_again is not null then
    v_granted := flashsale.attempts_for(v_granted, p_again, v_now);
  end if;
  return flashsale.enqueue_payment_jobs('open', v_granted);
end
$$;

comment on function flashsale.grant_groups(flashsale_data.items, bigint[], bigint[]) is
$$Grants holds to orders for several units, with the tickets served
The caller has locked the item and the orders. p_again: those that had a hold before. The tickets
that are not served are given up. Returns how many orders.$$;

create or replace function flashsale.end_late_groups(p_item flashsale_data.items, p_limit integer)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_first constant bigint := flashsale.order_id_of(p_item.item_id, 0);
  v_last constant bigint := flashsale.order_id_of(p_item.item_id, p_item.now_serving);
  v_now constant timestamptz := flashsale.clock();
  v_ended bigint[];
  v_gaps integer;
begin
  update flashsale_data.orders o
  set part_served_at = v_now
  where o.order_id = any (array(
    select h.order_id from flashsale_data.orders h
    where h.order_id between v_first and v_last and h.status = 'waiting' and h.quantity > 1
      and h.part_served_at is null and h.reserved_at is null
    order by h.order_id
    limit p_limit
    for update skip locked));
  with ended as (
    update flashsale_data.orders o
    set status = 'unserved', ended_at = v_now
    where o.order_id = any (array(
        select h.order_id from flashsale_data.orders h
        where h.order_id between v_first and v_last and h.status = 'waiting' and h.quantity > 1
          and h.reserved_at is null
          and h.part_served_at + p_item.hold_seconds * interval '1 second' <= v_now
          and flashsale.served_tickets(h.order_id, p_item.now_serving)
            < coalesce(h.min_quantity, h.quantity)
        order by h.order_id
        limit p_limit
        for update skip locked))
      and o.status = 'waiting'
    returning o.order_id, o.quantity
  )
  select array_agg(e.order_id order by e.order_id), sum(e.quantity)
  into v_ended, v_gaps
  from ended e;
  if v_ended is null then
    return 0;
  end if;
  perform flashsale.parts_follow(v_ended), flashsale.enqueue_mail('unserved', v_ended);
  update flashsale_data.items i set gaps_in_line = i.gaps_in_line + v_gaps
  where i.item_id = p_item.item_id;
  return cardinality(v_ended);
end
$$;

comment on function flashsale.end_late_groups(flashsale_data.items, integer) is
$$Ends orders whose units have not all come in time: unserved
Notes when the first ticket of an order was served; hold_seconds after that its time is over. The
caller has locked the item. Returns how many orders ended, at most p_limit.$$;
