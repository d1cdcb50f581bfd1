-- An outage of the provider costs nobody anything: while the hold of a payment runs, a try that got
-- no answer does not count, so that the job that opens its session is never given up, and it comes
-- back within two seconds. It is the same for a hold that has gone back to the line: while the
-- provider is down nobody is promoted, so the jobs of these holds are how its return is noticed.
-- A job that voids a session of a settling order comes back as soon, because its unit waits for the
-- answer.
create or replace function flashsale.retry_job(
  p_queue text, p_job_id bigint, p_tries integer, p_error text,
  p_unavailable boolean default false)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_message jsonb;
  v_holds boolean;
  v_is_urgent boolean;
  v_is_ours boolean;
begin
  select q.message into v_message
  from (
    select p.msg_id, p.message from pgmq.q_payments p
    where p_queue = 'payments' and p.msg_id = p_job_id and p.read_ct = p_tries
    union all
    select n.msg_id, n.message from pgmq.q_notifications n
    where p_queue = 'notifications' and n.msg_id = p_job_id and n.read_ct = p_tries
  ) q;
  if v_message is null then
    return 'lost_lease';
  elsif p_queue = 'payments' then
    v_holds := p_unavailable and flashsale.holds_still(v_message);
    v_is_urgent := v_holds or p_unavailable and flashsale.is_settling(v_message);
    perform flashsale.note_try(v_message, p_unavailable);
  end if;
  if v_holds or p_tries < flashsale.max_tries(v_message) then
    with payments as (
      update pgmq.q_payments q
      set
        vt = flashsale.next_try(p_tries, v_is_urgent),
        read_ct = q.read_ct - v_holds::integer
      where p_queue = 'payments' and q.msg_id = p_job_id and q.read_ct = p_tries
      returning q.msg_id
    ), notifications as (
      update pgmq.q_notifications q set vt = flashsale.next_try(p_tries, false)
      where p_queue = 'notifications' and q.msg_id = p_job_id and q.read_ct = p_tries
      returning q.msg_id
    )
    select exists (select from payments) or exists (select from notifications) into v_is_ours;
    return case when v_is_ours then 'retry' else 'lost_lease' end;
  end if;
  return flashsale.give_up(p_queue, p_job_id, p_tries, p_error);
end
$$;

comment on function flashsale.retry_job(text, bigint, integer, text, boolean) is
$$Records that a job failed: it is tried again later, or given up
p_queue: payments or notifications. p_job_id and p_tries: the lease. p_error: what went wrong, for
people; 1,000 characters of it are kept. p_unavailable: the payment provider has not answered;
false: it has refused.
Outcomes: retry (it is tried again, half a second after the first try, then twice as long each time,
at most five minutes; at most two seconds if the provider has not answered, and a hold or its unit
waits for it); dead (it was tried too often and is in the view dead_letter; a payment that could not
be opened has failed); lost_lease (nothing changes).$$;

create or replace function flashsale.holds_still(p_message jsonb) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p_message ->> 'kind' = 'open' and exists (
    select from flashsale_data.payments p
    join flashsale_data.orders o on o.order_id = p.order_id
    where p.payment_id = flashsale.id_in(p_message, 'payment_id')
      and (p.status = 'requested' and o.status = 'reserved' and o.expires_at > flashsale.clock()
        or p.tried
          and flashsale.is_to_be_found(p.status, p.session_id, p.asked_until, p.expires_at)))
$$;

comment on function flashsale.holds_still(jsonb) is
$$Whether a job opens a session of a hold that runs, or one to be voided$$;

create or replace function flashsale.is_settling(p_message jsonb) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p_message ->> 'kind' = 'void' and exists (
    select from flashsale_data.payments p
    join flashsale_data.orders o on o.order_id = p.order_id
    where p.payment_id = flashsale.id_in(p_message, 'payment_id') and o.status = 'settling')
$$;

comment on function flashsale.is_settling(jsonb) is
$$Whether a job is to void a session of an order that settles$$;

-- It has a random part, so that jobs that failed together don't come back together. pgmq uses
-- clock_timestamp(), so this does too.
create or replace function flashsale.next_try(p_tries integer, p_is_urgent boolean)
returns timestamptz
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select clock_timestamp() + interval '1 second' * least(
    least(300, 0.25 * 2 ^ p_tries) * (0.75 + random() / 2),
    case when p_is_urgent then 0.5 + 1.5 * random() end)
$$;

comment on function flashsale.next_try(integer, boolean) is
$$When a job that has failed is tried again
p_is_urgent: within two seconds.$$;

-- If another transaction has locked the payment, this is left out: it does not wait.
create or replace function flashsale.note_try(p_message jsonb, p_unavailable boolean) returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  update flashsale_data.payments p
  set
    unavailable_at = case when p_unavailable then flashsale.clock() end,
    refused_at = case when not p_unavailable then flashsale.clock() end
  where p.payment_id = (
    select q.payment_id from flashsale_data.payments q
    where p_message ->> 'kind' = 'open'
      and q.payment_id = flashsale.id_in(p_message, 'payment_id')
      and q.status = 'requested'
    for update skip locked)
$$;

comment on function flashsale.note_try(jsonb, boolean) is
$$Records what came of the last try to open a payment's session$$;

create or replace function flashsale.give_up(
  p_queue text, p_job_id bigint, p_tries integer, p_error text)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_message jsonb;
begin
  with dead as (
    delete from pgmq.q_payments q
    where p_queue = 'payments' and q.msg_id = p_job_id and q.read_ct = p_tries
    returning q.enqueued_at, q.message
  ), also_dead as (
    delete from pgmq.q_notifications q
    where p_queue = 'notifications' and q.msg_id = p_job_id and q.read_ct = p_tries
    returning q.enqueued_at, q.message
  )
  insert into flashsale_data.dead_letters (queue, message, tries, error, enqueued_at, died_at)
  select p_queue, d.message, p_tries, left(p_error, 1000), d.enqueued_at, flashsale.clock()
  from (select * from dead union all select * from also_dead) d
  returning message into v_message;
  if not found then
    return 'lost_lease';
  end if;
  update flashsale_data.payments p
  set status = 'failed', ended_at = flashsale.clock()
  where p_queue = 'payments'
    and v_message ->> 'kind' = 'open'
    and p.payment_id = flashsale.id_in(v_message, 'payment_id')
    and p.status = 'requested';
  return 'dead';
end
$$;

comment on function flashsale.give_up(text, bigint, integer, text) is
$$Puts a job into the dead letters; its payment can't be opened: failed
Outcomes: dead; lost_lease.$$;
