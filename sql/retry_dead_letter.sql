create or replace function flashsale.retry_dead_letter(
  p_dead_letter_id bigint, p_reason text default null, p_staff text default null)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_letter flashsale_data.dead_letters;
  v_payment flashsale_data.payments;
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  delete from flashsale_data.dead_letters d
  where d.dead_letter_id = p_dead_letter_id
  returning * into v_letter;
  if not found then
    raise exception 'There is no such dead letter.' using
      errcode = 'RV103', constraint = 'unknown_dead_letter',
      detail = format('dead_letter_id %s', p_dead_letter_id),
      hint = 'The view flashsale.dead_letter lists them.';
  end if;
  select p.* into v_payment
  from flashsale_data.payments p
  where v_letter.queue = 'payments'
    and p.payment_id = flashsale.id_in(v_letter.message, 'payment_id');
  if v_letter.message ->> 'kind' = 'open' and v_payment.order_id is not null then
    v_letter.message := flashsale.revive_payment(v_payment.order_id);
  elsif v_letter.message ->> 'kind' = 'void'
      and not (v_payment.status in ('open', 'failed') and v_payment.session_id is not null)
    or v_letter.message ->> 'kind' = 'refund' and v_payment.status <> 'refund_due'
  then
    perform flashsale.raise_not_revivable(
      v_payment.payment_id, format('the payment is %s by now', v_payment.status));
  end if;
  perform flashsale.note_history(
    coalesce(p_staff, session_user), 'retry_dead_letter', v_payment.order_id,
    to_jsonb(v_letter) - 'message', v_letter.message, p_reason);
  return (select s.msg_id from pgmq.send(v_letter.queue, v_letter.message) s (msg_id));
end
$$;

comment on function flashsale.retry_dead_letter(bigint, text, text) is
$$Puts a dead letter back into its queue; returns the new job's id
A payment that could not be opened is revived by another attempt, if its hold still runs and no
other attempt is under way. p_reason and p_staff: why, 1 to 1,000 characters, and who, 1 to 128, for
history; null: no reason, and the login.
Errors: RV103 no such dead letter, RV208 there is nothing to revive any more; detail says why, RV302
a reason or a name that is too short or too long.$$;

create or replace function flashsale.revive_payment(p_order_id bigint) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_order flashsale_data.orders;
  v_payment_id bigint;
begin
  select o.* into v_order
  from flashsale_data.orders o where o.order_id = p_order_id for update;
  if v_order.status <> 'reserved' or v_order.expires_at <= flashsale.clock() then
    perform flashsale.raise_not_revivable(
      p_order_id, format('the order is %s', (flashsale.answer(p_order_id, null)).status));
  end if;
  insert into flashsale_data.payments (order_id, amount, currency, requested_at)
  select p_order_id, i.price, i.currency, flashsale.clock()
  from flashsale_data.items i
  where i.item_id = v_order.item_id
  on conflict (order_id) where ended_at is null do nothing
  returning payment_id into v_payment_id;
  if v_payment_id is null then
    perform flashsale.raise_not_revivable(p_order_id, 'another attempt is under way');
  end if;
  return jsonb_build_object('kind', 'open', 'payment_id', v_payment_id);
end
$$;

comment on function flashsale.revive_payment(bigint) is
$$Another attempt for a hold whose payment could not be opened; its job
Errors: RV208 the hold is over, or there is another attempt.$$;

create or replace function flashsale.raise_not_revivable(p_id bigint, p_why text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'There is nothing to revive any more: %.', p_why using
    errcode = 'RV208', constraint = 'not_revivable', detail = format('%s: %s', p_id, p_why),
    hint = 'The dead letter stays in the view flashsale.dead_letter.';
end
$$;

comment on function flashsale.raise_not_revivable(bigint, text) is
$$Raises RV208: this dead letter is of no use any more$$;
