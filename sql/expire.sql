-- Ends holds whose deadline has passed. What a customer may do never depends on when this runs,
-- because every verb and every view compares the deadline with the clock, and asks hold_fates what
-- that means. A hold that expires makes its unit available to the line, and the customer gets an
-- e-mail. A hold with a session that may have been paid in time settles first. A hold that the
-- customer could not pay, because of an outage of the provider, goes back to the line.
create or replace function flashsale.expire_orders(p_order_ids bigint[], p_now timestamptz)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_due bigint[];  -- holds whose deadline has passed
  v_over bigint[]; -- ... and those that have settled for too long
  v_settling bigint[];
  v_waiting bigint[];
  v_expiring bigint[];
  v_expired bigint[];
  v_groups bigint[]; -- those that are for several units
begin
  select
    array_agg(o.order_id) filter (where o.quantity > 1),
    array_agg(o.order_id) filter (where o.status = 'reserved' and o.expires_at <= p_now),
    array_agg(o.order_id) filter (where o.status = 'settling' and o.settle_until <= p_now)
  into v_groups, v_due, v_over
  from flashsale_data.orders o
  where o.order_id = any (p_order_ids);
  select
    array_agg(f.order_id order by f.order_id) filter (where f.fate = 'settling'),
    array_agg(f.order_id order by f.order_id) filter (where f.fate = 'waiting'),
    array_agg(f.order_id order by f.order_id) filter (where f.fate = 'expired')
  into v_settling, v_waiting, v_expiring
  from flashsale.hold_fates(v_due) f;
  perform flashsale.settle_orders(v_settling, p_now) where v_settling is not null;
  perform flashsale.return_to_line(v_waiting, p_now) where v_waiting is not null;
  with expired as (
    update flashsale_data.orders o
    set status = 'expired', ended_at = p_now, settle_until = null
    where o.order_id = any (v_expiring || v_over) and o.status in ('reserved', 'settling')
    returning o.order_id
  )
  select array_agg(e.order_id order by e.order_id) into v_expired from expired e;
  perform flashsale.parts_follow(v_groups) where v_groups is not null;
  -- The voids of those that have settled were enqueued when they began to settle.
  perform flashsale.enqueue_voids(v_expiring), flashsale.enqueue_mail('expired', v_expired);
  return coalesce(cardinality(v_expired), 0);
end
$$;

comment on function flashsale.expire_orders(bigint[], timestamptz) is
$$Expires those of the given orders that are due, or has them settle
The caller has locked them. p_now: read after the locks were taken. Returns how many expired.$$;

create or replace function flashsale.settle_orders(p_order_ids bigint[], p_now timestamptz)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  update flashsale_data.orders o
  set
    status = 'settling',
    settle_until = p_now + (
      select i.settle_seconds * interval '1 second'
      from flashsale_data.items i
      where i.item_id = o.item_id)
  where o.order_id = any (p_order_ids) and o.status = 'reserved';
  perform flashsale.enqueue_voids(p_order_ids);
end
$$;

comment on function flashsale.settle_orders(bigint[], timestamptz) is
$$Has the provider asked about the sessions of holds that are over
The caller has locked the orders. The answer decides: paid or expired. After the item's
settle_seconds without an answer they expire.$$;

-- The order keeps reserved_at, by which grant_holds knows that its next hold needs a new attempt.
-- There is nothing to void: a session that was opened too late has its void, and one that is found
-- later gets it then (payment_opened).
create or replace function flashsale.return_to_line(p_order_ids bigint[], p_now timestamptz)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  perform flashsale.first_payments(p_order_ids);
  update flashsale_data.payments p
  set
    status = 'failed', ended_at = p_now,
    expires_at = (
      select o.expires_at from flashsale_data.orders o where o.order_id = p.order_id)
  where p.order_id = any (p_order_ids)
    and p.ended_at is null -- by the index of active attempts
    and p.status in ('requested', 'open');
  update flashsale_data.orders o
  set status = 'waiting', expires_at = null, units = null
  where o.order_id = any (p_order_ids) and o.status = 'reserved';
end
$$;

comment on function flashsale.return_to_line(bigint[], timestamptz) is
$$Gives holds back that nobody could pay: their customers are the next
The caller has locked the orders. Nobody gets an e-mail.$$;

create or replace function flashsale.expire(p_limit integer default 10000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now constant timestamptz := flashsale.clock(); -- constant, so that an index can be used
  v_due bigint[];
begin
  select array_agg(d.order_id) into v_due
  from (
    select o.order_id
    from flashsale_data.orders o
    where (o.status = 'reserved' or o.settle_until <= v_now) and o.expires_at <= v_now
      and o.paid_at is null and o.ended_at is null -- by the index of holds
    order by o.expires_at
    limit p_limit
    for update skip locked
  ) d;
  if v_due is null then
    return 0;
  end if;
  return flashsale.expire_orders(v_due, flashsale.clock());
end
$$;

comment on function flashsale.expire(integer) is
$$Expires holds whose deadline has passed; returns how many
A hold whose session may have been paid in time begins to settle instead, and one that nobody could
pay goes back to the line: these are not counted. p_limit: at most so many, the oldest deadlines
first. Never waits: an order that another transaction is paying or cancelling is left out.$$;

create or replace function flashsale.expire_holds(p_order_ids bigint[]) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_due bigint[];
begin
  select array_agg(d.order_id) into v_due
  from (
    select o.order_id
    from flashsale_data.orders o
    where o.order_id = any (p_order_ids) and o.status in ('reserved', 'settling')
    for update skip locked
  ) d;
  if v_due is null then
    return 0;
  end if;
  return flashsale.expire_orders(v_due, flashsale.clock());
end
$$;

comment on function flashsale.expire_holds(bigint[]) is
$$Expires those of the given orders that are due; returns how many
Never waits: an order that another transaction is paying or cancelling is left out.$$;
