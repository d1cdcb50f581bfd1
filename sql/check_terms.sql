-- The limits on an item's terms, each with the message for a value beyond it. A term that is not in
-- p_terms is not checked. Only opens_at, closes_at and max_waiting may be null: no limit.
create or replace function flashsale.check_terms(p_terms jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_problem text;
begin
  select string_agg(r.problem, '; ' order by r.n) into v_problem
  from (values
    (1, not coalesce(length(p_terms ->> 'sku') between 1 and 64, not p_terms ? 'sku'),
      'sku must have 1 to 64 characters'),
    (2, not coalesce(length(p_terms ->> 'name') between 1 and 200, not p_terms ? 'name'),
      'name must have 1 to 200 characters'),
    (3, not coalesce((p_terms ->> 'price')::numeric between 1 and 1000000000000,
        not p_terms ? 'price'),
      'price must be 1 to 1000000000000 minor units'),
    (4, not coalesce((p_terms ->> 'currency') ~ '^[A-Z]{3}$', not p_terms ? 'currency'),
      'currency must be three capital letters'),
    (5, not coalesce((p_terms ->> 'stock')::numeric between 0 and 10000000,
        not p_terms ? 'stock'),
      'stock must be 0 to 10000000 units'),
    (6, not coalesce((p_terms ->> 'hold_seconds')::numeric between 1 and 604800,
        not p_terms ? 'hold_seconds'),
      'hold_seconds must be 1 to 604800'),
    (7, (p_terms ->> 'max_waiting')::numeric not between 0 and 10000000,
      'max_waiting must be 0 to 10000000, or null'),
    (8, not coalesce((p_terms ->> 'late_payment') in ('refund', 'keep_if_free'),
        not p_terms ? 'late_payment'),
      'late_payment must be refund or keep_if_free'),
    (9, (p_terms ->> 'opens_at')::timestamptz >= (p_terms ->> 'closes_at')::timestamptz,
      'opens_at must be before closes_at'),
    (10, not isfinite((p_terms ->> 'opens_at')::timestamptz)
        or not isfinite((p_terms ->> 'closes_at')::timestamptz),
      'opens_at and closes_at must be finite, or null')
  ) r (n, wrong, problem)
  where r.wrong;
  if v_problem is not null then
    raise exception 'These terms are not possible: %.', v_problem using
      errcode = 'RV302', constraint = 'bad_value', hint = 'Correct them and call again.';
  end if;
end
$$;

comment on function flashsale.check_terms(jsonb) is
$$Raises RV302 if an item's terms are out of range$$;
