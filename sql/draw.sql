-- Drawing: when an item with a draw opens, its entries are shuffled.
--
-- create_item has published commitment = sha256(secret). From the opening on, sweeps do the rest,
-- each visit a bounded piece of it, and each piece in the transaction of that visit:
--
-- 1. entries_are_in: the entries end at opens_at. As in fill, two visits make sure that nobody can
--    still be about to insert one. Until then a request is refused as not_open.
-- 2. list_entries: the entries are put on the list in ascending order, and
--    list_hash := sha256(list_hash || '<entry_id> <quantity>'), beginning with the commitment.
--    Who cancels after that keeps the place. When the list is complete, the line's sequence is set
--    to n, the number of units on the list. From then on requests get the tickets after n.
-- 3. hash_entries: each entry gets sha256(secret || list_hash || entry_id), with the id as text.
-- 4. place_entries: in the order of these hashes, the entries get the tickets 1, 2, 3 ... An
--    entry's row becomes that of its ticket: a waiting order, which promote serves like any other.
--    A row that somebody has locked is put off. Its ticket waits for it, and nobody else does.
-- 5. When all have their tickets, the secret becomes public, and anybody can check the draw.
--
-- The order depends on the secret, which was fixed before anybody entered, and on the list, which
-- includes everybody who entered. So no customer can choose a place, and nobody can change the
-- order later without changing the list_hash or the commitment.
--
-- If the sale closes before it opens, the draw is called off: its entries end as unserved.
create or replace function flashsale.create_draw(p_item_id integer) returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  with secret as materialized ( -- four times 122 random bits
    select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
      || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) as secret
  )
  insert into flashsale_data.draws (item_id, secret, commitment)
  select p_item_id, s.secret, sha256(s.secret) from secret s
$$;

comment on function flashsale.create_draw(integer) is
$$Makes the secret of an item's draw, and the commitment to it$$;

-- The terms on which it depends whether a draw is due. They stay as they are while the item is
-- locked.
create or replace function flashsale.terms_of_draw(p_item flashsale_data.items) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select row(p_item.draw, p_item.opens_at, p_item.closes_at, p_item.paused)::text
$$;

comment on function flashsale.terms_of_draw(flashsale_data.items) is
$$What decides whether a draw is due, as text to compare$$;

create or replace function flashsale.is_draw_due(p_item flashsale_data.items, p_now timestamptz)
returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case p_item.draw
    when 'entering' then coalesce(
      flashsale.shut_by(p_item.opens_at, p_item.closes_at, p_item.paused, p_now), 'closed')
      = 'closed'
    when 'listing' then true
    when 'drawing' then true
    else false
  end
$$;

comment on function flashsale.is_draw_due(flashsale_data.items, timestamptz) is
$$Whether a sweep has something to do for an item's draw
A draw begins when its item opens: not while it is paused. One that has begun goes on.$$;

create or replace function flashsale.draws_due(p_now timestamptz)
returns table (item_id integer, terms text)
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select
    i.item_id,
    case when pg_current_xact_id_if_assigned() is null then flashsale.terms_of_draw(i) end
  from flashsale_data.draws d
  join flashsale_data.items i on i.item_id = d.item_id
  where d.done_at is null and flashsale.is_draw_due(i, p_now)
    and (i.draw = 'entering' and d.noted_xid > pg_snapshot_xmin(pg_current_snapshot())
      and d.noted_xid < pg_snapshot_xmax(pg_current_snapshot())) is not true
$$;

comment on function flashsale.draws_due(timestamptz) is
$$The items whose draw is due
terms: to be noted; null if this transaction has an id already. See entries_are_in.$$;

-- An entry must not be lost because its transaction is still open when the list is made. The proof
-- is that of fill:
--
-- * First visit: the draw was found to be due, by the clock, before this transaction had an id
--   (draws_due). The item is locked now and has the same terms still. This transaction's id is
--   noted. It was given out after the clock was read.
-- * enter gets its transaction's id first, and then reads the terms and the clock. If its id is
--   younger than the noted one, it has read them after draws_due did, so it has found that the
--   entries have ended. (The snapshot of a transaction above `read committed` may be older than
--   its id. So enter locks the item there, which fails if the item has changed.)
-- * Second visit: when pg_snapshot_xmin has reached the noted id, all older transactions have
--   ended. What is an entry now is on the list, and there will be no others.
--
-- The verbs that change these terms forget what was noted (forget_noted_draw). An id at or above
-- pg_snapshot_xmax is of another cluster, whose dump was restored: it is noted anew.
create or replace function flashsale.entries_are_in(
  p_item flashsale_data.items, p_terms text)
returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_snapshot constant pg_snapshot := pg_current_snapshot();
  v_noted_xid xid8;
begin
  select d.noted_xid into v_noted_xid
  from flashsale_data.draws d where d.item_id = p_item.item_id;
  if v_noted_xid <= pg_snapshot_xmin(v_snapshot) then
    return true;
  elsif p_terms = flashsale.terms_of_draw(p_item)
    and (v_noted_xid is null or v_noted_xid >= pg_snapshot_xmax(v_snapshot))
  then
    update flashsale_data.draws d
    set noted_xid = pg_current_xact_id(), noted_at = clock_timestamp()
    where d.item_id = p_item.item_id;
  end if;
  return false;
end
$$;

comment on function flashsale.entries_are_in(flashsale_data.items, text) is
$$Whether nobody can enter a draw that is due any more; else notes an id
The caller has locked the item. p_terms: as draws_due has returned them.$$;

create or replace function flashsale.forget_noted_draw(p_item_id integer) returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  update flashsale_data.draws d set noted_xid = null, noted_at = null
  where d.item_id = p_item_id and d.noted_xid is not null
$$;

comment on function flashsale.forget_noted_draw(integer) is
$$For verbs that may let customers enter a draw again$$;

create or replace function flashsale.draw(
  p_item_id integer,
  p_terms text,
  p_limit integer,
  out called_off integer,
  out more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_item flashsale_data.items;
  v_now timestamptz;
begin
  called_off := 0;
  more := false;
  select * into v_item from flashsale_data.items i
  where i.item_id = p_item_id
  for no key update skip locked;
  v_now := flashsale.clock();
  if not found or not flashsale.is_draw_due(v_item, v_now) then
    return;
  elsif v_item.draw = 'entering' then
    if not flashsale.entries_are_in(v_item, p_terms) then
      return;
    elsif flashsale.shut_by(null, v_item.closes_at, false, v_now) = 'closed' then
      called_off := flashsale.call_off_draw(p_item_id, p_limit, v_now);
      more := called_off >= p_limit;
    else
      perform flashsale.note_draw(p_item_id, 'listing');
      more := true;
    end if;
  elsif v_item.draw = 'listing' then
    more := true;
    if flashsale.list_entries(p_item_id, p_limit) < p_limit then
      perform flashsale.take_tickets_of_draw(v_item, v_now);
    end if;
  elsif not flashsale.hash_entries(p_item_id, p_limit) then
    more := true;
  else
    more := flashsale.place_entries(p_item_id, p_limit);
    perform flashsale.end_draw(p_item_id, v_now) where not more;
  end if;
end
$$;

comment on function flashsale.draw(integer, text, integer) is
$$The next piece of an item's draw, if it is due
p_limit: at most so many entries. p_terms: as draws_due has returned them. called_off: entries that
ended, because the sale closed before it opened. more: there is more to do now. Never waits.$$;

create or replace function flashsale.note_draw(
  p_item_id integer, p_draw flashsale_data.draw_state)
returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  update flashsale_data.items i set draw = p_draw where i.item_id = p_item_id
$$;

comment on function flashsale.note_draw(integer, flashsale_data.draw_state) is
$$Records how far a draw has come$$;

create or replace function flashsale.call_off_draw(
  p_item_id integer, p_limit integer, p_now timestamptz)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_unserved bigint[];
  v_left boolean;
begin
  with leaving as (
    select o.order_id
    from flashsale_data.orders o
    where o.order_id between flashsale.order_id_of(p_item_id, 2000000001)
        and flashsale.order_id_of(p_item_id, 2147483647)
      and o.status = 'entered'
    order by o.order_id
    limit p_limit
    for update skip locked
  ), left_out as (
    update flashsale_data.orders o
    set status = 'unserved', ended_at = p_now
    where o.order_id = any (array(select l.order_id from leaving l)) and o.status = 'entered'
    returning o.order_id
  )
  select array_agg(l.order_id order by l.order_id) into v_unserved from left_out l;
  perform
    flashsale.enqueue_mail('unserved', v_unserved),
    flashsale.note_orders('order.unserved', v_unserved, p_now);
  v_left := exists (
    select from flashsale_data.orders o
    where o.order_id between flashsale.order_id_of(p_item_id, 2000000001)
        and flashsale.order_id_of(p_item_id, 2147483647)
      and o.status = 'entered');
  if not v_left then
    perform flashsale.note_draw(p_item_id, 'called_off');
    update flashsale_data.draws d set done_at = p_now where d.item_id = p_item_id;
  end if;
  return coalesce(cardinality(v_unserved), 0);
end
$$;

comment on function flashsale.call_off_draw(integer, integer, timestamptz) is
$$Ends the entries of an item that has closed before it opened: unserved
Returns how many, at most p_limit. An entry that is locked is left to the next visit.$$;

create or replace function flashsale.list_entries(p_item_id integer, p_limit integer)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_entry record;
  v_hash bytea;
  v_listed integer := 0;
  v_units integer := 0;
  v_last bigint;
begin
  select
    coalesce(d.list_hash, d.commitment),
    coalesce(d.listed_through, flashsale.order_id_of(p_item_id, 2000000000))
  into v_hash, v_last
  from flashsale_data.draws d where d.item_id = p_item_id;
  for v_entry in
    with listed as (
      insert into flashsale_data.drawn_entries (entry_id, quantity)
      select o.order_id, coalesce(o.quantity, 1)
      from flashsale_data.orders o
      where o.order_id > v_last and o.order_id <= flashsale.order_id_of(p_item_id, 2147483647)
        and o.status = 'entered'
      order by o.order_id
      limit p_limit
      returning entry_id, quantity
    )
    select l.* from listed l order by l.entry_id
  loop
    v_hash := sha256(v_hash || convert_to(v_entry.entry_id || ' ' || v_entry.quantity, 'UTF8'));
    v_listed := v_listed + 1;
    v_units := v_units + v_entry.quantity;
    v_last := v_entry.entry_id;
  end loop;
  update flashsale_data.draws d
  set
    list_hash = v_hash,
    listed_through = v_last,
    entries = d.entries + v_listed,
    units = d.units + v_units
  where d.item_id = p_item_id;
  return v_listed;
end
$$;

comment on function flashsale.list_entries(integer, integer) is
$$Puts the next entries of a draw on its list; returns how many
list_hash := sha256(list_hash || '<entry_id> <quantity>') for each entry, in ascending order of
their ids; before the first one it is the commitment.$$;

-- Nobody has a ticket of this line before, because answer_of_draw refuses everybody until this has
-- been committed. setval is not undone if the transaction rolls back: then the next visit does the
-- same again.
create or replace function flashsale.take_tickets_of_draw(
  p_item flashsale_data.items, p_now timestamptz)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  perform setval(p_item.line, d.units)
  from flashsale_data.draws d
  where d.item_id = p_item.item_id and d.units > 0;
  update flashsale_data.draws d set listed_at = p_now where d.item_id = p_item.item_id;
  perform flashsale.note_draw(p_item.item_id, 'drawing');
end
$$;

comment on function flashsale.take_tickets_of_draw(flashsale_data.items, timestamptz) is
$$Takes the tickets 1 to n for the n units on the list of a draw$$;

create or replace function flashsale.hash_entries(p_item_id integer, p_limit integer)
returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_end constant bigint := flashsale.order_id_of(p_item_id, 2147483647);
  v_from bigint;
  v_hashed integer;
  v_last bigint;
begin
  select coalesce(d.hashed_through, flashsale.order_id_of(p_item_id, 2000000000)) into v_from
  from flashsale_data.draws d where d.item_id = p_item_id;
  if v_from >= v_end then
    return true;
  end if;
  with listed as (
    select e.entry_id, e.quantity
    from flashsale_data.drawn_entries e
    where e.entry_id > v_from and e.entry_id <= v_end
    order by e.entry_id
    limit p_limit
  ), hashed as (
    insert into flashsale_data.draw_hashes (item_id, hash, entry_id, quantity)
    select
      p_item_id, sha256(d.secret || d.list_hash || convert_to(l.entry_id::text, 'UTF8')),
      l.entry_id, l.quantity
    from listed l
    join flashsale_data.draws d on d.item_id = p_item_id
    returning entry_id
  )
  select count(*), max(h.entry_id) into v_hashed, v_last from hashed h;
  update flashsale_data.draws d
  set hashed_through = case when v_hashed < p_limit then v_end else v_last end
  where d.item_id = p_item_id;
  return false;
end
$$;

comment on function flashsale.hash_entries(integer, integer) is
$$Hashes the next entries of a draw; true: all have their hashes
sha256(secret || list_hash || entry_id), with the two as bytes and the id as decimal text.$$;

create or replace function flashsale.place_entries(p_item_id integer, p_limit integer)
returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_draw record; -- without the secret
  v_next flashsale_data.draw_hashes[];
  v_last bytea;
  v_new integer;
  v_units integer;
  v_moved integer;
begin
  select d.placed_through, d.placed_units, d.put_off into v_draw
  from flashsale_data.draws d where d.item_id = p_item_id;
  select array_agg(row(h.item_id, h.hash, h.entry_id, h.quantity, h.ticket)
      ::flashsale_data.draw_hashes order by h.hash)
  into v_next
  from (
    (
      select r.item_id, r.hash, r.entry_id, r.quantity, r.ticket
      from flashsale_data.draw_hashes r -- those that were put off
      where r.item_id = p_item_id and r.hash <= v_draw.placed_through and v_draw.put_off > 0
      order by r.hash
      limit p_limit
    )
    union all
    (
      select n.item_id, n.hash, n.entry_id, n.quantity,
        (v_draw.placed_units + 1 + sum(n.quantity) over (order by n.hash) - n.quantity)::integer
      from (
        select *
        from flashsale_data.draw_hashes r
        where r.item_id = p_item_id and r.hash > coalesce(v_draw.placed_through, '')
        order by r.hash
        limit p_limit
      ) n
    )
  ) h;
  v_moved := flashsale.move_entries(p_item_id, v_next);
  select (array_agg(n.hash order by n.hash desc))[1], count(*), coalesce(sum(n.quantity), 0)
  into v_last, v_new, v_units
  from unnest(v_next) n
  where n.hash > coalesce(v_draw.placed_through, '');
  update flashsale_data.draws d
  set
    placed_through = coalesce(v_last, d.placed_through),
    placed_units = d.placed_units + v_units,
    put_off = d.put_off + v_new - v_moved
  where d.item_id = p_item_id;
  return v_last is not null;
end
$$;

comment on function flashsale.place_entries(integer, integer) is
$$Gives the next entries of a draw their tickets; true: there may be more
In the order of their hashes, a ticket for each unit.$$;

create or replace function flashsale.move_entries(
  p_item_id integer, p_entries flashsale_data.draw_hashes[])
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_entry_ids bigint[] := array(select e.entry_id from unnest(p_entries) e);
  v_order_ids bigint[];
  v_hashes bytea[];
  v_in_line bigint[];
begin
  with locked as (
    select o.order_id
    from flashsale_data.orders o
    where o.order_id = any (v_entry_ids)
    for update skip locked
  ), moved as (
    update flashsale_data.orders o
    set
      order_id = flashsale.order_id_of(p_item_id, e.ticket),
      ticket = e.ticket,
      status = case o.status when 'entered' then 'waiting' else o.status end
    from unnest(p_entries) e
    where o.order_id = any (array(select l.order_id from locked l)) and o.order_id = e.entry_id
    returning o.order_id, e.entry_id, e.hash, o.status
  )
  select
    array_agg(m.entry_id), array_agg(m.order_id), array_agg(m.hash),
    array_agg(m.order_id order by m.order_id) filter (where m.status = 'waiting')
  into v_entry_ids, v_order_ids, v_hashes, v_in_line
  from moved m;
  update flashsale_data.drawn_entries d
  set order_id = m.order_id
  from unnest(v_entry_ids, v_order_ids) m (entry_id, order_id)
  where d.entry_id = any (v_entry_ids) and d.entry_id = m.entry_id;
  delete from flashsale_data.draw_hashes h
  where h.item_id = p_item_id and h.hash = any (v_hashes);
  update flashsale_data.draw_hashes h
  set ticket = e.ticket
  from unnest(p_entries) e
  where h.item_id = p_item_id and h.hash = e.hash and h.ticket is null
    and (e.hash = any (v_hashes)) is not true
    and coalesce(cardinality(v_hashes), 0) < cardinality(p_entries);
  perform flashsale.complete_entries(p_item_id, v_order_ids);
  perform flashsale.enqueue_mail('placed', v_in_line);
  return coalesce(cardinality(v_order_ids), 0);
end
$$;

comment on function flashsale.move_entries(integer, flashsale_data.draw_hashes[]) is
$$Makes entries the orders of their tickets: waiting; returns how many
The caller has locked the item. An entry that is locked is left to a later visit; its ticket waits
for it.$$;

-- An entry for several units gets the parts that any order for several units has. Who cancelled
-- after the list was made has tickets all the same, which the line has to pass.
create or replace function flashsale.complete_entries(p_item_id integer, p_order_ids bigint[])
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_gaps integer;
begin
  with parts as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, status, created_at, ended_at, head_id, product_id)
    select
      flashsale.order_id_of(p_item_id, o.ticket + n), p_item_id, o.ticket + n, o.status,
      o.created_at, o.ended_at, o.order_id, o.product_id
    from flashsale_data.orders o
    cross join generate_series(1, o.quantity - 1) n
    where o.order_id = any (p_order_ids) and o.quantity > 1
    order by o.order_id, n
  )
  select sum(coalesce(o.quantity, 1)) into v_gaps
  from flashsale_data.orders o
  where o.order_id = any (p_order_ids) and o.ended_at is not null;
  update flashsale_data.items i
  set gaps_in_line = i.gaps_in_line + v_gaps
  where i.item_id = p_item_id and v_gaps > 0;
end
$$;

comment on function flashsale.complete_entries(integer, bigint[]) is
$$The parts and the gaps of entries that have just got their tickets$$;

create or replace function flashsale.end_draw(p_item_id integer, p_now timestamptz) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  update flashsale_data.draws d set done_at = p_now
  where d.item_id = p_item_id and d.put_off = 0;
  if found then
    perform flashsale.note_draw(p_item_id, 'drawn');
  end if;
end
$$;

comment on function flashsale.end_draw(integer, timestamptz) is
$$Publishes the secret of a draw, unless entries have been put off$$;
