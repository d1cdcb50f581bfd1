-- Without settings, so that it is inlined.
create or replace function flashsale.can_be_paid(
  p_status flashsale_data.payment_status,
  p_payable boolean,
  p_opened_at timestamptz,
  p_expires_at timestamptz)
returns boolean
language sql immutable parallel safe
as $$
  select p_status = 'open' and p_opened_at < p_expires_at or p_status = 'failed' and p_payable
$$;

comment on function flashsale.can_be_paid(
  flashsale_data.payment_status, boolean, timestamptz, timestamptz) is
$$Whether money may have come for an attempt before its hold's deadline
p_expires_at: the deadline. A session that was opened later was never shown to the customer.$$;

-- Without settings, so that it is inlined.
create or replace function flashsale.is_to_be_found(
  p_status flashsale_data.payment_status,
  p_session_id text,
  p_asked_until timestamptz,
  p_expires_at timestamptz)
returns boolean
language sql immutable parallel safe
as $$
  select p_status = 'failed' and p_session_id is null
    and coalesce(p_asked_until, p_expires_at) is not null
$$;

comment on function flashsale.is_to_be_found(
  flashsale_data.payment_status, text, timestamptz, timestamptz) is
$$Whether an attempt that another one replaced may have a session
If it was tried. Nobody has seen that session: the provider is asked for it again, with the old
deadline, and it is voided.$$;

-- What becomes of a hold at its deadline. This is decided here and nowhere else: expire, pay,
-- cancel and the views ask these functions, so that all of them say the same at every moment,
-- whether or not a sweep has marked the order.
--
-- * settling: the customer may have paid in time, because there is a session that could be paid
--   before the deadline and that nobody has closed yet. The unit is not free until the provider has
--   answered the void, or settle_seconds are over.
-- * waiting: the customer could not pay, because the provider was down, or there is a backlog of
--   sessions from then (note_provider), and no session was ever opened in this hold. They go back
--   to the line, in which they are the next.
-- * expired: all others. A session that the provider has refused to open is one of these cases.
--
-- What comes to be known after the deadline changes nothing, because customers have read by then
-- what has become of their hold (note_provider).
--
-- Attempts of an earlier hold, which an outage has ended, were requested before this one began.
create or replace function flashsale.hold_fates(p_order_ids bigint[])
returns table (order_id bigint, fate text)
language sql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select
    o.order_id,
    case
      when a.payable then case when i.settle_seconds > 0 then 'settling' else 'expired' end
      when a.had_a_session or a.was_refused then 'expired'
      when a.was_unavailable or s.noted_at >= o.reserved_at then 'waiting'
      else 'expired'
    end
  from unnest(p_order_ids) u (order_id)
  cross join lateral (
    select b.order_id, b.item_id, b.reserved_at, b.expires_at
    from flashsale_data.orders b
    where b.order_id = u.order_id
    limit 1
  ) o
  join flashsale_data.items i on i.item_id = o.item_id
  cross join lateral (
    select
      bool_or(flashsale.can_be_paid(p.status, p.payable, p.opened_at, o.expires_at)) as payable,
      bool_or(p.session_id is not null and p.requested_at >= o.reserved_at
        and p.asked_until is null -- else nobody has seen it
        and (p.opened_at < o.expires_at) is not false) as had_a_session,
      bool_or(p.refused_at >= o.reserved_at) as was_refused,
      bool_or(p.unavailable_at >= o.reserved_at and p.unavailable_at < o.expires_at)
        as was_unavailable
    from flashsale_data.payments p
    where p.order_id = o.order_id
  ) a
  left join flashsale_data.provider_status s on s.one_row
$$;

comment on function flashsale.hold_fates(bigint[]) is
$$What becomes of reserved orders once their deadlines have passed
fate: settling, waiting (back to the line) or expired. The orders are not sorted.$$;

create or replace function flashsale.hold_fate(p_order_id bigint) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select f.fate from flashsale.hold_fates(array[p_order_id]) f $$;

comment on function flashsale.hold_fate(bigint) is
$$What becomes of a reserved order once its deadline has passed
A function because a view's reader has no right to the tables.$$;

-- The provider was asked about each session of a settling order. As soon as none is left that could
-- have been paid in time, the order ends, without waiting for a sweep.
create or replace function flashsale.end_settling(
  p_order_id bigint, p_now timestamptz, p_except_payment_id bigint default null)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_quantity integer;
begin
  update flashsale_data.orders o
  set
    status = 'expired', settle_until = null,
    ended_at = greatest(p_now, o.expires_at) -- also if the clock has stepped back
  where o.order_id = p_order_id
    and o.status = 'settling'
    and not exists (
      select from flashsale_data.payments p
      where p.order_id = p_order_id
        and p.payment_id is distinct from p_except_payment_id
        and flashsale.can_be_paid(p.status, p.payable, p.opened_at, o.expires_at))
  returning o.quantity into v_quantity;
  if found then
    insert into flashsale_data.outbox (type, order_id, at)
    values ('order.expired', p_order_id, p_now);
    perform flashsale.parts_follow(array[p_order_id]) where v_quantity > 1;
    perform flashsale.enqueue_mail('expired', array[p_order_id]);
  end if;
end
$$;

comment on function flashsale.end_settling(bigint, timestamptz, bigint) is
$$Expires a settling order if no session is left that could be paid
The caller has locked the order and read p_now after that. p_except_payment_id: a payment of which
the caller knows what has come of it.$$;
