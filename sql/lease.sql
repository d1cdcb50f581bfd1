-- The leases of the worker's jobs. A job that was taken is leased to the worker for some seconds.
-- tries says how often the job was taken, this time included, so that job_id and tries together
-- name the lease. So a worker that was too slow can't acknowledge a job that another worker is
-- doing by now. What it has learnt from the provider is recorded all the same. That is safe,
-- because every effect is a conditional update and happens only once.
create or replace function flashsale.max_tries(p_message jsonb) returns integer
language sql immutable parallel safe
as $$ select case when p_message ->> 'kind' in ('refund', 'void') then 300 else 10 end $$;

comment on function flashsale.max_tries(jsonb) is
$$How often a job is tried before it goes to the dead letters
To open a session and to send an e-mail: 10 times, which takes about four minutes. To refund or to
void, which we owe the customer: 300 times, about a day. While a hold runs and the provider does not
answer, a try to open its session does not count (retry_job).$$;

-- A message may have any content, because operators can put messages into the queue by hand.
create or replace function flashsale.id_in(p_message jsonb, p_name text) returns bigint
language sql immutable parallel safe
as $$
  select case when p_message ->> p_name ~ '^[0-9]{1,18}$' then (p_message ->> p_name)::bigint end
$$;

comment on function flashsale.id_in(jsonb, text) is
$$The id that a job's message has under a name; null if that is no id$$;

-- A transaction of somebody else may have locked an order for as long as it likes. The worker has
-- few connections, and a batch of jobs is one transaction: if it waited for one order, nobody would
-- get a checkout. So it never waits. The job is put off, and found again when its time has come.
-- The probes have a limit, because an `exists` may become a join that reads the whole table.
--
-- An order that an outage has sent back to the line is not locked. Its attempts are over, and what
-- becomes of them changes nothing for it. Were it locked, promote would leave it out, and serve
-- others before it. Only money needs the lock, because pay takes it, and would wait for it.
create or replace function flashsale.busy_payments(
  p_payment_ids bigint[], p_waiting_too boolean default false)
returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order_ids constant bigint[] := array(
    select coalesce(
      (select p.order_id from flashsale_data.payments p where p.payment_id = u.payment_id),
      u.payment_id) -- a first attempt, which has no row yet
    from unnest(p_payment_ids) with ordinality u (payment_id, n)
    order by u.n);
  v_locked bigint[];
  v_busy bigint[];
begin
  v_locked := array(
    select o.order_id from flashsale_data.orders o
    where o.order_id = any (v_order_ids) -- in any order, because this waits for nobody
      and (p_waiting_too or o.status <> 'waiting')
    for update skip locked);
  v_busy := array(
    select u.payment_id
    from unnest(p_payment_ids, v_order_ids) u (payment_id, order_id)
    where u.order_id <> all (v_locked)
      and (
        select true from flashsale_data.orders o
        where o.order_id = u.order_id and (p_waiting_too or o.status <> 'waiting')
        limit 1));
  v_locked := array(
    select p.payment_id from flashsale_data.payments p
    where p.payment_id = any (p_payment_ids) and p.payment_id <> all (v_busy)
    for update skip locked);
  return v_busy || array(
    select u.payment_id
    from unnest(p_payment_ids) u (payment_id)
    where u.payment_id <> all (v_locked || v_busy)
      and (select true from flashsale_data.payments p where p.payment_id = u.payment_id limit 1));
end
$$;

comment on function flashsale.busy_payments(bigint[], boolean) is
$$Which of the payments another transaction has locked, or their orders
The others, and their orders, are locked for the caller's transaction. p_waiting_too: also orders
that are back in the line; else whether those are locked does not matter.$$;

create or replace function flashsale.is_busy(
  p_payment_id bigint, p_waiting_too boolean default false)
returns boolean
language sql volatile set search_path = pg_catalog, pg_temp
as $$ select p_payment_id = any (flashsale.busy_payments(array[p_payment_id], p_waiting_too)) $$;

comment on function flashsale.is_busy(bigint, boolean) is
$$Whether another transaction has locked a payment or its order
If not, both are locked for the caller's transaction. p_waiting_too: as of busy_payments.$$;

create or replace function flashsale.put_off(p_job_id bigint, p_tries integer) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  update pgmq.q_payments q
  set vt = clock_timestamp() + interval '0.5 seconds'
  where q.msg_id = p_job_id and q.read_ct = p_tries;
  return case when found then 'busy' else 'lost_lease' end;
end
$$;

comment on function flashsale.put_off(bigint, integer) is
$$Puts a payment job off for half a second, because its order is locked
Outcomes: busy; lost_lease (the lease has gone to somebody else).$$;

create or replace function flashsale.finish_job(
  p_job_id bigint, p_tries integer, p_outcome text)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pgmq.q_payments q where q.msg_id = p_job_id and q.read_ct = p_tries;
  return case when found then p_outcome else 'lost_lease' end;
end
$$;

comment on function flashsale.finish_job(bigint, integer, text) is
$$Acknowledges a payment job; returns what has come of it
Outcomes: p_outcome; lost_lease (the lease has gone to somebody else).$$;
