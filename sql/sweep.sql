-- sweep does everything that is due, for all items. It finds the work through partial indexes that
-- hold only rows with work to do, so an idle sweep is cheap however many items and orders there
-- are.
create or replace function flashsale.sweep(
  p_runner text default 'manual',
  p_limit integer default 10000,
  out expired integer,
  out filled integer,
  out recycled integer,
  out promoted integer,
  out unserved integer,
  out more boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_round record;
  v_item_id integer;
  v_served record;
begin
  recycled := 0;
  promoted := 0;
  unserved := 0;
  perform flashsale.make_jobs_due_if_clock_went_back(p_runner);
  expired := flashsale.expire(p_limit);
  more := expired >= p_limit;
  perform flashsale.fold_tallies();
  v_round := flashsale.fill_next_items(p_runner, p_limit);
  filled := v_round.filled;
  for v_item_id in select s.item_id from flashsale.items_to_serve() s loop
    v_served := flashsale.promote(v_item_id, p_limit);
    recycled := recycled + v_served.recycled;
    promoted := promoted + v_served.promoted;
    unserved := unserved + v_served.unserved;
    more := more or v_served.more;
  end loop;
  perform flashsale.note_sweep(p_runner, expired, promoted, v_round.last_examined_item_id);
end
$$;

comment on function flashsale.sweep(text, integer) is
$$Does all that is due: expire, fill holes, recycle, promote, end lines
p_runner: the name of the caller in sweep_status. p_limit: at most so many orders per step and item;
more: there is more to do, call again at once. Returns how many orders were expired, filled (holes
in a line), recycled, promoted and unserved. Safe to run at any time and any number of times at
once. Never waits for a customer, an operator or another sweep.$$;

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
    update pgmq.q_payments q set vt = clock_timestamp() where q.vt > clock_timestamp();
    update pgmq.q_notifications q set vt = clock_timestamp() where q.vt > clock_timestamp();
  end if;
end
$$;

comment on function flashsale.make_jobs_due_if_clock_went_back(text) is
$$Makes all jobs due if the clock went back since p_runner swept last
That includes leased jobs, because doing a job twice is harmless. Steps of less than a second are
ignored.$$;

-- The table of tallies has no index, because it is nearly empty and always read whole.
create or replace function flashsale.fold_tallies() returns void
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = on
as $$
  with locked as (
    select i.item_id
    from flashsale_data.items i
    where i.item_id in (select t.item_id from flashsale_data.tallies t)
    order by i.item_id
    for no key update skip locked
  ), folded as (
    delete from flashsale_data.tallies t
    using locked l
    where t.item_id = l.item_id
    returning t.item_id, t.paid, t.gaps_in_line
  ), summed as (
    select f.item_id, sum(f.paid)::integer as paid, sum(f.gaps_in_line)::integer as gaps_in_line
    from folded f
    group by f.item_id
  )
  update flashsale_data.items i
  set paid = i.paid + s.paid, gaps_in_line = i.gaps_in_line + s.gaps_in_line
  from summed s
  where i.item_id = s.item_id
$$;

comment on function flashsale.fold_tallies() is
$$Adds the tallies that pay and cancel left to the counters of their items
Items that another transaction has locked are left to the next sweep.$$;

-- Each sweep examines the next few items, so that all are examined in turn. It examines only a few,
-- because reading the last value of an item's sequence takes a lock on the sequence, which is held
-- until the transaction ends.
create or replace function flashsale.fill_next_items(
  p_runner text,
  p_limit integer,
  out filled integer,
  out last_examined_item_id integer)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_items_per_sweep constant integer := 500;
  v_item_ids integer[];
  v_item_id integer;
begin
  select array_agg(n.item_id order by n.item_id) into v_item_ids
  from (
    select i.item_id
    from flashsale_data.items i
    where i.item_id > coalesce(
      (select s.last_examined_item_id from flashsale_data.sweepers s where s.runner = p_runner), 0)
    order by i.item_id
    limit v_items_per_sweep
  ) n;
  filled := 0;
  for v_item_id in
    select i.item_id
    from flashsale_data.items i
    where i.item_id = any (v_item_ids)
      and i.settled < pg_sequence_last_value(i.line)
  loop
    filled := filled + flashsale.fill(v_item_id, p_limit);
  end loop;
  last_examined_item_id := case
    when cardinality(v_item_ids) = v_items_per_sweep then v_item_ids[v_items_per_sweep]
    else 0 -- that was the last item: begin again
  end;
end
$$;

comment on function flashsale.fill_next_items(text, integer) is
$$Fills the holes in the lines of the items that p_runner examines next
Returns how many holes were filled, and the item after which the runner's next sweep goes on.$$;

-- An item's first waiting order and its first order that has ended and is not recycled tell whether
-- there is anything to do for the item. They are found by jumping from item to item in the partial
-- indexes of such orders (a "loose index scan"): one probe per item that has such an order, and
-- none for all the other items.
create or replace function flashsale.items_to_serve() returns table (item_id integer)
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
  select i.item_id
  from first_waiting f
  join flashsale_data.items i on i.item_id = flashsale.item_of(f.order_id)
  cross join (select flashsale.clock() as now) c
  cross join lateral (
    select flashsale.shut_by(i.opens_at, i.closes_at, i.paused, c.now) as shut_by) s
  where s.shut_by = 'closed'
    or s.shut_by is null and f.order_id <= flashsale.order_id_of(i.item_id, i.now_serving)
  union
  select i.item_id
  from first_unrecycled f
  join flashsale_data.items i on i.item_id = flashsale.item_of(f.order_id)
  where f.order_id <= flashsale.order_id_of(i.item_id, i.now_serving)
  order by item_id
$$;

comment on function flashsale.items_to_serve() is
$$The items for which promote has something to do$$;

create or replace function flashsale.note_sweep(
  p_runner text,
  p_expired integer,
  p_promoted integer,
  p_last_examined_item_id integer)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  -- Two sweeps of one runner don't wait for each other either: the second one is not recorded.
  update flashsale_data.sweepers s
  set
    swept_at = flashsale.clock(),
    sweeps = s.sweeps + 1,
    expired = s.expired + p_expired,
    promoted = s.promoted + p_promoted,
    last_examined_item_id = p_last_examined_item_id
  from (
    select l.runner from flashsale_data.sweepers l
    where l.runner = p_runner
    for no key update skip locked
  ) l
  where s.runner = l.runner;
  if not found then
    insert into flashsale_data.sweepers (runner, swept_at, sweeps, expired, promoted)
    select p_runner, flashsale.clock(), 1, p_expired, p_promoted
    where not exists (select from flashsale_data.sweepers s where s.runner = p_runner)
    on conflict do nothing;
    delete from flashsale_data.sweepers s
    where s.runner > '' -- true for all; makes the plan use the primary key
      and s.swept_at < flashsale.clock() - interval '1 day';
  end if;
end
$$;

comment on function flashsale.note_sweep(text, integer, integer, integer) is
$$Records that p_runner has swept, for sweep_status
Runners that have been silent for a day are forgotten.$$;
