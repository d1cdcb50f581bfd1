-- What a verb leaves behind for the worker, in the verb's own transaction. A message names things;
-- the worker reads how they are when it gets there.
--
-- These insert into pgmq's tables, as pgmq.send_batch does: it composes and plans its statement
-- anew for every call, which costs more than all the rest of a reservation.
create function flashsale.send_jobs(p_kind text, p_payment_ids bigint[]) returns integer
language plpgsql volatile set search_path = ''
as $$
declare
  v_count integer;
begin
  insert into pgmq.q_payments (vt, message)
  select clock_timestamp(), jsonb_build_object('kind', p_kind, 'payment_id', p.payment_id)
  from unnest(p_payment_ids) with ordinality p (payment_id, ord)
  order by p.ord;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function flashsale.send_jobs(text, bigint[]) is
$$Enqueues a job for the payment provider for each payment
p_kind: open, void or refund. Returns how many. An empty or null array is none.$$;

create function flashsale.notify(p_kind text, p_order_ids bigint[]) returns integer
language plpgsql volatile set search_path = ''
as $$
declare
  v_count integer;
begin
  insert into pgmq.q_notifications (vt, message)
  select clock_timestamp(), jsonb_build_object('kind', p_kind, 'order_id', o.order_id)
  from unnest(p_order_ids) with ordinality o (order_id, ord)
  order by o.ord;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function flashsale.notify(text, bigint[]) is
$$Enqueues an e-mail to the customer of each order
p_kind: reserved, your_turn, paid, expired, cancelled, refunded or unserved. Returns how many.$$;

create function flashsale.void_payments_of(p_order_ids bigint[]) returns integer
language sql volatile set search_path = ''
as $$
  select flashsale.send_jobs('void', array_agg(p.payment_id order by p.payment_id))
  from flashsale_data.payments p
  where p.order_id = any (p_order_ids)
    and p.status in ('requested', 'open')
$$;

comment on function flashsale.void_payments_of(bigint[]) is
$$Enqueues the void of the payment attempts that orders leave behind
The attempt stays open until the provider confirms: money may be on its way. Returns how many.$$;
