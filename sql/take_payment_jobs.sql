-- take_payment_jobs leases jobs to a worker: those that need a call to the payment provider. All
-- other jobs that it finds in the queue are removed here, in the same transaction:
--
-- * Hopeless jobs go to the dead letters: they were tried too often, or they name no payment, or
--   ask for nothing that we know. If such a job was to open a payment, the payment has failed, so
--   that the customer can ask for another attempt.
-- * Obsolete jobs are dropped: what they ask for has been done, or is not needed any more.
-- * The job that voids the sessions of an order becomes a job for each of them (void_sessions), and
--   nothing if there is none.
-- * An open whose hold ended before anybody called the provider is dropped too, and its payment is
--   voided here: there is no session that could be voided at the provider.
--
-- A job whose order or payment is locked by another transaction is put off, and that is not a try.
--
-- A payment is marked as tried when its job is given to a worker, because the provider may have
-- been called from then on. A job that opens such a payment is not dropped when its hold ends, or
-- when its order goes back to the line: there may be a session, and only the provider can void it.
create or replace function flashsale.take_payment_jobs(p_limit integer, p_lease_seconds integer)
returns setof flashsale.payment_job
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_read pgmq.message_record[];
  v_now timestamptz;
  -- So that a call ends, and commits, however many jobs that are worth nothing are in the queue.
  v_rounds constant integer := 100;
begin
  -- Reads again if none of these needs a call, because the worker takes no jobs for an empty queue.
  for v_round in 1..v_rounds loop
    select array_agg(r order by r.msg_id) into v_read
    from pgmq.read('payments', p_lease_seconds, p_limit) r;
    exit when v_read is null;
    v_read := flashsale.without_busy(flashsale.void_sessions(v_read));
    continue when v_read is null;
    perform flashsale.first_payments(array(
      select flashsale.id_in(r.message, 'payment_id')
      from unnest(v_read) r
      where r.message ->> 'kind' = 'open'));
    v_now := flashsale.clock(); -- a variable, or the lookup would not be inlined
    return query
    with job as materialized (
      select * from flashsale.look_up_payment_jobs(v_read, v_now)
    ), forgone as (
      update flashsale_data.payments p
      set status = 'voided', ended_at = flashsale.clock()
      where p.payment_id = any (array(select j.payment_id from job j where j.is_forgone))
        and p.status = 'requested'
    ), tried as (
      update flashsale_data.payments p
      set tried = true
      where p.payment_id = any (array(select j.payment_id from job j where j.is_due))
        and not p.tried
    ), buried as (
      insert into flashsale_data.dead_letters (queue, message, tries, error, enqueued_at, died_at)
      select 'payments', j.message, j.tries, 'given up', j.enqueued_at, flashsale.clock()
      from job j
      where j.is_hopeless
    ), failed as (
      update flashsale_data.payments p
      set status = 'failed', ended_at = flashsale.clock()
      where p.payment_id = any (array(
          select j.payment_id from job j where j.is_hopeless and j.kind = 'open'))
        and p.status = 'requested'
    ), dropped as (
      delete from pgmq.q_payments q
      using job j
      where q.msg_id = j.job_id and q.read_ct = j.tries and not j.is_due
    )
    select
      j.job_id, j.tries, j.kind, j.payment_id, j.order_id, j.item_id, j.customer_id, j.session_id,
      j.amount, j.currency, j.expires_at,
      (select i.name from flashsale_data.items i where i.item_id = j.item_id)
    from job j
    where j.is_due
    order by j.job_id;
    exit when found;
  end loop;
end
$$;

comment on function flashsale.take_payment_jobs(integer, integer) is
$$Leases payment jobs to the caller, oldest first
p_limit: at most so many. p_lease_seconds: no other worker gets them for so long. Jobs that are not
needed any more are dropped, and those that were tried too often go to the dead letters.$$;

-- What there is to void is found out here, in a snapshot that is younger than the job. The caller
-- that ended the hold may have had an older one, in which a session was not open yet.
create or replace function flashsale.void_sessions(p_read pgmq.message_record[])
returns pgmq.message_record[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_read pgmq.message_record[];
  v_job pgmq.message_record;
  v_payment_ids bigint[];
begin
  foreach v_job in array p_read loop
    if v_job.message ->> 'kind' = 'void' and not v_job.message ? 'payment_id' and exists (
      select from flashsale_data.orders o
      where o.order_id = flashsale.id_in(v_job.message, 'order_id'))
    then
      v_payment_ids := flashsale.sessions_to_void(flashsale.id_in(v_job.message, 'order_id'));
      if v_payment_ids is null then
        delete from pgmq.q_payments q where q.msg_id = v_job.msg_id;
        continue;
      end if;
      v_job.message := jsonb_build_object('kind', 'void', 'payment_id', v_payment_ids[1]);
      update pgmq.q_payments q set message = v_job.message where q.msg_id = v_job.msg_id;
      perform flashsale.enqueue_payment_jobs('void', v_payment_ids[2:]);
    end if;
    v_read := v_read || v_job;
  end loop;
  return v_read;
end
$$;

comment on function flashsale.void_sessions(pgmq.message_record[]) is
$$The read jobs, of which those that void an order now name a session
An order's other sessions get jobs of their own. A job of an order without sessions is deleted.$$;

create or replace function flashsale.sessions_to_void(p_order_id bigint) returns bigint[]
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select array_agg(p.payment_id order by p.payment_id)
  from flashsale_data.payments p
  where p.order_id = p_order_id
    and (p.status = 'open' or p.status = 'failed' and p.session_id is not null)
$$;

comment on function flashsale.sessions_to_void(bigint) is
$$The attempts of an order whose sessions are not known to be closed
Of a failed one the provider may know more than we do, and asking does no harm.$$;

create or replace function flashsale.without_busy(p_read pgmq.message_record[])
returns pgmq.message_record[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_busy constant bigint[] := flashsale.busy_payments(array(
    select flashsale.id_in(r.message, 'payment_id')
    from unnest(p_read) r
    where flashsale.id_in(r.message, 'payment_id') is not null));
begin
  update pgmq.q_payments q
  set vt = clock_timestamp() + interval '0.5 seconds', read_ct = q.read_ct - 1
  where q.msg_id = any (array(
    select r.msg_id from unnest(p_read) r
    where flashsale.id_in(r.message, 'payment_id') = any (v_busy)));
  return (
    select array_agg(r order by r.msg_id)
    from unnest(p_read) r
    where (flashsale.id_in(r.message, 'payment_id') = any (v_busy)) is not true);
end
$$;

comment on function flashsale.without_busy(pgmq.message_record[]) is
$$Those of the read jobs whose orders and payments are not locked
These are locked for the caller's transaction. The other jobs are put off; null: all of them.$$;

-- This has no settings, so that it is inlined. The lookups are lateral with a limit, so that they
-- stay index probes whatever the planner believes about tables that were empty a moment ago.
create or replace function flashsale.look_up_payment_jobs(
  p_read pgmq.message_record[], p_now timestamptz)
returns table (
  job_id bigint,
  tries integer,
  enqueued_at timestamptz,
  message jsonb,
  kind text,
  payment_id bigint,
  order_id bigint,
  item_id integer,
  customer_id text,
  session_id text,
  amount bigint,
  currency text,
  expires_at timestamptz,
  is_hopeless boolean,
  is_forgone boolean,
  is_due boolean)
language sql stable
as $$
  select
    r.msg_id, r.read_ct::integer, r.enqueued_at, r.message, m.kind, p.payment_id, p.order_id,
    o.item_id, o.customer_id, p.session_id, p.amount, p.currency,
    coalesce(p.asked_until, p.expires_at, o.expires_at),
    j.is_hopeless,
    not j.is_hopeless and not j.is_obsolete and j.is_over,
    not j.is_hopeless and not j.is_obsolete and not j.is_over
  from unnest(p_read) r
  cross join lateral (select r.message ->> 'kind' as kind) m
  left join lateral (
    select *
    from flashsale_data.payments a
    where a.payment_id = flashsale.id_in(r.message, 'payment_id')
    limit 1
  ) p on true
  left join lateral (
    select *
    from flashsale_data.orders b
    where b.order_id = p.order_id
    limit 1
  ) o on true
  cross join lateral (
    select
      p.payment_id is null
        or coalesce(m.kind not in ('open', 'void', 'refund'), true)
        or r.read_ct > flashsale.max_tries(r.message) as is_hopeless,
      case m.kind
        when 'open' then p.status <> 'requested' and not (
          p.tried and flashsale.is_to_be_found(p.status, p.session_id, p.asked_until, p.expires_at))
        when 'void' then p.status <> 'open' and not (
          p.status = 'failed' and p.session_id is not null)
        when 'refund' then p.status <> 'refund_due'
      end as is_obsolete,
      coalesce(
        m.kind = 'open' and not p.tried
          and (o.status <> 'reserved' or o.expires_at <= p_now),
        false) as is_over
  ) j
$$;

comment on function flashsale.look_up_payment_jobs(pgmq.message_record[], timestamptz) is
$$What is to be done about jobs that were read from the queue of payments
A job is exactly one of: is_due (worth a call to the provider), is_hopeless (for the dead letters),
is_forgone (its hold ended before the provider was called), or none of these: obsolete.$$;
