-- What only grows is deleted by age: idempotency keys, events of the payment provider, e-mails that
-- could not be delivered, and the history, each after the number of days in the table retention.
--
-- None of these tables has an index on time, which each request would pay for. So a walk goes
-- through a table by its primary key, a few rows per visit, once a day, and deletes what is old.
-- The runners visit in each round (begin_sweep). A visit never waits: rows are locked with skip
-- locked, and a row that is left out has its turn a day later.
create or replace function flashsale.kinds_kept() returns table (kind text, days integer)
language sql immutable parallel safe rows 6 set search_path = pg_catalog, pg_temp
as $$
  values
    ('keys', 90), ('request_keys', 90), ('payment_events', 180), ('dead_mail', 90),
    ('events', 90),
    ('history', null::integer)
$$;

comment on function flashsale.kinds_kept() is
$$What purge deletes, and after how many days unless set_retention says$$;

insert into flashsale_data.retention (kind, days)
select k.kind, k.days from flashsale.kinds_kept() k
on conflict (kind) do nothing;

create or replace function flashsale.purge(
  p_limit integer default 1000, out purged integer, out more boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := flashsale.clock();
  v_limit constant integer := least(greatest(1, p_limit), 100000);
  v_walk flashsale_data.retention;
  v_step record;
begin
  purged := 0;
  select * into v_walk
  from flashsale_data.retention r
  where r.days is not null and r.next_at <= v_now
  order by r.next_at
  limit 1
  for no key update skip locked;
  more := found;
  if not found then
    return;
  end if;
  if v_walk.kind = 'keys' then
    v_step := flashsale.purge_keys(
      v_walk.walked_to, v_now - v_walk.days * interval '1 day', v_limit);
  elsif v_walk.kind = 'request_keys' then
    v_step := flashsale.purge_request_keys(v_now - v_walk.days * interval '1 day', v_limit);
  elsif v_walk.kind = 'payment_events' then
    v_step := flashsale.purge_payment_events(
      v_walk.walked_to, v_now - v_walk.days * interval '1 day', v_limit);
  elsif v_walk.kind = 'events' then
    v_step := flashsale.purge_events(v_walk.days * interval '1 day', v_limit);
  elsif v_walk.kind = 'dead_mail' then
    v_step := flashsale.purge_dead_mail(
      v_walk.walked_to, v_now - v_walk.days * interval '1 day', v_limit);
  else
    v_step := flashsale.purge_history(
      v_walk.walked_to, v_now - v_walk.days * interval '1 day', v_limit);
  end if;
  purged := v_step.purged;
  update flashsale_data.retention r
  set
    walked_to = v_step.walked_to,
    next_at = case when v_step.walked_to is null then v_now + interval '1 day' else r.next_at end
  where r.kind = v_walk.kind;
end
$$;

comment on function flashsale.purge(integer) is
$$Deletes some of what is older than the days of its kind in retention
Runners call it in each round, so nobody has to. p_limit: it looks at so many rows at most, up to
100,000. purged: how many it has deleted; more: call again to go on with today's walk. Never
waits.$$;

create or replace function flashsale.purge_events(
  p_older_than interval, p_limit integer, out purged integer, out walked_to text[])
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  purged := flashsale.forget_events(p_older_than, p_limit);
  walked_to := case when purged >= p_limit then '{}'::text[] end;
end
$$;

comment on function flashsale.purge_events(interval, integer) is
$$A step through the feed: deletes its oldest events
walked_to: null if that was the last step for today.$$;

create or replace function flashsale.purge_keys(
  p_after text[], p_before timestamptz, p_limit integer, out purged integer, out walked_to text[])
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_looked integer;
begin
  with looked as materialized (
    select k.customer_id, k.item_id, k.idempotency_key, k.order_id
    from flashsale_data.order_keys k
    where (k.customer_id, k.item_id, k.idempotency_key)
      > (coalesce(p_after[1], ''), coalesce(p_after[2]::integer, 0), coalesce(p_after[3], ''))
    order by k.customer_id, k.item_id, k.idempotency_key
    limit p_limit
  ), old as (
    select k.customer_id, k.item_id, k.idempotency_key
    from looked l
    cross join lateral (
      select 1 from flashsale_data.orders o
      where o.order_id = flashsale.current_id(l.order_id)
        and (coalesce(o.ended_at, o.paid_at) < p_before
          or flashsale.is_forgotten(o.customer_id)) -- see forget_customer
      offset 0) o -- a probe per key
    join flashsale_data.order_keys k
      on k.customer_id = l.customer_id and k.item_id = l.item_id
      and k.idempotency_key = l.idempotency_key
    for update of k skip locked
  ), gone as (
    delete from flashsale_data.order_keys k
    using old o
    where k.customer_id = o.customer_id and k.item_id = o.item_id
      and k.idempotency_key = o.idempotency_key
    returning 1
  )
  select (select count(*) from gone), (select count(*) from looked), (
    select array[l.customer_id, l.item_id::text, l.idempotency_key]
    from looked l
    order by l.customer_id desc, l.item_id desc, l.idempotency_key desc
    limit 1)
  into purged, v_looked, walked_to;
  if v_looked < p_limit then
    walked_to := null;
  end if;
end
$$;

comment on function flashsale.purge_keys(text[], timestamptz, integer) is
$$A step through the keys: deletes those of orders that ended before
An order has ended when nothing can come of it any more, or when it was paid. Later a retry of that
request is a new request. Returns how many keys were deleted, and the last one seen; null: there are
no more.$$;

create or replace function flashsale.purge_request_keys(
  p_before timestamptz, p_limit integer, out purged integer, out walked_to text[])
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  with old as (
    select k.scope, k.idempotency_key
    from flashsale_data.request_keys k
    where k.created_at < p_before -- by its index
    order by k.created_at
    limit p_limit
    for update skip locked
  )
  delete from flashsale_data.request_keys k
  using old o
  where k.scope = o.scope and k.idempotency_key = o.idempotency_key;
  get diagnostics purged = row_count;
  walked_to := case when purged = p_limit then '{}'::text[] end;
end
$$;

comment on function flashsale.purge_request_keys(timestamptz, integer) is
$$Deletes the oldest keys of other calls, those from before
Returns how many, and an empty array: there are more; null: there are none.$$;

create or replace function flashsale.purge_payment_events(
  p_after text[], p_before timestamptz, p_limit integer, out purged integer, out walked_to text[])
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_looked text[];
begin
  v_looked := array(
    select e.event_id from flashsale_data.payment_events e
    where e.event_id > coalesce(p_after[1], '')
    order by e.event_id
    limit p_limit);
  delete from flashsale_data.payment_events e
  where e.event_id = any (array(
    select o.event_id from flashsale_data.payment_events o
    where o.event_id = any (v_looked) and o.received_at < p_before
    for update skip locked));
  get diagnostics purged = row_count;
  if cardinality(v_looked) = p_limit then
    walked_to := v_looked[p_limit:];
  end if;
end
$$;

comment on function flashsale.purge_payment_events(text[], timestamptz, integer) is
$$A step through the provider's events: deletes those received before
The same event after that is judged anew, and finds its payment as it is. Returns as purge_keys
does.$$;

create or replace function flashsale.purge_dead_mail(
  p_after text[], p_before timestamptz, p_limit integer, out purged integer, out walked_to text[])
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_looked bigint[];
begin
  v_looked := array(
    select d.dead_letter_id from flashsale_data.dead_letters d
    where d.dead_letter_id > coalesce(p_after[1]::bigint, 0)
    order by d.dead_letter_id
    limit p_limit);
  delete from flashsale_data.dead_letters d
  where d.dead_letter_id = any (array(
    select o.dead_letter_id from flashsale_data.dead_letters o
    where o.dead_letter_id = any (v_looked) and o.queue = 'notifications' and o.died_at < p_before
    for update skip locked));
  get diagnostics purged = row_count;
  if cardinality(v_looked) = p_limit then
    walked_to := v_looked[p_limit:]::text[];
  end if;
end
$$;

comment on function flashsale.purge_dead_mail(text[], timestamptz, integer) is
$$A step through the dead letters: deletes e-mails that died before
Those of payments stay: each may be money that somebody is waiting for. Returns as purge_keys
does.$$;

create or replace function flashsale.purge_history(
  p_after text[], p_before timestamptz, p_limit integer, out purged integer, out walked_to text[])
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_looked bigint[];
begin
  v_looked := array(
    select h.history_id from flashsale_data.history h
    where h.history_id > coalesce(p_after[1]::bigint, 0)
    order by h.history_id
    limit p_limit);
  delete from flashsale_data.history h
  where h.history_id = any (array(
    select o.history_id from flashsale_data.history o
    where o.history_id = any (v_looked) and o.at < p_before
    for update skip locked));
  get diagnostics purged = row_count;
  if cardinality(v_looked) = p_limit then
    walked_to := v_looked[p_limit:]::text[];
  end if;
end
$$;

comment on function flashsale.purge_history(text[], timestamptz, integer) is
$$A step through the history: deletes what was noted before
Returns as purge_keys does.$$;
