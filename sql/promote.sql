-- Moving the line. promote recycles forfeits, which moves now_serving, and grants holds to those
-- it has reached; fill finds the tickets that nobody holds. Both take the item's row with skip
-- locked: one sweeper an item, and nobody waits. Orders that were locked are updated by their ids:
-- joined, they may be looked for by reading all orders, and a session keeps such a plan.
create function flashsale.promote(
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
  v_first constant bigint := flashsale.order_id_of(p_item_id, 0);
  v_item flashsale_data.items;
  v_now timestamptz;
  v_order_ids bigint[];
  v_now_serving integer;
  v_count integer;
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

  if v_item.closes_at <= v_now then
    with leaving as (
      select o.order_id
      from flashsale_data.orders o
      where o.order_id between v_first and v_first + 4294967295
        and o.status = 'waiting'
      order by o.order_id
      limit p_limit
      for update skip locked
    ), left_out as (
      update flashsale_data.orders o
      set status = 'unserved', ended_at = v_now
      where o.order_id = any (array(select l.order_id from leaving l)) and o.status = 'waiting'
      returning o.order_id
    )
    select array_agg(l.order_id order by l.order_id) into v_order_ids from left_out l;
    unserved := coalesce(cardinality(v_order_ids), 0);
    more := unserved >= p_limit;
    update flashsale_data.items i set gaps_in_line = i.gaps_in_line + unserved
    where i.item_id = p_item_id and unserved > 0;
    perform flashsale.enqueue_mail('unserved', v_order_ids);
  end if;

  -- Each dead order that the line has passed moves it by one, and so may pass others: again, until
  -- nothing changes. Units that are to be withdrawn leave with the first forfeits.
  loop
    with passed as (
      select o.order_id
      from flashsale_data.orders o
      where o.order_id between v_first and v_first + v_item.now_serving
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
      gaps_in_line = i.gaps_in_line - c.gaps
    from counted c
    where i.item_id = p_item_id and c.forfeits > 0
    returning i.now_serving, c.forfeits into v_now_serving, v_count;
    exit when not found;
    v_item.now_serving := v_now_serving;
    recycled := recycled + v_count;
    if recycled >= p_limit then
      more := true;
      exit;
    end if;
  end loop;

  if flashsale.shut_by(v_item.opens_at, v_item.closes_at, v_item.paused, v_now) is not null then
    return;
  end if;
  select array_agg(e.order_id) into v_order_ids
  from (
    select o.order_id
    from flashsale_data.orders o
    where o.order_id between v_first and v_first + v_item.now_serving
      and o.status = 'waiting'
    order by o.order_id
    limit p_limit
    for update skip locked
  ) e;
  v_now := flashsale.clock(); -- some may have asked since it was read
  with granted as (
    update flashsale_data.orders o
    set
      status = 'reserved',
      reserved_at = v_now,
      expires_at = v_now + v_item.hold_seconds * interval '1 second'
    where o.order_id = any (v_order_ids)
      and o.status = 'waiting'
      and (v_item.closes_at <= v_now) is not true
    returning o.order_id
  )
  select array_agg(g.order_id order by g.order_id) into v_order_ids from granted g;
  promoted := flashsale.enqueue_payment_jobs('open', v_order_ids);
  more := more or promoted >= p_limit;
end
$$;

comment on function flashsale.promote(integer, integer) is
$$Serves an item's line: recycles forfeits and grants holds, by ticket
Each hold gets its full window and its payment job in this transaction. After closes_at the line
ends unserved instead; while paused nobody is promoted. At most p_limit of each; more: call again.
Never waits: if somebody else serves this item at the moment, it does nothing.$$;
