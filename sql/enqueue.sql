-- Enqueues the jobs that the verbs leave to the worker. A verb enqueues its jobs in its own
-- transaction, so a job exists exactly if the change that needs it was committed. A message names a
-- payment or an order and says nothing else about it: its state is looked up when the job is taken.
--
-- These functions insert into the tables of pgmq's queues, as pgmq.send_batch does. A call of
-- pgmq.send_batch would cost more than all the rest of a reservation, because it composes and plans
-- its statement anew every time. Every version of pgmq has the columns vt and message.
create or replace function flashsale.enqueue_payment_jobs(p_kind text, p_payment_ids bigint[])
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  insert into pgmq.q_payments (vt, message)
  select clock_timestamp(), jsonb_build_object('kind', p_kind, 'payment_id', p.payment_id)
  from unnest(p_payment_ids) p (payment_id); -- in the order of the array
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function flashsale.enqueue_payment_jobs(text, bigint[]) is
$$Enqueues a job for the payment provider for each payment
p_kind: open, void or refund. Returns the number of jobs. A null array counts as empty.$$;

create or replace function flashsale.note_orders(
  p_type text, p_order_ids bigint[], p_at timestamptz, p_data jsonb default null)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  insert into flashsale_data.outbox (type, order_id, at, data)
  select p_type, o.order_id, p_at, p_data
  from unnest(p_order_ids) o (order_id); -- in the order of the array
end
$$;

comment on function flashsale.note_orders(text, bigint[], timestamptz, jsonb) is
$$Writes what happened to orders into the outbox of the feed
The caller has locked them. p_type: as in docs/reference/events.md. p_data: what else is known.$$;

create or replace function flashsale.enqueue_mail(p_kind text, p_order_ids bigint[]) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  insert into pgmq.q_notifications (vt, message)
  select clock_timestamp(), jsonb_build_object('kind', p_kind, 'order_id', o.order_id)
  from unnest(p_order_ids) o (order_id); -- in the order of the array
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function flashsale.enqueue_mail(text, bigint[]) is
$$Enqueues an e-mail to the customer of each order
p_kind: reserved, your_turn, paid, paid_late, expired, cancelled, refunded, order_refunded or
unserved. Returns the number of e-mails. A null array counts as empty.$$;

create or replace function flashsale.enqueue_voids(p_order_ids bigint[]) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  insert into pgmq.q_payments (vt, message)
  select clock_timestamp(), jsonb_build_object('kind', 'void', 'order_id', o.order_id)
  from unnest(p_order_ids) o (order_id); -- in the order of the array
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function flashsale.enqueue_voids(bigint[]) is
$$Enqueues the void of all sessions that orders leave behind
One job per order, whatever there is to void: the caller's snapshot may be old, and a session may be
opened at this moment, so that is found out when the job is taken (sessions_to_void). An attempt
stays open until the provider confirms the void, because money may be on its way.
Returns the number of jobs. A null array counts as empty.$$;
