-- Ends holds whose deadline has passed. What a customer may do never depends on when this runs,
-- because every verb and every view compares the deadline with the clock. Expiring a hold makes its
-- unit available to the line and sends the customer an e-mail.
create or replace function flashsale.expire_orders(p_order_ids bigint[], p_now timestamptz)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_expired bigint[];
begin
  with expired as (
    update flashsale_data.orders o
    set status = 'expired', ended_at = p_now
    where o.order_id = any (p_order_ids)
      and o.status = 'reserved'
      and o.expires_at <= p_now
    returning o.order_id
  )
  select array_agg(e.order_id order by e.order_id) into v_expired from expired e;
  perform flashsale.void_payments_of(v_expired), flashsale.enqueue_mail('expired', v_expired);
  return coalesce(cardinality(v_expired), 0);
end
$$;

comment on function flashsale.expire_orders(bigint[], timestamptz) is
$$Expires those of the given orders that are due
The caller has locked them. p_now: read after the locks were taken. Returns how many.$$;

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
    where o.status = 'reserved' and o.expires_at <= v_now
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
p_limit: at most so many, the oldest deadlines first. Never waits: an order that another transaction
is paying or cancelling at this moment is left out.$$;

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
    where o.order_id = any (p_order_ids) and o.status = 'reserved'
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
