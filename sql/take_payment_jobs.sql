-- The worker's side of the queues. A job is leased: reads is the number of the lease, so that a
-- worker that was too slow can't acknowledge what somebody else is working on. What it learnt from
-- the provider is recorded all the same: every effect is a conditional update.
create type flashsale.payment_job as (
  job_id bigint,
  reads integer,
  kind text,
  payment_id bigint,
  order_id bigint,
  item_id integer,
  customer_id text,
  session_id text,
  amount bigint,
  currency text,
  expires_at timestamptz
);

comment on type flashsale.payment_job is
$$A call to make at the payment provider: kind open, void or refund
job_id and reads name the lease. amount is in minor units of currency.$$;

create type flashsale.notification_job as (
  job_id bigint,
  reads integer,
  message jsonb
);

comment on type flashsale.notification_job is
$$An e-mail to send; job_id and reads name the lease$$;

create function flashsale.max_reads(p_message jsonb) returns integer
language sql immutable parallel safe
as $$ select case when p_message ->> 'kind' in ('refund', 'void') then 300 else 10 end $$;

comment on function flashsale.max_reads(jsonb) is
$$How often a job is tried before it goes to the dead letters
A session to open and an e-mail: 10 times, about four minutes. What is owed to a customer, a refund
or a void: 300 times, about a day.$$;

create function flashsale.take_payment_jobs(p_limit integer, p_lease_seconds integer)
returns setof flashsale.payment_job
language plpgsql security definer set search_path = '' set enable_seqscan = off
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
        r.msg_id, r.read_ct::integer as reads, r.enqueued_at, r.message,
        r.message ->> 'kind' as kind,
        p.payment_id, p.order_id, o.item_id, o.customer_id, p.session_id, p.amount, p.currency,
        o.expires_at,
        case
          when r.read_ct > flashsale.max_reads(r.message) or p.payment_id is null then 'bury'
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
      insert into flashsale_data.dead_letters (queue, message, reads, error, enqueued_at, died_at)
      select 'payments', t.message, t.reads, 'given up', t.enqueued_at, flashsale.clock()
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
      where q.msg_id = t.msg_id and q.read_ct = t.reads and t.verdict <> 'do'
    )
    select
      t.msg_id, t.reads, t.kind, t.payment_id, t.order_id, t.item_id, t.customer_id, t.session_id,
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

create function flashsale.take_notifications(p_limit integer, p_lease_seconds integer)
returns setof flashsale.notification_job
language plpgsql security definer set search_path = '' set enable_seqscan = off
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
        r.msg_id, r.read_ct::integer as reads, r.enqueued_at, r.message, o.order_id, o.item_id,
        o.customer_id, o.expires_at, o.checkout_url, i.name,
        case
          when r.read_ct > flashsale.max_reads(r.message) or o.order_id is null then 'bury'
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
      insert into flashsale_data.dead_letters (queue, message, reads, error, enqueued_at, died_at)
      select 'notifications', t.message, t.reads, 'given up', t.enqueued_at, flashsale.clock()
      from taken t
      where t.verdict = 'bury'
    ), dropped as (
      delete from pgmq.q_notifications q
      using taken t
      where q.msg_id = t.msg_id and q.read_ct = t.reads and t.verdict <> 'do'
    )
    select
      t.msg_id,
      t.reads,
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

create function flashsale.finish_job(p_job_id bigint, p_reads integer) returns boolean
language plpgsql volatile set search_path = ''
as $$
begin
  delete from pgmq.q_payments q where q.msg_id = p_job_id and q.read_ct = p_reads;
  return found;
end
$$;

comment on function flashsale.finish_job(bigint, integer) is
$$Acknowledges a payment job; false if the lease has gone to somebody else$$;

create function flashsale.finish_notifications(p_job_ids bigint[], p_reads integer[])
returns setof bigint
language sql volatile security definer set search_path = '' set enable_seqscan = off
as $$
  delete from pgmq.q_notifications q
  using unnest(p_job_ids, p_reads) j (job_id, reads)
  where q.msg_id = j.job_id and q.read_ct = j.reads
  returning q.msg_id
$$;

comment on function flashsale.finish_notifications(bigint[], integer[]) is
$$Acknowledges e-mails that were sent; returns whose lease was ours
The leases of the others have gone to somebody else. The arrays go together: job_id, reads.$$;

create function flashsale.retry_job(
  p_queue text, p_job_id bigint, p_reads integer, p_error text)
returns text
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_message jsonb;
  -- 0.5 s after the first try, doubling, at most five minutes; scattered, so that jobs that failed
  -- together don't come back together. pgmq lives by clock_timestamp(), so does this.
  v_at constant timestamptz :=
    clock_timestamp()
    + least(300, 0.25 * 2 ^ p_reads) * (0.75 + random() / 2) * interval '1 second';
begin
  select q.message into v_message
  from (
    select p.msg_id, p.message from pgmq.q_payments p where p_queue = 'payments'
    union all
    select n.msg_id, n.message from pgmq.q_notifications n where p_queue = 'notifications'
  ) q
  where q.msg_id = p_job_id;
  if p_reads < flashsale.max_reads(v_message) then
    with payments as (
      update pgmq.q_payments q set vt = v_at
      where p_queue = 'payments' and q.msg_id = p_job_id and q.read_ct = p_reads
      returning q.msg_id
    ), notifications as (
      update pgmq.q_notifications q set vt = v_at
      where p_queue = 'notifications' and q.msg_id = p_job_id and q.read_ct = p_reads
      returning q.msg_id
    )
    select 'retry' into p_error
    where exists (select from payments) or exists (select from notifications);
    return case when found then 'retry' else 'lost_lease' end;
  end if;
  with dead as (
    delete from pgmq.q_payments q
    where p_queue = 'payments' and q.msg_id = p_job_id and q.read_ct = p_reads
    returning q.enqueued_at, q.message
  ), also_dead as (
    delete from pgmq.q_notifications q
    where p_queue = 'notifications' and q.msg_id = p_job_id and q.read_ct = p_reads
    returning q.enqueued_at, q.message
  )
  insert into flashsale_data.dead_letters (queue, message, reads, error, enqueued_at, died_at)
  select p_queue, d.message, p_reads, left(p_error, 1000), d.enqueued_at, flashsale.clock()
  from (select * from dead union all select * from also_dead) d
  returning message into v_message;
  if not found then
    return 'lost_lease';
  end if;
  update flashsale_data.payments p
  set status = 'failed', ended_at = flashsale.clock()
  where p_queue = 'payments'
    and v_message ->> 'kind' = 'open'
    and p.payment_id = (v_message ->> 'payment_id')::bigint
    and p.status = 'requested';
  return 'dead';
end
$$;

comment on function flashsale.retry_job(text, bigint, integer, text) is
$$A job failed: tries again later, or gives it up
Returns retry (after a backoff that doubles), dead (after max_reads tries: see dead_letter; a
payment that could not be opened has failed) or lost_lease. p_error: what went wrong, 1,000
characters of it.$$;

create function flashsale.retry_dead_letter(p_dead_letter_id bigint) returns bigint
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_letter flashsale_data.dead_letters;
begin
  delete from flashsale_data.dead_letters d
  where d.dead_letter_id = p_dead_letter_id
  returning * into v_letter;
  if not found then
    raise exception 'There is no such dead letter.' using
      errcode = 'RV103', constraint = 'unknown_dead_letter',
      detail = format('dead_letter_id %s', p_dead_letter_id),
      hint = 'The view flashsale.dead_letter lists them.';
  end if;
  return (select s.msg_id from pgmq.send(v_letter.queue, v_letter.message) s (msg_id));
end
$$;

comment on function flashsale.retry_dead_letter(bigint) is
$$Puts a dead letter back into its queue; returns the new job's id
An open whose payment has failed since is dropped: the customer asks for another attempt.
Errors: RV103 no such dead letter.$$;

create function flashsale.payment_opened(
  p_job_id bigint, p_reads integer, p_payment_id bigint, p_session_id text, p_checkout_url text)
returns text
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_order flashsale_data.orders;
  v_outcome text := 'ignored';
begin
  -- Orders before payments, like everybody; so the end of the hold comes before this or after it.
  select o.* into v_order
  from flashsale_data.orders o
  where o.order_id = (
    select p.order_id from flashsale_data.payments p where p.payment_id = p_payment_id)
  for update;
  update flashsale_data.payments p
  set
    status = 'open', session_id = p_session_id, checkout_url = p_checkout_url,
    opened_at = flashsale.clock()
  where p.payment_id = p_payment_id and p.status = 'requested';
  if found and v_order.status = 'reserved' and v_order.expires_at > flashsale.clock() then
    v_outcome := 'opened';
    perform flashsale.notify(
      case when v_order.reserved_at > v_order.created_at then 'your_turn' else 'reserved' end,
      array[v_order.order_id]);
  elsif found then
    v_outcome := 'superseded';
    perform flashsale.send_jobs('void', array[p_payment_id]);
  end if;
  return case
    when flashsale.finish_job(p_job_id, p_reads) then v_outcome
    else 'lost_lease'
  end;
end
$$;

comment on function flashsale.payment_opened(bigint, integer, bigint, text, text) is
$$The provider has opened a session: the customer may pay
p_checkout_url: where. Returns opened (and the customer is told), superseded (the hold is over: the
session is voided), ignored (known already), or lost_lease: done all the same, but the job is not
ours any more.$$;

create function flashsale.payment_voided(p_job_id bigint, p_reads integer, p_payment_id bigint)
returns text
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_outcome text;
begin
  v_outcome := flashsale.end_payment(
    p_payment_id,
    (select p.session_id from flashsale_data.payments p where p.payment_id = p_payment_id),
    'voided');
  return case
    when flashsale.finish_job(p_job_id, p_reads) then v_outcome
    else 'lost_lease'
  end;
end
$$;

comment on function flashsale.payment_voided(bigint, integer, bigint) is
$$The provider has voided a session: no money will come
Returns voided, ignored (known already) or lost_lease.$$;

create function flashsale.payment_captured(
  p_job_id bigint, p_reads integer, p_payment_id bigint, p_session_id text, p_amount bigint,
  p_currency text)
returns text
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_outcome text;
begin
  v_outcome := (flashsale.pay(p_payment_id, p_session_id, p_amount, p_currency)).outcome;
  return case
    when flashsale.finish_job(p_job_id, p_reads) then v_outcome
    else 'lost_lease'
  end;
end
$$;

comment on function flashsale.payment_captured(bigint, integer, bigint, text, bigint, text) is
$$A session can't be voided, its money has come: decides like pay
Returns pay's outcome or lost_lease. p_amount: minor units. Errors: RV303 as pay.$$;

create function flashsale.payment_refunded(p_job_id bigint, p_reads integer, p_payment_id bigint)
returns text
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_outcome text;
begin
  v_outcome := flashsale.settle_refund(
    p_payment_id,
    (select p.session_id from flashsale_data.payments p where p.payment_id = p_payment_id));
  return case
    when flashsale.finish_job(p_job_id, p_reads) then v_outcome
    else 'lost_lease'
  end;
end
$$;

comment on function flashsale.payment_refunded(bigint, integer, bigint) is
$$The provider has paid a refund out
Returns refunded, ignored (known already) or lost_lease.$$;
