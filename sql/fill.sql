-- Filling the holes of an item's line. A ticket whose transaction rolled back, or that the sequence
-- skipped in a crash, has no order: it is a hole. A hole must be filled with a void order, because
-- otherwise nobody would ever recycle it, and the unit that it stands for would be lost.
--
-- The danger is to take a ticket for a hole while the transaction that holds it is still running.
-- A hole is filled only if nobody can still be about to insert that order. To know this takes two
-- visits, each in a transaction of its own:
--
-- 1. Read the line's last ticket while this transaction has no transaction id yet. Then lock the
--    item, which gives this transaction its id, and note both: noted_ticket and noted_xid.
-- 2. Wait until every transaction with an older id than noted_xid has ended, that is, until
--    pg_snapshot_xmin, the oldest id that is still running, has reached noted_xid. Then fill the
--    tickets up to noted_ticket that have no order.
--
-- Why nobody can come with such a ticket after that: a request has its transaction id before it
-- takes its ticket (reserve and reserve_many see to that; pay and withdraw have locked something by
-- then). Tickets up to noted_ticket were taken before it was read, and noted_xid was given out
-- after that. Ids are given out in ascending order. So whoever took one of these tickets has an
-- older id than noted_xid, and has ended by the second visit. If its order is not there then, it
-- will never come. A subtransaction changes nothing: the id that counts is that of its top
-- transaction. A prepared transaction counts as running.
--
-- Two things follow:
-- * A transaction that has an id already must not note anything. It may have got its id long before
--   it reads the ticket, and requests with later ids may have taken tickets in between. That is why
--   several sweeps in one transaction fill nothing that the first one did not note.
-- * Filling waits for nobody. An insert would wait for another transaction that is inserting the
--   same ticket, but all who could have ended. Sweeps exclude each other by the lock on the item,
--   which they take with skip locked.
--
-- A noted_xid at or above pg_snapshot_xmax cannot be of this cluster, because the transaction that
-- noted it has committed: the database was restored from a dump, and the new cluster counts from a
-- smaller number. What was noted is worth nothing then, and noting starts over. (An old noted_xid
-- that looks valid by chance does no harm: whoever took those tickets has ended with the old
-- cluster.)
create or replace function flashsale.fill(p_item_id integer, p_limit integer default 10000)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_last_ticket integer;
begin
  if pg_current_xact_id_if_assigned() is null then
    v_last_ticket := flashsale.issued_tickets(p_item_id);
  end if;
  return (
    select f.filled from flashsale.fill_holes(p_item_id, v_last_ticket, p_limit) f);
end
$$;

comment on function flashsale.fill(integer, integer) is
$$Fills holes in an item's line with void orders; returns how many
A hole is a ticket without an order: its request rolled back. Fills only tickets that are older
than every running transaction, so the first call notes how far the line has come, and a later one
fills. p_limit: at most so many holes. Call it in a transaction of its own: one that has written
something before can't note anything. Never waits: if another sweep or an operator has locked the
item, or if there is no such item, it does nothing.$$;

create or replace function flashsale.fill_holes(
  p_item_id integer,
  p_last_ticket integer,
  p_limit integer,
  out filled integer,
  out more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_tickets_per_visit constant integer := 100000;
  v_now constant timestamptz := flashsale.clock();
  v_snapshot pg_snapshot;
  v_item flashsale_data.items;
  v_up_to integer;
  v_last_filled integer;
begin
  filled := 0;
  more := false;
  select * into v_item from flashsale_data.items i
  where i.item_id = p_item_id
  for no key update skip locked;
  if not found or v_item.draw in ('listing', 'drawing') then -- tickets to be drawn are no holes
    return;
  end if;

  v_snapshot := pg_current_snapshot();
  if v_item.noted_xid <= pg_snapshot_xmin(v_snapshot) then
    v_item.settled := least(v_item.noted_ticket, coalesce( -- withdrawn tickets have no orders
      flashsale.withdrawn_through(p_item_id, v_item.settled + 1), v_item.settled));
    v_up_to := least(v_item.noted_ticket, v_item.settled::bigint + v_tickets_per_visit);
    with void as (
      insert into flashsale_data.orders (order_id, item_id, ticket, status, created_at, ended_at)
      select
        flashsale.order_id_of(p_item_id, t.ticket), p_item_id, t.ticket, 'void', v_now, v_now
      from generate_series(v_item.settled + 1, v_up_to) t (ticket) -- in this order
      where not exists (
        select from flashsale_data.orders o
        where o.order_id = flashsale.order_id_of(p_item_id, t.ticket)
        offset 0) -- keeps this a probe per ticket: a join may read all orders
        and flashsale.withdrawn_through(p_item_id, t.ticket) is null
      limit p_limit
      returning ticket
    )
    select count(*), max(v.ticket) into filled, v_last_filled from void v;
    v_item.settled := case when filled >= p_limit then v_last_filled else v_up_to end;
    more := v_item.settled < v_item.noted_ticket;
  end if;

  if p_last_ticket > v_item.settled
    and (v_item.noted_xid is null
      or v_item.noted_xid >= pg_snapshot_xmax(v_snapshot) -- of another cluster
      or v_item.settled >= v_item.noted_ticket)
  then
    v_item.noted_ticket := p_last_ticket;
    v_item.noted_xid := pg_current_xact_id();
    v_item.noted_at := clock_timestamp(); -- for people; nothing is decided by it
  end if;
  update flashsale_data.items i
  set
    settled = v_item.settled,
    noted_ticket = v_item.noted_ticket,
    noted_xid = v_item.noted_xid,
    noted_at = v_item.noted_at,
    gaps_in_line = i.gaps_in_line + filled
  where i.item_id = p_item_id
    and (i.settled, i.noted_ticket, i.noted_xid)
      is distinct from (v_item.settled, v_item.noted_ticket, v_item.noted_xid);
end
$$;

comment on function flashsale.fill_holes(integer, integer, integer) is
$$One visit to an item's line: fills what is certain, and notes anew
p_last_ticket: the line's last ticket, read before this transaction had an id; null: it was not, so
nothing is noted. Returns how many holes were filled, at most p_limit, and whether there are more
tickets to look at now.$$;
