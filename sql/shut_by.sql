-- Whether an item takes orders. Plain SQL without settings: the planner puts its text into the
-- statements that use it, and so it costs nothing.
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
