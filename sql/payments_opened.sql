-- A worker opens many sessions at once, above all after an outage. Their results share a round trip
-- and a commit. If several jobs have opened the same payment, the first one's session counts.
create or replace function flashsale.payments_opened(
  p_job_ids bigint[],
  p_tries integer[],
  p_payment_ids bigint[],
  p_session_ids text[],
  p_checkout_urls text[])
returns table (job_id bigint, outcome text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  -- The others are locked now, as their orders are. So a hold ends either before this or after it.
  v_busy constant bigint[] := flashsale.busy_payments(p_payment_ids);
  v_now constant timestamptz := flashsale.clock();
  v_opened bigint[];
  v_found bigint[]; -- sessions of attempts whose place another one has taken: nobody has seen them
  v_running bigint[]; -- those of the opened ones whose customers may pay
begin
  with opened as (
    update flashsale_data.payments p
    set
      status = 'open', opened_at = v_now,
      session_id = p_session_ids[array_position(p_payment_ids, p.payment_id)],
      checkout_url = p_checkout_urls[array_position(p_payment_ids, p.payment_id)]
    where p.payment_id = any (p_payment_ids) and p.payment_id <> all (v_busy)
      and p.status = 'requested'
    returning p.payment_id
  ), found as (
    update flashsale_data.payments p
    set session_id = p_session_ids[array_position(p_payment_ids, p.payment_id)]
    where p.payment_id = any (p_payment_ids) and p.payment_id <> all (v_busy)
      and flashsale.is_to_be_found(p.status, p.session_id, p.asked_until, p.expires_at)
    returning p.payment_id
  )
  select array(select o.payment_id from opened o), array(select f.payment_id from found f)
  into v_opened, v_found;
  v_running := flashsale.tell_of_sessions(v_opened, v_now);
  perform flashsale.enqueue_payment_jobs('void', array(
    select s.payment_id from unnest(v_opened || v_found) s (payment_id)
    where s.payment_id <> all (v_running)
    order by s.payment_id));
  return query
  select
    u.job_id,
    case
      when u.payment_id = any (v_busy) then flashsale.put_off(u.job_id, u.tries)
      else flashsale.finish_job(
        u.job_id, u.tries,
        case
          when u.payment_id = any (v_running) then 'opened'
          when u.payment_id = any (v_opened || v_found) then 'superseded'
          else 'ignored'
        end)
    end
  from unnest(p_job_ids, p_tries, p_payment_ids) u (job_id, tries, payment_id);
end
$$;

comment on function flashsale.payments_opened(bigint[], integer[], bigint[], text[], text[]) is
$$Records that the provider has opened sessions to pay in
The arguments are those of payment_opened, in arrays of one length. outcome: as of payment_opened,
for each job. An error undoes all.$$;

create or replace function flashsale.tell_of_sessions(p_payment_ids bigint[], p_now timestamptz)
returns bigint[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_running bigint[];
  v_reserved bigint[];
  v_your_turn bigint[];
begin
  select
    array_agg(p.payment_id),
    array_agg(o.order_id order by o.order_id) filter (where o.reserved_at <= o.created_at),
    array_agg(o.order_id order by o.order_id) filter (where o.reserved_at > o.created_at)
  into v_running, v_reserved, v_your_turn
  from unnest(p_payment_ids) u (payment_id)
  cross join lateral (
    select q.payment_id, q.order_id
    from flashsale_data.payments q
    where q.payment_id = u.payment_id
    limit 1
  ) p
  cross join lateral (
    select b.order_id, b.reserved_at, b.created_at
    from flashsale_data.orders b
    where b.order_id = p.order_id and b.status = 'reserved' and b.expires_at > p_now
    limit 1
  ) o;
  perform
    flashsale.enqueue_mail('reserved', v_reserved),
    flashsale.enqueue_mail('your_turn', v_your_turn);
  return coalesce(v_running, '{}');
end
$$;

comment on function flashsale.tell_of_sessions(bigint[], timestamptz) is
$$Sends e-mails to the customers who may pay in sessions just opened
Returns the payments of those; the holds of the others are over.$$;
