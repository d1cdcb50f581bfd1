-- sweep does everything that is due, for all items. It finds the work through partial indexes that
-- hold only rows with work to do, so an idle sweep is cheap however many items and orders there
-- are.
--
-- People call sweep(), which is one transaction. The runners (the worker, and pg_cron's procedure)
-- do the same in many: begin_sweep says which items have something to do, and sweep_item does it
-- for one of them, in a transaction of its own. So neither a lot of work at one item nor an error
-- there keeps another item waiting, and a call that is cancelled loses only its own item.
--
-- Each visit does a limited number of orders. A lottery decides the order of the items: the less
-- there is to do for an item, the sooner it probably comes. So the line of a small item moves in
-- each round, also while a thousand others end; a runner that runs out of time still gives every
-- item its turn; and two runners rarely meet.
--
-- Nothing here waits. Items, orders, and the rows that sweeps keep about themselves are locked with
-- skip locked, and nothing is inserted that another transaction may be inserting too. Therefore any
-- number of sweeps can be in open transactions, in any order, without a deadlock.
create or replace function flashsale.sweep(
  p_runner text default 'manual',
  p_limit integer default 10000,
  out expired integer,
  out filled integer,
  out recycled integer,
  out promoted integer,
  out unserved integer,
  out more boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  -- First of all: the last tickets have to be read before this transaction has an id (see fill).
  v_due constant flashsale_data.due_item[] :=
    array(select d from flashsale.items_due(p_runner, p_limit) d);
  v_limit constant integer := greatest(1, p_limit / greatest(1, cardinality(v_due)));
  v_item flashsale_data.due_item;
  v_done record;
  v_overdue integer := 0;
  v_failures integer := 0;
begin
  expired := 0;
  filled := 0;
  recycled := 0;
  promoted := 0;
  unserved := 0;
  perform flashsale.make_jobs_due_if_clock_went_back(p_runner);
  foreach v_item in array v_due loop
    v_done := flashsale.serve_item(p_runner, v_item, v_limit);
    expired := expired + v_done.expired;
    filled := filled + v_done.filled;
    recycled := recycled + v_done.recycled;
    promoted := promoted + v_done.promoted;
    unserved := unserved + v_done.unserved;
    more := more or v_done.more;
    v_overdue := v_overdue + coalesce(cardinality(v_item.overdue_ids), 0);
    v_failures := v_failures + (v_done.error is not null)::integer;
  end loop;
  more := coalesce(more, false) or v_overdue >= p_limit
    or (select e.more from flashsale.publish_events(p_limit) e);
  perform flashsale.note_sweep(p_runner, 1, expired, promoted, v_failures);
end
$$;

comment on function flashsale.sweep(text, integer) is
$$Does all that is due: expire, fill holes, recycle, promote, end lines
p_runner: the name of the caller in sweep_status. p_limit: about so many orders per step, over all
items, which get equal shares; more: there is more to do, call again at once. Returns how many
orders were expired, filled (holes in a line), recycled, promoted and unserved. An item whose sweep
fails is left out: see sweep_failure. Safe to run at any time and any number of times at once. Never
waits for a customer, an operator or another sweep.$$;

-- A queue hides a job until a time that the job's row states. When the system clock has gone back,
-- that time is far away for every job that was enqueued, leased or postponed before.
create or replace function flashsale.make_jobs_due_if_clock_went_back(p_runner text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (
    select from flashsale_data.sweepers s
    where s.runner = p_runner and s.swept_at > flashsale.clock() + interval '1 second'
  ) then
    update pgmq.q_payments q set vt = clock_timestamp()
    where q.msg_id = any (array(
      select p.msg_id from pgmq.q_payments p where p.vt > clock_timestamp()
      for update skip locked));
    update pgmq.q_notifications q set vt = clock_timestamp()
    where q.msg_id = any (array(
      select n.msg_id from pgmq.q_notifications n where n.vt > clock_timestamp()
      for update skip locked));
  end if;
end
$$;

comment on function flashsale.make_jobs_due_if_clock_went_back(text) is
$$Makes all jobs due if the clock went back since p_runner swept last
That includes leased jobs, because doing a job twice is harmless. Steps of less than a second are
ignored. Jobs that another transaction has locked are left out.$$;

-- What is due. Reads only, and gets no transaction id by that, so that the last tickets that it
-- returns may be noted (fill).
create or replace function flashsale.items_due(p_runner text, p_limit integer)
returns setof flashsale_data.due_item
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now constant timestamptz := flashsale.clock(); -- constant, so that an index can be used
  v_failing constant integer[] := flashsale.failing_items(v_now);
begin
  return query
  with overdue as (
    select h.item_id, array_agg(h.order_id order by h.order_id) as order_ids
    from (
      select o.item_id, o.order_id
      from flashsale_data.orders o
      where (o.status = 'reserved' or o.settle_until <= v_now) and o.expires_at <= v_now
        and o.paid_at is null and o.ended_at is null -- by the index of holds
        and o.item_id <> all (v_failing)
      order by o.expires_at
      limit p_limit
    ) h
    group by h.item_id
  ), noticed (item_id, last_ticket, orders, draw_terms) as (
    select f.item_id, f.last_ticket, 1, null from flashsale.items_to_fill(p_runner) f
    union all
    select s.item_id, null, s.orders, null from flashsale.lines_to_serve() s
    union all
    select t.item_id, null, 1, null from flashsale.items_with_tallies() t
    union all
    select o.item_id, null, cardinality(o.order_ids), null from overdue o
    union all
    select d.item_id, null, 1, d.terms from flashsale.draws_due(v_now) d
  )
  select n.item_id, max(n.last_ticket), o.order_ids, max(n.draw_terms)
  from noticed n
  left join overdue o on o.item_id = n.item_id
  where n.item_id <> all (v_failing)
  group by n.item_id, o.order_ids
  order by sum(n.orders) * random(); -- a lottery: see above
end
$$;

comment on function flashsale.items_due(text, integer) is
$$What there is to do: items, those with little to do probably first
p_limit: at most so many overdue holds over all items, the oldest deadlines first. Without those
whose sweep failed a moment ago. Orders that settle are overdue when that has taken too long.$$;

-- The table of tallies has no index, because it is nearly empty and always read whole.
create or replace function flashsale.items_with_tallies() returns table (item_id integer)
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = on
as $$
  select distinct t.item_id from flashsale_data.tallies t
$$;

comment on function flashsale.items_with_tallies() is
$$The items for which fold_tallies has something to do$$;

create or replace function flashsale.fold_tallies(p_item_id integer) returns void
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = on
as $$
  with locked as (
    select i.item_id
    from flashsale_data.items i
    where i.item_id = p_item_id
    for no key update skip locked
  ), folded as (
    delete from flashsale_data.tallies t
    using locked l
    where t.item_id = l.item_id
    returning t.item_id, t.paid, t.gaps_in_line, t.entered
  ), summed as (
    select f.item_id, sum(f.paid)::integer as paid, sum(f.gaps_in_line)::integer as gaps_in_line,
      sum(f.entered)::integer as entered
    from folded f
    group by f.item_id
  ), entered as (
    update flashsale_data.draws d
    set entered = d.entered + s.entered
    from summed s
    where d.item_id = s.item_id and s.entered <> 0
  )
  update flashsale_data.items i
  set
    paid = i.paid + s.paid,
    holds_sold = i.holds_sold + s.paid,
    gaps_in_line = i.gaps_in_line + s.gaps_in_line
  from summed s
  where i.item_id = s.item_id
$$;

comment on function flashsale.fold_tallies(integer) is
$$Adds the tallies of an item to its counters, and to those of its draw
If another transaction has locked the item, this is left to the next sweep.$$;

create or replace function flashsale.items_per_sweep() returns integer
language sql immutable parallel safe
as $$ select 500 $$;

comment on function flashsale.items_per_sweep() is
$$How many lines a sweep examines for holes$$;

-- Each sweep examines the next few lines, so that all are examined in turn. It examines only a few,
-- because reading the last value of an item's sequence takes a lock on the sequence, which is held
-- until the transaction ends. A line whose noted tickets still wait for a transaction to end is
-- left out, because there is nothing to do for it yet.
create or replace function flashsale.items_to_fill(p_runner text)
returns table (item_id integer, last_ticket integer)
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select
    n.item_id,
    case when pg_current_xact_id_if_assigned() is null then n.last_ticket end
  from (
    select i.item_id, i.settled, i.noted_xid, pg_sequence_last_value(i.line)::integer as last_ticket
    from flashsale_data.items i
    where i.item_id > coalesce((
      select max(s.last_examined_item_id) from flashsale_data.sweepers s
      where s.runner = p_runner), 0)
    order by i.item_id
    limit flashsale.items_per_sweep()
  ) n
  where n.settled < n.last_ticket
    and (n.noted_xid > pg_snapshot_xmin(pg_current_snapshot())
      and n.noted_xid < pg_snapshot_xmax(pg_current_snapshot())) is not true
$$;

comment on function flashsale.items_to_fill(text) is
$$The items, of those whose turn it is, for which fill has something to do
last_ticket: the line's last ticket; null if this transaction has an id already, because it must not
be noted then.$$;

-- An item's first waiting order and its first order that has ended and is not recycled tell whether
-- there is anything to do for the item. They are found by jumping from item to item in the partial
-- indexes of such orders (a "loose index scan"): one probe per item that has such an order, and
-- none for all the other items.
create or replace function flashsale.lines_to_serve()
returns table (item_id integer, orders integer)
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  with recursive first_waiting (order_id) as (
    (
      select o.order_id from flashsale_data.orders o
      where o.status = 'waiting'
      order by o.order_id limit 1
    )
    union all
    select (
      select o.order_id from flashsale_data.orders o
      where o.status = 'waiting'
        and o.order_id >= flashsale.order_id_of(flashsale.item_of(f.order_id) + 1, 0)
      order by o.order_id limit 1)
    from first_waiting f
    where f.order_id is not null
  ), first_unrecycled (order_id) as (
    (
      select o.order_id from flashsale_data.orders o
      where o.ended_at is not null and not o.recycled
      order by o.order_id limit 1
    )
    union all
    select (
      select o.order_id from flashsale_data.orders o
      where o.ended_at is not null and not o.recycled
        and o.order_id >= flashsale.order_id_of(flashsale.item_of(f.order_id) + 1, 0)
      order by o.order_id limit 1)
    from first_unrecycled f
    where f.order_id is not null
  )
  select
    i.item_id,
    case when s.shut_by = 'closed' then 1000 -- nobody gets a unit by that, so it is not urgent
      else i.now_serving - flashsale.ticket_of(f.order_id) + 1 end
  from first_waiting f
  join flashsale_data.items i on i.item_id = flashsale.item_of(f.order_id)
  cross join (select flashsale.clock() as now, flashsale.provider_down() as down) c
  cross join lateral (
    select flashsale.shut_by(i.opens_at, i.closes_at, i.paused, c.now) as shut_by) s
  where s.shut_by = 'closed'
    or s.shut_by is null and not c.down
      and f.order_id <= flashsale.order_id_of(i.item_id, i.now_serving)
  union all
  select i.item_id, 1
  from first_unrecycled f
  join flashsale_data.items i on i.item_id = flashsale.item_of(f.order_id)
  where f.order_id <= flashsale.order_id_of(i.item_id, i.now_serving)
$$;

comment on function flashsale.lines_to_serve() is
$$The items for which promote has something to do, some of them twice
orders: about how many orders it has to do something for.$$;

create or replace function flashsale.note_sweep(
  p_runner text,
  p_sweeps integer,
  p_expired integer,
  p_promoted integer,
  p_failures integer)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  -- Two sweeps of one runner don't wait for each other either: the second one is not recorded. If
  -- both are the first of that name, each has a row, and sweep_status adds them up.
  update flashsale_data.sweepers s
  set
    swept_at = flashsale.clock(),
    sweeps = s.sweeps + p_sweeps,
    expired = s.expired + p_expired,
    promoted = s.promoted + p_promoted,
    failures = s.failures + p_failures,
    last_examined_item_id = case
      when p_sweeps = 0 then s.last_examined_item_id
      else coalesce((
        select i.item_id from flashsale_data.items i
        where i.item_id > s.last_examined_item_id
        order by i.item_id
        offset flashsale.items_per_sweep() - 1 limit 1), 0) -- after the last item: begin again
    end
  where s.sweeper_id = (
    select l.sweeper_id from flashsale_data.sweepers l
    where l.runner = p_runner
    limit 1
    for no key update skip locked);
  if not found then
    insert into flashsale_data.sweepers (runner, swept_at, sweeps, expired, promoted, failures)
    select p_runner, flashsale.clock(), p_sweeps, p_expired, p_promoted, p_failures
    where not exists (select from flashsale_data.sweepers s where s.runner = p_runner);
    delete from flashsale_data.sweepers s
    where s.sweeper_id = any (array(
      select o.sweeper_id from flashsale_data.sweepers o
      where o.swept_at < flashsale.clock() - interval '1 day'
      for update skip locked));
  end if;
end
$$;

comment on function flashsale.note_sweep(text, integer, integer, integer, integer) is
$$Records what p_runner has done, for sweep_status
Runners that have been silent for a day are forgotten. Never waits.$$;

-- The table is nearly always empty.
create or replace function flashsale.failing_items(p_now timestamptz) returns integer[]
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = on
as $$
  select coalesce(array_agg(f.item_id), '{}')
  from flashsale_data.sweep_failures f
  where f.retry_at > p_now and f.failed_at <= p_now -- unless the clock has gone back
$$;

comment on function flashsale.failing_items(timestamptz) is
$$The items that sweeps leave out for a moment, as their last one failed$$;
