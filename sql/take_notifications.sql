-- take_notifications leases e-mails to a worker. As in take_payment_jobs, e-mails that should not
-- be sent are removed here: hopeless ones (tried too often, or without an order) go to the dead
-- letters, and an e-mail that is not true any more is dropped: that the unit is reserved, that the
-- customer has entered a draw or waits, if that is not so, and that the order has expired, if its
-- late money has bought another one since.
create or replace function flashsale.is_old_news(
  p_kind text, p_status text, p_late_order_id bigint)
returns boolean
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select coalesce(case p_kind
    when 'reserved' then p_status <> 'reserved'
    when 'your_turn' then p_status <> 'reserved'
    when 'entered' then p_status <> 'entered'
    when 'placed' then p_status <> 'waiting'
    when 'expired' then p_late_order_id is not null
  end, false)
$$;

comment on function flashsale.is_old_news(text, text, bigint) is
$$Whether an e-mail of this kind is not true any more$$;

create or replace function flashsale.take_notifications(p_limit integer, p_lease_seconds integer)
returns setof flashsale.notification_job
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_read pgmq.message_record[];
  -- So that a call ends, and commits, however many jobs that are worth nothing are in the queue.
  v_rounds constant integer := 100;
begin
  -- Reads again if none of these is to be sent, because the worker takes no jobs for an empty
  -- queue.
  for v_round in 1..v_rounds loop
    select array_agg(r order by r.msg_id) into v_read
    from pgmq.read('notifications', p_lease_seconds, p_limit) r;
    exit when v_read is null;
    return query
    with mail as materialized (
      select
        r.msg_id, r.read_ct::integer as tries, r.enqueued_at, r.message, o.order_id, o.item_id,
        o.customer_id, o.expires_at, o.checkout_url, o.position, i.name, m.is_hopeless,
        not m.is_hopeless and not m.is_obsolete as is_due
      from unnest(v_read) r
      left join lateral ( -- a view that reads the clock can't be joined by its index otherwise
        select *
        from flashsale.order_status s
        where s.order_id = flashsale.current_id(flashsale.id_in(r.message, 'order_id'))
        limit 1
      ) o on true
      left join flashsale_data.items i on i.item_id = o.item_id
      cross join lateral (
        select
          o.order_id is null or r.read_ct > flashsale.max_tries(r.message) as is_hopeless,
          flashsale.is_old_news(r.message ->> 'kind', o.status, o.late_order_id)
            or flashsale.is_forgotten(o.customer_id) as is_obsolete
      ) m
    ), buried as (
      insert into flashsale_data.dead_letters (queue, message, tries, error, enqueued_at, died_at)
      select 'notifications', m.message, m.tries, 'given up', m.enqueued_at, flashsale.clock()
      from mail m
      where m.is_hopeless
    ), dropped as (
      delete from pgmq.q_notifications q
      using mail m
      where q.msg_id = m.msg_id and q.read_ct = m.tries and not m.is_due
    )
    select
      m.msg_id,
      m.tries,
      jsonb_build_object(
        'kind', m.message ->> 'kind',
        'order_id', flashsale.shown_id(m.order_id)::text,
        'item_id', m.item_id,
        'item_name', m.name,
        'customer_id', m.customer_id,
        'expires_at', m.expires_at,
        'checkout_url', m.checkout_url,
        'position', m.position,
        'could_pay', (
          select true from flashsale_data.payments p
          where p.order_id = m.order_id and p.opened_at < m.expires_at
          limit 1) is not null) -- keeps this a probe per order: `exists` may read all payments
    from mail m
    where m.is_due
    order by m.msg_id;
    exit when found;
  end loop;
end
$$;

comment on function flashsale.take_notifications(integer, integer) is
$$Leases e-mails to send to the caller, oldest first
p_limit: at most so many. p_lease_seconds: no other worker gets them for so long. What is not true
any more is dropped, and an e-mail that was tried too often goes to the dead letters. could_pay:
whether there was a session in which the customer could have paid in time.$$;
