create function flashsale.take_notifications(p_limit integer, p_lease_seconds integer)
returns setof flashsale.notification_job
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_read pgmq.message_record[];
begin
  -- Again if nobody needs any of what was read, or many such jobs would look like an empty queue.
  for v_round in 1..100 loop
    select array_agg(r order by r.msg_id) into v_read
    from pgmq.read('notifications', p_lease_seconds, p_limit) r;
    exit when v_read is null;
    return query
    with taken as materialized (
      select
        r.msg_id, r.read_ct::integer as tries, r.enqueued_at, r.message, o.order_id, o.item_id,
        o.customer_id, o.expires_at, o.checkout_url, i.name,
        case
          when r.read_ct > flashsale.max_tries(r.message) or o.order_id is null then 'bury'
          when r.message ->> 'kind' in ('reserved', 'your_turn') and o.status <> 'reserved'
            then 'drop'
          else 'do'
        end as verdict
      from unnest(v_read) r
      left join lateral ( -- a view that reads the clock can't be joined by its index otherwise
        select *
        from flashsale.order_status s
        where s.order_id = case when r.message ->> 'order_id' ~ '^[0-9]{1,18}$'
          then (r.message ->> 'order_id')::bigint end
        limit 1
      ) o on true
      left join flashsale_data.items i on i.item_id = o.item_id
    ), buried as (
      insert into flashsale_data.dead_letters (queue, message, tries, error, enqueued_at, died_at)
      select 'notifications', t.message, t.tries, 'given up', t.enqueued_at, flashsale.clock()
      from taken t
      where t.verdict = 'bury'
    ), dropped as (
      delete from pgmq.q_notifications q
      using taken t
      where q.msg_id = t.msg_id and q.read_ct = t.tries and t.verdict <> 'do'
    )
    select
      t.msg_id,
      t.tries,
      jsonb_build_object(
        'kind', t.message ->> 'kind',
        'order_id', t.order_id::text,
        'item_id', t.item_id,
        'item_name', t.name,
        'customer_id', t.customer_id,
        'expires_at', t.expires_at,
        'checkout_url', t.checkout_url)
    from taken t
    where t.verdict = 'do'
    order by t.msg_id;
    exit when found;
  end loop;
end
$$;

comment on function flashsale.take_notifications(integer, integer) is
$$Leases e-mails to send, oldest first, for p_lease_seconds
At most p_limit. "Your unit is reserved" is dropped if it is not any more.$$;
