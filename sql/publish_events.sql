-- The feed tells everything that happened to orders and items, in one order, so that other programs
-- can follow with a cursor: "what came after event n?" The danger is an event that appears behind a
-- cursor that was already given out. Numbers that the verbs took themselves would do that, because
-- transactions do not commit in the order in which they take their numbers.
--
-- So the verbs write what happened without a number, into the outbox, in the transaction of the
-- change. publish_events moves the rows that it sees into events, and numbers them.
--
-- Nothing appears behind a number that somebody has read:
-- * Only a publisher numbers events, and it holds the lock of the only row of feed until its
--   transaction has ended. The next publisher takes that lock in a statement of its own, so what it
--   does after that sees everything that the one before committed. In an isolation level whose
--   snapshot is older than that, the lock is refused with an error.
-- * So the numbers 1 .. n are visible to everybody before a number above n exists, also on a
--   replica, which replays commits in their order. What a row waited for in the outbox (a late
--   commit) does not matter: it gets its number when it is seen.
--
-- The events of one order have their order:
-- * Its rows are written while its row in orders is locked, and outbox_id is taken then. So they
--   have ascending outbox_ids, and whoever sees one of them sees those before it.
-- * A visit takes the rows that it sees in the order of outbox_id, so it takes those before first.
-- * order.created comes before all of them. reserve does not write it, because it must not cost a
--   request anything. The publisher finds new orders in orders itself (announce_orders), and keeps
--   back what happened to an order that is not announced yet.
--
-- How the publisher finds new rows without reading those that are deleted. A transaction that stays
-- open, a backup for example, keeps all dead rows in the index of the outbox. So the publisher
-- remembers its last snapshot, and reads only rows of transactions that were not visible in it:
-- those from its xmax on (seen_xmax), those that were running then (unseen), and the publisher's
-- own, which may write more after the visit. If it has left rows behind, it does not forget their
-- transactions.
--
-- After a restore the memory is worth nothing, and worse: numbers that were given out after the
-- backup would be given out again. Every restored database, promoted replica or copy runs in a
-- server that started at another moment, or is another database there. This is the branch. In a new
-- branch the publisher reads the whole outbox once, and goes on with the next multiple of 2^32. So
-- every cursor that was ever given out remains valid: everything new has a larger number.
create or replace function flashsale.publish_events(
  p_limit integer default 10000, out published integer, out more boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_moved record;
  v_announced record;
begin
  published := 0;
  more := false;
  perform from flashsale_data.feed f where f.one_row for no key update skip locked;
  if not found then
    return;
  end if;
  perform flashsale.begin_branch();
  v_moved := flashsale.move_events(p_limit);
  published := v_moved.moved;
  more := v_moved.more;
  if more and published > 0 then -- an order's own event must not pass its entry's
    return;
  end if;
  v_announced := flashsale.announce_orders(
    flashsale.items_to_announce(v_moved.held_item_ids), p_limit);
  if v_announced.announced > 0 then
    v_moved := flashsale.move_events(p_limit);
    published := published + v_announced.announced + v_moved.moved;
    more := more or v_announced.more or v_moved.more;
  end if;
end
$$;

comment on function flashsale.publish_events(integer) is
$$Numbers what happened since the last call, so that events() shows it
p_limit: about so many orders and so many of their changes at once; more: there is more to publish,
call again at once. Returns how many events were published. sweep() does this, and runners do it
after each round. Never waits: if another publisher is at work, it does nothing.$$;

create or replace function flashsale.begin_branch() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_branch constant text := format('%s of %s in %s',
    'flashsale_data.events'::regclass::oid,
    (select d.oid from pg_database d where d.datname = current_database()),
    extract(epoch from pg_postmaster_start_time()));
begin
  update flashsale_data.feed f
  set
    branch = v_branch, seen_xmax = '0', unseen = '{}',
    last_event_id = case
      when f.last_event_id > 0 then ((f.last_event_id >> 32) + 1) << 32
      else 0
    end
  where f.one_row and f.branch is distinct from v_branch;
end
$$;

comment on function flashsale.begin_branch() is
$$Forgets what the publisher of another server has remembered
After every start of the server, in case it was restored: numbers that were given out after the
backup must not be given out again.$$;

create or replace function flashsale.new_in_outbox(p_limit integer)
returns table (tid tid, xid xid8, outbox_id bigint, order_id bigint, type text)
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select n.* from (
    select o.ctid, o.xid, o.outbox_id, o.order_id, o.type
    from flashsale_data.outbox o
    where o.xid >= (select f.seen_xmax from flashsale_data.feed f where f.one_row)
    union all
    select o.*
    from flashsale_data.feed f
    cross join unnest(f.unseen) u (xid)
    cross join lateral (
      select r.ctid, r.xid, r.outbox_id, r.order_id, r.type
      from flashsale_data.outbox r
      where r.xid = u.xid
      offset 0
    ) o
    where f.one_row and u.xid < f.seen_xmax
  ) n
  order by n.outbox_id
  limit p_limit
$$;

comment on function flashsale.new_in_outbox(integer) is
$$The rows of the outbox that the publisher has not moved yet
In the order of outbox_id. Two rows of one order are in the order in which they happened.$$;

create or replace function flashsale.is_announced(p_order_id bigint) returns boolean
language sql stable
as $$
  select flashsale.is_entry(p_order_id)
    or exists (
      select from flashsale_data.feed_lines l
      where l.item_id = flashsale.item_of(p_order_id)
        and flashsale.ticket_of(p_order_id) <= l.announced
        and not l.gaps @> flashsale.ticket_of(p_order_id))
    or not exists (
      select from flashsale_data.items i where i.item_id = flashsale.item_of(p_order_id))
$$;

comment on function flashsale.is_announced(bigint) is
$$Whether the feed may tell what happened to this order
It has told of the order itself. An entry of a draw tells of itself, and the order of an item that
was deleted will never be told of.$$;

create or replace function flashsale.move_events(
  p_limit integer, out moved integer, out held_item_ids integer[], out more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_snapshot pg_snapshot;
  v_count integer;
  v_held xid8[]; -- transactions of rows that are kept back
begin
  with picked as materialized (
    select n.*, n.order_id is null or flashsale.is_announced(n.order_id) as ready
    from flashsale.new_in_outbox(p_limit) n
  ), gone as (
    delete from flashsale_data.outbox o
    where o.ctid = any (array(select p.tid from picked p where p.ready))
    returning o.*
  ), numbered as (
    insert into flashsale_data.events (event_id, item_id, order_id, at, type, data)
    select
      f.last_event_id + row_number() over (order by g.outbox_id),
      coalesce(g.item_id, flashsale.item_of(g.order_id)), g.order_id, g.at, g.type, g.data
    from gone g
    join flashsale_data.feed f on f.one_row
    order by g.outbox_id
  ), begun as (
    insert into flashsale_data.feed_lines (item_id)
    select g.item_id from gone g where g.type = 'item.created'
  )
  select
    count(*), count(*) filter (where p.ready), pg_current_snapshot(),
    array_agg(distinct flashsale.item_of(p.order_id)) filter (where not p.ready),
    coalesce(array_agg(distinct p.xid) filter (where not p.ready), '{}')
  into v_count, moved, v_snapshot, held_item_ids, v_held
  from picked p;
  more := v_count >= p_limit;
  if v_count > 0 then
    update flashsale_data.feed f
    set
      last_event_id = f.last_event_id + moved,
      seen_xmax = case when more then f.seen_xmax else pg_snapshot_xmax(v_snapshot) end,
      unseen = case when more then f.unseen
        else array(select pg_snapshot_xip(v_snapshot)) || v_held || pg_current_xact_id() end
    where f.one_row;
  end if;
end
$$;

comment on function flashsale.move_events(integer) is
$$Moves rows from the outbox to events, at most p_limit, and numbers them
The caller has locked feed. held_item_ids: items with rows that are kept back, because their orders
are not announced yet; more: there may be more rows.$$;
