-- The limits on an item's terms, each with the message for a value beyond it. A term that is not in
-- p_terms is not checked. Only opens_at, closes_at, max_waiting, refund_seconds, max_per_customer
-- and product may be null.
--
-- The terms may come from anywhere, as JSON of any kind. So these functions read a value without an
-- error, and what can't be read counts as out of range.
create or replace function flashsale.whole_number_in(p_terms jsonb, p_name text) returns numeric
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(p_terms -> p_name) = 'number'
      and (p_terms ->> p_name)::numeric = trunc((p_terms ->> p_name)::numeric)
    then (p_terms ->> p_name)::numeric
  end
$$;

comment on function flashsale.whole_number_in(jsonb, text) is
$$A term that is a whole number; null if it is anything else$$;

create or replace function flashsale.time_in(p_terms jsonb, p_name text) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_typeof(p_terms -> p_name) <> 'null' and not flashsale.is_zoned(p_terms ->> p_name) then
    return timestamptz 'infinity';
  end if;
  return (p_terms ->> p_name)::timestamptz;
exception when data_exception then -- all of its class: no time, or beyond the times of Postgres
  return timestamptz 'infinity';
end
$$;

comment on function flashsale.time_in(jsonb, text) is
$$A term that is a time with its zone, or null; infinity if anything else$$;

create or replace function flashsale.is_time_of_a_sale(p_time timestamptz) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select (p_time < '2000-01-01 00:00Z' or p_time >= '3000-01-01 00:00Z') is not true $$;

comment on function flashsale.is_time_of_a_sale(timestamptz) is
$$Whether a time is in the years 2000 to 2999, or null$$;

create or replace function flashsale.check_terms(p_terms jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_opens_at constant timestamptz := flashsale.time_in(p_terms, 'opens_at');
  v_closes_at constant timestamptz := flashsale.time_in(p_terms, 'closes_at');
  v_problem text;
begin
  select string_agg(r.problem, '; ' order by r.n) into v_problem
  from (values
    (1, p_terms ? 'sku', flashsale.is_text(p_terms ->> 'sku', 64),
      'sku must have 1 to 64 characters, and no control characters'),
    (2, p_terms ? 'name', flashsale.is_text(p_terms ->> 'name', 200),
      'name must have 1 to 200 characters, and no control characters'),
    (3, p_terms ? 'price',
      flashsale.whole_number_in(p_terms, 'price') between 1 and 1000000000000,
      'price must be 1 to 1000000000000 minor units'),
    (4, p_terms ? 'currency', flashsale.decimals_of(p_terms ->> 'currency') is not null,
      'currency must be one of ISO 4217, in capital letters'),
    (5, p_terms ? 'stock', flashsale.whole_number_in(p_terms, 'stock') between 0 and 10000000,
      'stock must be 0 to 10000000 units'),
    (6, p_terms ? 'hold_seconds',
      flashsale.whole_number_in(p_terms, 'hold_seconds') between 1 and 604800,
      'hold_seconds must be 1 to 604800'),
    (7, (p_terms ->> 'max_waiting') is not null,
      flashsale.whole_number_in(p_terms, 'max_waiting') between 0 and 10000000,
      'max_waiting must be 0 to 10000000, or null'),
    (8, p_terms ? 'late_payment', (p_terms ->> 'late_payment') in ('refund', 'keep_if_free'),
      'late_payment must be refund or keep_if_free'),
    (9, v_opens_at is not null and v_closes_at is not null, v_opens_at < v_closes_at,
      'opens_at must be before closes_at'),
    (10, true,
      flashsale.is_time_of_a_sale(v_opens_at) and flashsale.is_time_of_a_sale(v_closes_at),
      'opens_at and closes_at must be times with their time zone, such as 2026-11-27T20:00:00Z, '
      'in the years 2000 to 2999, or null'),
    (11, p_terms ? 'paused', jsonb_typeof(p_terms -> 'paused') = 'boolean',
      'paused must be true or false'),
    (12, p_terms ? 'add_stock',
      flashsale.whole_number_in(p_terms, 'add_stock') between 1 and 10000000,
      'add_stock must be 1 to 10000000 units'),
    (13, p_terms ? 'withdraw_stock',
      flashsale.whole_number_in(p_terms, 'withdraw_stock') between 1 and 1000000,
      'withdraw_stock must be 1 to 1000000 units'),
    (14, p_terms ? 'settle_seconds',
      flashsale.whole_number_in(p_terms, 'settle_seconds') between 0 and 60,
      'settle_seconds must be 0 to 60'),
    (15, (p_terms ->> 'refund_seconds') is not null,
      flashsale.whole_number_in(p_terms, 'refund_seconds') between 1 and 31536000,
      'refund_seconds must be 1 to 31536000, or null'),
    (16, p_terms ? 'max_per_order',
      flashsale.whole_number_in(p_terms, 'max_per_order') between 1 and 100,
      'max_per_order must be 1 to 100 units'),
    (17, (p_terms ->> 'max_per_customer') is not null,
      flashsale.whole_number_in(p_terms, 'max_per_customer')
        between coalesce(flashsale.whole_number_in(p_terms, 'max_per_order'), 1) and 10000,
      'max_per_customer must be max_per_order to 10000 units, or null'),
    (18, (p_terms ->> 'product') is not null, jsonb_typeof(p_terms -> 'product') = 'string'
        and flashsale.is_text(p_terms ->> 'product', 64),
      'product must have 1 to 64 characters and no control characters, or be null'),
    (19, p_terms ? 'draw', p_terms -> 'draw' = 'false'
      or p_terms -> 'draw' = 'true' and v_opens_at > flashsale.clock(),
      'draw must be true or false, and with a draw opens_at must be in the future')
  ) r (n, is_given, is_right, problem)
  where r.is_given and r.is_right is not true;
  if v_problem is not null then
    raise exception 'These terms are not possible: %.', v_problem using
      errcode = 'RV302', constraint = 'bad_value', hint = 'Correct them and call again.';
  end if;
end
$$;

comment on function flashsale.check_terms(jsonb) is
$$Raises RV302 if an item's terms are out of range$$;
