create or replace function flashsale.extend_holds(
  p_item_id integer,
  p_seconds integer,
  p_reason text,
  p_staff text default null,
  p_idempotency_key text default null)
returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now timestamptz := flashsale.clock();
  v_later constant interval := p_seconds * interval '1 second';
  v_extended bigint[];
  v_count integer;
begin
  perform flashsale.check_act(p_staff, p_reason);
  if coalesce(p_seconds not between 1 and 604800, true) then
    raise exception 'Extend by 1 to 604800 seconds.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('seconds %s', p_seconds);
  end if;
  perform from flashsale_data.items i where i.item_id = p_item_id;
  if not found then
    perform flashsale.raise_unknown_item(p_item_id);
  elsif flashsale.is_repeated('', p_idempotency_key, 'extend_holds', jsonb_build_object(
    'item_id', p_item_id, 'seconds', p_seconds, 'reason', p_reason))
  then
    return flashsale.noted_result('', p_idempotency_key);
  end if;
  -- Only reserve_many waits for several orders too, in the same order.
  perform from flashsale_data.orders o
  where o.item_id = p_item_id and o.status = 'reserved' and o.expires_at > v_now
    and o.paid_at is null and o.ended_at is null -- by the index of holds
  order by o.item_id, o.customer_id
  for update;
  v_now := flashsale.clock();
  with extended as (
    update flashsale_data.orders o
    set expires_at = o.expires_at + v_later
    where o.item_id = p_item_id and o.status = 'reserved' and o.expires_at > v_now
      and o.paid_at is null and o.ended_at is null
    returning o.order_id
  )
  select array_agg(e.order_id), count(*) into v_extended, v_count from extended e;
  perform flashsale.note_result('', p_idempotency_key, v_count);
  perform
    flashsale.replace_tried(v_extended, v_later, v_now),
    flashsale.note_history(
      coalesce(p_staff, session_user), 'extend_holds', null, null,
      jsonb_build_object('seconds', p_seconds, 'extended', v_count), p_reason, p_item_id)
  where v_count > 0;
  return v_count;
end
$$;

comment on function flashsale.extend_holds(integer, integer, text, text, text) is
$$Moves all running deadlines of an item later; returns how many
p_seconds: by so much, 1 to 604,800. p_reason: why, for history, 1 to 1,000 characters. p_staff:
who, for history, 1 to 128 characters; null: the login. A hold whose deadline has passed is over.
Waits for transactions that are paying or cancelling orders of this item. A session at the provider
may end at the old deadline: then the customer asks for another attempt. An order whose session was
asked for, and is not open yet, gets another attempt at once. p_idempotency_key: 1 to 255
characters; the same call with the same key moves the deadlines once, and returns the same number.
Errors: RV101 unknown item, RV302 a value is out of range, RV304 the key was used for another
request.$$;

-- A session is asked for with its deadline, and with a key for which the provider takes no other
-- deadline. So an attempt that was tried keeps the old one: with it, the session is found that the
-- provider may have opened, and voided. The order gets another attempt, with the new deadline.
create or replace function flashsale.replace_tried(
  p_order_ids bigint[], p_later interval, p_now timestamptz)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_tried bigint[];
begin
  with tried as (
    update flashsale_data.payments p
    set
      status = 'failed', ended_at = p_now,
      asked_until = (
        select o.expires_at - p_later from flashsale_data.orders o where o.order_id = p.order_id)
    where p.order_id = any (p_order_ids)
      and p.ended_at is null -- by the index of active attempts
      and p.status = 'requested' and p.tried
    returning p.order_id
  )
  select array_agg(t.order_id order by t.order_id) into v_tried from tried t;
  perform flashsale.enqueue_payment_jobs('open', flashsale.attempts_for(v_tried, v_tried, p_now))
  where v_tried is not null;
end
$$;

comment on function flashsale.replace_tried(bigint[], interval, timestamptz) is
$$Gives holds whose sessions have been asked for another attempt
The caller has just moved their deadlines by p_later.$$;
