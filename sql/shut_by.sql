-- Whether an item takes orders. The function is plain SQL without settings, so the planner inlines
-- it into the statements that use it, and it costs nothing.
create or replace function flashsale.shut_by(
  p_opens_at timestamptz, p_closes_at timestamptz, p_paused boolean, p_now timestamptz)
returns text
language sql immutable parallel safe
as $$
  select case
    when p_closes_at <= p_now then 'closed'
    when p_paused then 'paused'
    when p_opens_at > p_now then 'not_open'
  end
$$;

comment on function flashsale.shut_by(timestamptz, timestamptz, boolean, timestamptz) is
$$Why an item takes no orders at p_now: closed, paused or not_open
Null: it takes orders.$$;
