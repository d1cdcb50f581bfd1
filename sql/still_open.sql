-- What forbids to erase orders: something that a customer or we still have to do about them. An
-- attempt to pay counts until the provider has told its end, because money may be on its way. What
-- comes after all of that, and after the erasing, is money that names no payment of ours: a stray,
-- which goes back.
create or replace function flashsale.open_of(p_order_ids bigint[])
returns table (order_id bigint, kind text, what text)
language sql stable rows 10 set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  with attempt as materialized (
    select p.payment_id, p.order_id, p.status, p.payable
    from flashsale_data.payments p
    where p.order_id = any (p_order_ids)
  ), named as materialized ( -- in jobs: first attempts, which have no row yet, have the order's id
    select a.payment_id, a.order_id from attempt a
    union
    select u.id, u.id from unnest(p_order_ids) u (id)
  )
  select o.order_id, 'order', format('order %s is %s', o.order_id, o.status)
  from flashsale_data.orders o
  where o.order_id = any (p_order_ids) and o.ended_at is null and o.paid_at is null
  union all
  select a.order_id, 'payment',
    format('payment %s of order %s is %s', a.payment_id, a.order_id, a.status)
  from attempt a
  where a.status in ('requested', 'open', 'refund_due') or a.status = 'failed' and a.payable
  union all
  select n.order_id, 'job', format('a job (%s) for order %s', q.message ->> 'kind', n.order_id)
  from pgmq.q_payments q
  join named n on n.payment_id = coalesce(
    flashsale.id_in(q.message, 'payment_id'), flashsale.id_in(q.message, 'order_id'))
  union all
  select u.id, 'e-mail', format('an e-mail (%s) about order %s', q.message ->> 'kind', u.id)
  from pgmq.q_notifications q
  join unnest(p_order_ids) u (id)
    on u.id = flashsale.current_id(flashsale.id_in(q.message, 'order_id'))
  union all
  select n.order_id, 'dead letter',
    format('dead letter %s (%s) for order %s', d.dead_letter_id, d.message ->> 'kind', n.order_id)
  from flashsale_data.dead_letters d
  join named n on n.payment_id = coalesce(
    flashsale.id_in(d.message, 'payment_id'), flashsale.id_in(d.message, 'order_id'))
  where d.queue = 'payments'
$$;

comment on function flashsale.open_of(bigint[]) is
$$What is still to be done about orders: one row for each such thing
kind: order (it has not ended), payment (an attempt or a refund is under way), job, e-mail, or dead
letter (of a payment).$$;

create or replace function flashsale.raise_still_open(p_what text[]) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'This can''t be erased yet: % things are open.', cardinality(p_what) using
    errcode = 'RV212', constraint = 'still_open', detail = array_to_string(p_what[1:20], '; '),
    hint = 'Cancel or refund what is not wanted, close the sale, and leave the jobs to the worker; '
      'retry_dead_letter puts a dead letter back. Then call again.';
end
$$;

comment on function flashsale.raise_still_open(text[]) is
$$Raises RV212: there is something open; detail lists the first 20 things$$;

create or replace function flashsale.without_dead_mail(p_order_ids bigint[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  delete from flashsale_data.dead_letters d
  where d.queue = 'notifications'
    and flashsale.current_id(flashsale.id_in(d.message, 'order_id')) = any (p_order_ids)
$$;

comment on function flashsale.without_dead_mail(bigint[]) is
$$Deletes e-mails about orders that could not be delivered$$;
