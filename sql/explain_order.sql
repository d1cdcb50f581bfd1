-- An order's story in words, for the people who answer the customer's question.
create function flashsale.explain_order(p_order_id bigint)
returns table (at timestamptz, what text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order flashsale_data.orders;
  v_item flashsale_data.items;
  v_now timestamptz := flashsale.clock();
begin
  select o.* into v_order from flashsale_data.orders o where o.order_id = p_order_id;
  if not found then
    perform flashsale.raise_unknown_order(p_order_id);
  end if;
  select i.* into v_item from flashsale_data.items i where i.item_id = v_order.item_id;
  return query
  select s.at, s.what
  from (
    select v_order.created_at as at, 1 as n,
      case
        when v_order.status = 'void' then
          format('Ticket %s of %L belongs to nobody: it was withdrawn from sale, or its request '
            'rolled back.', v_order.ticket, v_item.name)
        when v_order.reserved_at = v_order.created_at then
          format('Customer %s asked for %L, got ticket %s and a unit at once.',
            v_order.customer_id, v_item.name, v_order.ticket)
        else
          format('Customer %s asked for %L, got ticket %s and joined the line.',
            v_order.customer_id, v_item.name, v_order.ticket)
      end as what
    union all
    select v_order.reserved_at, 2,
      format('It was their turn after %s: a unit was set aside.',
        date_trunc('milliseconds', v_order.reserved_at - v_order.created_at))
    where v_order.reserved_at > v_order.created_at
    union all
    select v_order.reserved_at, 3, format('To be paid until %s.', v_order.expires_at)
    where v_order.reserved_at is not null
    union all
    select p.requested_at, 4,
      format('Payment %s of %s %s was asked for.', p.payment_id, p.amount, p.currency)
    from flashsale_data.payments p where p.order_id = p_order_id
    union all
    select p.opened_at, 5, format('Payment %s could be made at %s.', p.payment_id, p.checkout_url)
    from flashsale_data.payments p where p.order_id = p_order_id and p.opened_at is not null
    union all
    select p.ended_at, 6,
      case p.status
        when 'succeeded' then format('The money of payment %s came in time.', p.payment_id)
        when 'failed' then format('Payment %s failed.', p.payment_id)
        when 'voided' then format('Payment %s was called off.', p.payment_id)
        else
          format('The money of payment %s came but could not be used (%s): it %s.', p.payment_id,
            replace(p.refund_reason, '_', ' '),
            case p.status when 'refunded' then 'was sent back' else 'is being sent back' end)
      end
    from flashsale_data.payments p where p.order_id = p_order_id and p.ended_at is not null
    union all
    select v_order.paid_at, 7, 'The order was paid. It is final.'
    where v_order.paid_at is not null
    union all
    select v_order.ended_at, 8,
      case v_order.status
        when 'expired' then 'The deadline passed without payment: the unit went to the line.'
        when 'cancelled' then 'It was cancelled.'
        when 'unserved' then 'The sale closed before it was their turn.'
      end
    where v_order.ended_at is not null and v_order.status <> 'void'
    union all
    select v_now, 9,
      case
        when v_order.status = 'waiting' and v_order.ticket > v_item.now_serving then
          format('Now: waiting; at most %s are served before them.',
            v_order.ticket - v_item.now_serving - 1)
        when v_order.status = 'waiting' then 'Now: their unit is there, the next sweep grants it.'
        when v_order.expires_at > v_now then
          format('Now: %s left to pay.', date_trunc('seconds', v_order.expires_at - v_now))
        else 'Now: the deadline has passed, the next sweep ends it.'
      end
    where v_order.status in ('waiting', 'reserved')
  ) s
  order by s.at, s.n;
end
$$;

comment on function flashsale.explain_order(bigint) is
$$An order's story in words, oldest first, for support staff
Errors: RV102 unknown order.$$;
