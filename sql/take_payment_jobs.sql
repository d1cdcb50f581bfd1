create function flashsale.take_payment_jobs(p_limit integer, p_lease_seconds integer)
returns setof flashsale.payment_job
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_read pgmq.message_record[];
begin
  -- Again if nobody needs any of what was read, or many such jobs would look like an empty queue.
  for v_round in 1..100 loop
    select array_agg(r order by r.msg_id) into v_read
    from pgmq.read('payments', p_lease_seconds, p_limit) r;
    exit when v_read is null;
    perform flashsale.first_payments(array(
      select (r.message ->> 'payment_id')::bigint
      from unnest(v_read) r
      where r.message ->> 'kind' = 'open' and r.message ->> 'payment_id' ~ '^[0-9]{1,18}$'));
    return query
    with taken as materialized (
      select
        r.msg_id, r.read_ct::integer as tries, r.enqueued_at, r.message,
        r.message ->> 'kind' as kind,
        p.payment_id, p.order_id, o.item_id, o.customer_id, p.session_id, p.amount, p.currency,
        o.expires_at,
        case
          when r.read_ct > flashsale.max_tries(r.message) or p.payment_id is null then 'bury'
          when r.message ->> 'kind' = 'void' and p.status <> 'open' then 'drop'
          when r.message ->> 'kind' = 'refund' and p.status <> 'refund_due' then 'drop'
          when r.message ->> 'kind' = 'open' and p.status <> 'requested' then 'drop'
          when r.message ->> 'kind' = 'open' and not p.tried
            and (o.status <> 'reserved' or o.expires_at <= flashsale.clock()) then 'forgo'
          when r.message ->> 'kind' in ('open', 'void', 'refund') then 'do'
          else 'bury'
        end as verdict
      from unnest(v_read) r
      left join flashsale_data.payments p on p.payment_id =
        case when r.message ->> 'payment_id' ~ '^[0-9]{1,18}$'
          then (r.message ->> 'payment_id')::bigint end
      left join flashsale_data.orders o on o.order_id = p.order_id
    ), forgone as ( -- the hold ended before anybody asked the provider
      update flashsale_data.payments p
      set status = 'voided', ended_at = flashsale.clock()
      from taken t
      where p.payment_id = t.payment_id and t.verdict = 'forgo' and p.status = 'requested'
    ), tried as (
      update flashsale_data.payments p
      set tried = true
      from taken t
      where p.payment_id = t.payment_id and t.verdict = 'do' and not p.tried
    ), buried as (
      insert into flashsale_data.dead_letters (queue, message, tries, error, enqueued_at, died_at)
      select 'payments', t.message, t.tries, 'given up', t.enqueued_at, flashsale.clock()
      from taken t
      where t.verdict = 'bury'
    ), failed as ( -- nobody will open it: let the customer ask for another attempt
      update flashsale_data.payments p
      set status = 'failed', ended_at = flashsale.clock()
      from taken t
      where p.payment_id = t.payment_id and t.verdict = 'bury' and t.kind = 'open'
        and p.status = 'requested'
    ), dropped as (
      delete from pgmq.q_payments q
      using taken t
      where q.msg_id = t.msg_id and q.read_ct = t.tries and t.verdict <> 'do'
    )
    select
      t.msg_id, t.tries, t.kind, t.payment_id, t.order_id, t.item_id, t.customer_id, t.session_id,
      t.amount, t.currency, t.expires_at
    from taken t
    where t.verdict = 'do'
    order by t.msg_id;
    exit when found;
  end loop;
end
$$;

comment on function flashsale.take_payment_jobs(integer, integer) is
$$Leases payment jobs, oldest first, for p_lease_seconds; at most p_limit
Jobs that nobody needs any more are dropped, those tried too often go to the dead letters.$$;
