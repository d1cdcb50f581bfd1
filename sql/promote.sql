-- promote moves an item's line. It is the hardest piece of the sale. One call does three things, in
-- this order.
--
-- 1. If the sale has closed, the line ends: every customer who still waits is told that there was
--    no unit for them (end_line).
-- 2. Forfeits are recycled (recycle_forfeits). An order that ended without a sale has a ticket that
--    some later ticket was waiting behind. Once the line has passed it (its ticket is not above
--    now_serving), it is counted into items.forfeited and marked as recycled. now_serving is
--    stock + forfeited, so the line moves by one ticket per recycled order.
-- 3. If the item is open, and the payment provider is not down, the waiting orders that now_serving
--    has reached get their holds, the lowest tickets first: grant_holds, and serve_groups for those
--    that asked for several units.
--
-- Why this is safe when many sweeps and many customers are at work at once:
--
-- * The item's row is locked first, so one sweep at a time serves an item. Another sweep skips the
--   item rather than wait for it (skip locked), and so does a sweep that meets an operator.
-- * Orders are locked with skip locked too. An order that another transaction is cancelling or
--   paying at this moment is left to the next sweep. So a sweep never waits for a customer.
-- * The clock is read after the locks have been taken. An order may have been placed shortly before
--   it was locked. With an earlier time, its hold would begin before its request, and the hold's
--   window would be too short.
-- * Every update names the state that it leaves, so a change that committed just before is never
--   overwritten. Orders that were locked are updated by an array of their ids. Joined instead, they
--   might be looked for by reading all orders, and a session keeps such a plan.
-- * Nothing here can oversell. An order is granted a hold only if its ticket is not above
--   now_serving, and now_serving grows only by orders that are marked in the same statement.
create or replace function flashsale.promote(
  p_item_id integer,
  p_limit integer default 10000,
  out recycled integer,
  out promoted integer,
  out unserved integer,
  out more boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_item flashsale_data.items;
  v_now timestamptz;
  v_shut_by text;
  v_moved record;
  v_groups record;
begin
  recycled := 0;
  promoted := 0;
  unserved := 0;
  more := false;
  select * into v_item from flashsale_data.items i
  where i.item_id = p_item_id
  for no key update skip locked;
  if not found then
    return;
  end if;

  v_now := flashsale.clock();
  v_shut_by := flashsale.shut_by(v_item.opens_at, v_item.closes_at, v_item.paused, v_now);
  if v_shut_by = 'closed' then
    unserved := flashsale.end_line(p_item_id, p_limit, v_now);
  end if;
  v_moved := flashsale.recycle_forfeits(p_item_id, v_item.now_serving, p_limit);
  recycled := v_moved.recycled;
  v_item.now_serving := v_moved.now_serving;
  if v_shut_by is null then
    promoted := flashsale.grant_holds(v_item, p_limit);
    if v_item.highest_limit > 1 then
      v_groups := flashsale.serve_groups(v_item, p_limit);
      promoted := promoted + v_groups.promoted;
      unserved := v_groups.unserved;
    end if;
  end if;
  more := greatest(unserved, recycled, promoted) >= p_limit
    or v_shut_by is null and unserved > 0; -- their units move on
end
$$;

comment on function flashsale.promote(integer, integer) is
$$Serves an item's line: recycles forfeits and grants holds, by ticket
Each hold gets its full window (hold_seconds) and its payment job in this transaction. After
closes_at the line ends instead: waiting orders become unserved. So do orders for several units of
which too few have come hold_seconds after the first one. While the item is paused or not yet
open, or the payment provider is down, nobody is promoted; and after an outage that leaves too much
to do, only as many as can get a session in time. p_limit: at most so many orders of each kind;
more: call again at once.
Returns how many orders were recycled, promoted and unserved. Never waits: if another sweep or an
operator has locked the item, or if there is no such item, it does nothing.$$;

create or replace function flashsale.end_line(p_item_id integer, p_limit integer, p_now timestamptz)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_unserved bigint[];
  v_gaps integer; -- tickets of those that have never held a unit
  v_groups bigint[]; -- those that are for several units
begin
  with leaving as (
    select o.order_id
    from flashsale_data.orders o
    where o.order_id between
        flashsale.order_id_of(p_item_id, 0) and flashsale.order_id_of(p_item_id, 2147483647)
      and o.status = 'waiting' and o.head_id is null
    order by o.order_id
    limit p_limit
    for update skip locked
  ), left_out as (
    update flashsale_data.orders o
    set status = 'unserved', ended_at = p_now
    where o.order_id = any (array(select l.order_id from leaving l)) and o.status = 'waiting'
    returning o.order_id, o.reserved_at, o.quantity
  ), noted as (
    insert into flashsale_data.outbox (type, order_id, at)
    select 'order.unserved', l.order_id, p_now from left_out l
  )
  select
    array_agg(l.order_id order by l.order_id),
    sum(coalesce(l.quantity, 1)) filter (where l.reserved_at is null),
    array_agg(l.order_id) filter (where l.quantity > 1)
  into v_unserved, v_gaps, v_groups
  from left_out l;
  perform flashsale.parts_follow(v_groups) where v_groups is not null;
  update flashsale_data.items i set gaps_in_line = i.gaps_in_line + v_gaps
  where i.item_id = p_item_id and v_gaps > 0;
  perform flashsale.enqueue_mail('unserved', v_unserved);
  return coalesce(cardinality(v_unserved), 0);
end
$$;

comment on function flashsale.end_line(integer, integer, timestamptz) is
$$Ends the waiting orders of an item whose sale has closed: unserved
The caller has locked the item and read p_now after that. Returns how many, at most p_limit, the
lowest tickets first.$$;

-- A recycled order moves the line by one ticket. The line may so pass the ticket of another order
-- that has ended, which is recycled in turn: this goes on until nothing changes. Units that an
-- operator is withdrawing leave the stock with the first forfeits: then forfeited grows, stock
-- shrinks by as many, and the line does not move.
create or replace function flashsale.recycle_forfeits(
  p_item_id integer,
  p_now_serving integer,
  p_limit integer,
  out recycled integer,
  out now_serving integer)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_now_serving integer;
  v_forfeits integer;
begin
  recycled := 0;
  now_serving := p_now_serving;
  loop
    with passed as (
      select o.order_id
      from flashsale_data.orders o
      where o.order_id between
          flashsale.order_id_of(p_item_id, 0)
          and flashsale.order_id_of(p_item_id, recycle_forfeits.now_serving)
        and o.ended_at is not null and not o.recycled
      order by o.order_id
      limit p_limit
      for update skip locked
    ), forfeited as (
      update flashsale_data.orders o
      set recycled = true
      where o.order_id = any (array(select p.order_id from passed p)) and not o.recycled
      returning o.reserved_at is null as gap
    ), counted as (
      select count(*)::integer as forfeits, count(*) filter (where f.gap)::integer as gaps
      from forfeited f
    )
    update flashsale_data.items i
    set
      forfeited = i.forfeited + c.forfeits,
      stock = i.stock - least(i.withdrawing, c.forfeits),
      withdrawing = i.withdrawing - least(i.withdrawing, c.forfeits),
      gaps_in_line = i.gaps_in_line - c.gaps,
      holds_lost = i.holds_lost + c.forfeits - c.gaps
    from counted c
    where i.item_id = p_item_id and c.forfeits > 0
    returning i.now_serving, c.forfeits into v_now_serving, v_forfeits;
    exit when not found;
    now_serving := v_now_serving;
    recycled := recycled + v_forfeits;
    exit when recycled >= p_limit;
  end loop;
end
$$;

comment on function flashsale.recycle_forfeits(integer, integer, integer) is
$$Counts orders that ended without a sale into forfeited, each once
The caller has locked the item; p_now_serving is the item's. Returns how many orders were recycled
(about p_limit at most) and what now_serving is after that.$$;

create or replace function flashsale.grant_holds(p_item flashsale_data.items, p_limit integer)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_entitled bigint[];
  v_again bigint[]; -- those that have lost a hold to an outage
  v_granted bigint[];
  v_now timestamptz;
begin
  if exists (select from flashsale.outage()) then -- no clock starts while nobody can pay
    return 0;
  end if;
  select array_agg(e.order_id), array_agg(e.order_id) filter (where e.reserved_at is not null)
  into v_entitled, v_again
  from (
    select o.order_id, o.reserved_at
    from flashsale_data.orders o
    where o.order_id between
        flashsale.order_id_of(p_item.item_id, 0)
        and flashsale.order_id_of(p_item.item_id, p_item.now_serving)
      and o.status = 'waiting' and o.quantity is null and o.head_id is null -- see serve_groups
    order by o.order_id
    limit p_limit
    for update skip locked
  ) e;
  if v_again is not null then
    v_entitled := flashsale.in_time_for_sessions(v_entitled, v_again, p_item.hold_seconds);
  end if;
  v_now := flashsale.clock(); -- after the locks: see above
  with granted as (
    update flashsale_data.orders o
    set
      status = 'reserved',
      reserved_at = v_now,
      expires_at = v_now + p_item.hold_seconds * interval '1 second'
    where o.order_id = any (v_entitled)
      and o.status = 'waiting'
      -- The item is locked, so of the reasons for a shut sale only the closing time can be new.
      and flashsale.shut_by(null, p_item.closes_at, false, v_now) is null
    returning o.order_id, o.expires_at
  ), noted as (
    insert into flashsale_data.outbox (type, order_id, at, data)
    select
      'order.reserved', g.order_id, v_now,
      jsonb_build_object('units', 1, 'expires_at', flashsale.utc(g.expires_at))
    from granted g
    order by g.order_id
  )
  select array_agg(g.order_id order by g.order_id) into v_granted from granted g;
  if v_again is not null then
    v_granted := flashsale.attempts_for(v_granted, v_again, v_now);
  end if;
  return flashsale.enqueue_payment_jobs('open', v_granted);
end
$$;

comment on function flashsale.grant_holds(flashsale_data.items, integer) is
$$Reserves a unit for each waiting order for one that the line has reached
The caller has locked the item; p_item.now_serving is up to date. Returns how many, at most p_limit,
the lowest tickets first.$$;

-- An outage may leave more holds than the worker can open sessions for while a hold lasts. If all
-- of them begin again at once, those at the end come due before their turn. Worse, a session that
-- was opened too late has to be voided, and that call keeps the next holds waiting. If a hold lasts
-- for only a few calls, none may ever get its session in time.
--
-- An order that has lost two holds shows that there are too many. (The second one began when the
-- provider was back, because nobody is promoted while it is down.) From then on holds begin again
-- only while the queue is short. A worker makes 20 calls at once. That is ten per second even if
-- each takes two seconds.
create or replace function flashsale.in_time_for_sessions(
  p_order_ids bigint[], p_again bigint[], p_hold_seconds integer)
returns bigint[]
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now constant timestamptz := clock_timestamp(); -- as pgmq; constant, for the index
  v_calls constant integer := least(10000, 10 * p_hold_seconds);
  v_due integer;
begin
  if not exists (
    select from flashsale_data.payments p
    where p.order_id = any (p_again) and p.expires_at is not null -- went back to the line
    group by p.order_id
    having count(*) > 1)
  then
    return p_order_ids;
  end if;
  select count(*) into v_due
  from (select from pgmq.q_payments q where q.vt <= v_now limit v_calls) q;
  return p_order_ids[1:v_calls - v_due];
end
$$;

comment on function flashsale.in_time_for_sessions(bigint[], bigint[], integer) is
$$Those of the orders whose holds may begin: sessions will be in time
All of them, unless one of p_again, who had a hold before, has lost two; then ten per second that a
hold lasts, at most 10,000, without the payment jobs that are due already.$$;

-- The first attempt of an order has the order's id, and its row comes later (first_payments). If an
-- outage has ended that attempt, the provider may have a session for it, with the old deadline. So
-- the new hold has a new attempt.
create or replace function flashsale.attempts_for(
  p_order_ids bigint[], p_again bigint[], p_now timestamptz)
returns bigint[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_attempts bigint[];
begin
  with again as (
    insert into flashsale_data.payments (order_id, amount, currency, requested_at)
    select o.order_id, i.price * coalesce(b.units, 1), i.currency, p_now
    from unnest(p_order_ids) o (order_id)
    cross join lateral (
      select a.units from flashsale_data.orders a where a.order_id = o.order_id limit 1
    ) b
    join flashsale_data.items i on i.item_id = flashsale.item_of(o.order_id)
    where o.order_id = any (p_again)
    order by o.order_id
    returning order_id, payment_id
  )
  select array_agg(coalesce(a.payment_id, o.order_id) order by o.order_id) into v_attempts
  from unnest(p_order_ids) o (order_id)
  left join again a on a.order_id = o.order_id;
  return v_attempts;
end
$$;

comment on function flashsale.attempts_for(bigint[], bigint[], timestamptz) is
$$The payment attempts of holds that were just granted, by ticket
p_again: those of the orders that had a hold before, which get a new attempt.$$;
