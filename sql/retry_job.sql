create or replace function flashsale.retry_job(
  p_queue text, p_job_id bigint, p_tries integer, p_error text)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_message jsonb;
  v_is_ours boolean;
  -- The delay is 0.5 s after the first try and doubles up to five minutes. It has a random part, so
  -- that jobs that failed together don't come back together. pgmq uses clock_timestamp(), so this
  -- does too.
  v_at constant timestamptz :=
    clock_timestamp()
    + least(300, 0.25 * 2 ^ p_tries) * (0.75 + random() / 2) * interval '1 second';
begin
  select q.message into v_message
  from (
    select p.msg_id, p.message from pgmq.q_payments p where p_queue = 'payments'
    union all
    select n.msg_id, n.message from pgmq.q_notifications n where p_queue = 'notifications'
  ) q
  where q.msg_id = p_job_id;
  if p_tries < flashsale.max_tries(v_message) then
    with payments as (
      update pgmq.q_payments q set vt = v_at
      where p_queue = 'payments' and q.msg_id = p_job_id and q.read_ct = p_tries
      returning q.msg_id
    ), notifications as (
      update pgmq.q_notifications q set vt = v_at
      where p_queue = 'notifications' and q.msg_id = p_job_id and q.read_ct = p_tries
      returning q.msg_id
    )
    select exists (select from payments) or exists (select from notifications) into v_is_ours;
    return case when v_is_ours then 'retry' else 'lost_lease' end;
  end if;
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

comment on function flashsale.retry_job(text, bigint, integer, text) is
$$Records that a job failed: it is tried again later, or given up
p_queue: payments or notifications. p_job_id and p_tries: the lease. p_error: what went wrong, for
people; 1,000 characters of it are kept.
Outcomes: retry (it is tried again, half a second after the first try, then twice as long each time,
at most five minutes); dead (it was tried too often and is in the view dead_letter; a payment that
could not be opened has failed); lost_lease (nothing changes).$$;
