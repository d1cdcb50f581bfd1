-- The worker's side of the queues. A job is leased: tries is the number of the lease, so that a
-- worker that was too slow can't acknowledge what somebody else is working on. What it learnt from
-- the provider is recorded all the same: every effect is a conditional update.
create type flashsale.payment_job as (
  job_id bigint,
  tries integer,
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
job_id and tries name the lease. amount is in minor units of currency.$$;

create type flashsale.notification_job as (
  job_id bigint,
  tries integer,
  message jsonb
);

comment on type flashsale.notification_job is
$$An e-mail to send; job_id and tries name the lease$$;

create function flashsale.max_tries(p_message jsonb) returns integer
language sql immutable parallel safe
as $$ select case when p_message ->> 'kind' in ('refund', 'void') then 300 else 10 end $$;

comment on function flashsale.max_tries(jsonb) is
$$How often a job is tried before it goes to the dead letters
A session to open and an e-mail: 10 times, about four minutes. What is owed to a customer, a refund
or a void: 300 times, about a day.$$;

create function flashsale.finish_job(p_job_id bigint, p_tries integer) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pgmq.q_payments q where q.msg_id = p_job_id and q.read_ct = p_tries;
  return found;
end
$$;

comment on function flashsale.finish_job(bigint, integer) is
$$Acknowledges a payment job; false if the lease has gone to somebody else$$;
