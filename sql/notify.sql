-- What a verb leaves behind for the worker, in the verb's own transaction. A message names things;
-- the worker reads how they are when it gets there.
create function flashsale.send_jobs(p_kind text, p_payment_ids bigint[]) returns integer
language sql volatile set search_path = ''
as $$
  select count(*)::integer
  from (
    select array_agg(jsonb_build_object('kind', p_kind, 'payment_id', p.payment_id)
      order by p.ord) as messages
    from unnest(p_payment_ids) with ordinality p (payment_id, ord)
  ) m
  cross join lateral pgmq.send_batch('payments', m.messages)
  where m.messages is not null
$$;

comment on function flashsale.send_jobs(text, bigint[]) is
$$Enqueues a job for the payment provider for each payment
p_kind: open, void or refund. Returns how many. An empty or null array is none.$$;

create function flashsale.notify(p_kind text, p_order_ids bigint[]) returns integer
language sql volatile set search_path = ''
as $$
  select count(*)::integer
  from (
    select array_agg(jsonb_build_object('kind', p_kind, 'order_id', o.order_id)
      order by o.ord) as messages
    from unnest(p_order_ids) with ordinality o (order_id, ord)
  ) m
  cross join lateral pgmq.send_batch('notifications', m.messages)
  where m.messages is not null
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
