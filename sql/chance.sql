-- The chance that a waiting order is served, in plain words:
--
-- Some units of the item are held now. Each hold ends in one of two ways. It ends in a sale with
-- some probability p; otherwise its unit goes to the next in the line, as a new hold, which ends in
-- the same two ways. That goes on until all of these units are sold. The order at place k is served
-- if at least k holds end without a sale before that. So the number of holds that end without a
-- sale is negative binomial: the failures before the u-th success, if u units are held.
--
-- Nobody knows p. What is known are the holds of this item that have ended: `sold` of them in a
-- sale and `lost` of them not. Before any has ended, p is taken to be Beta(4, 2): two thirds of the
-- holds end in a sale, and six holds that end otherwise change that opinion as much as it weighs.
-- That is about what shops report of checkouts with a deadline, and it is weak enough to be
-- outvoted after a dozen holds. With the holds that have ended, p is Beta(4 + sold, 2 + lost).
--
-- The chance is the mean over all p, not the chance at the likeliest p. Early in a sale that is
-- what makes it honest: with a single p, the answers would be far too sure. The mean costs nothing
-- more, because of two facts. At a given p, the chance is the probability that a Beta(k, u)
-- variable is below 1 - p. And 1 - p is a Beta(2 + lost, 4 + sold) variable. So the chance is that
-- one Beta variable is below another one, for which there is an exact sum with as many terms as the
-- smallest of the four parameters. If all four are above 20, the difference of the two on the scale
-- of log-odds is close to normal; with the first correction for its skewness, the error is below
-- 0.002.

-- ln Gamma(x), by Stirling's series after a shift to at least 8: exact to 10 digits. (Postgres has
-- lgamma only from 18 on.)
create or replace function flashsale.log_gamma(p_x double precision) returns double precision
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  x double precision := p_x;
  v_product double precision := 1;
begin
  while x < 8 loop
    v_product := v_product * x;
    x := x + 1;
  end loop;
  return (x - 0.5) * ln(x) - x + 0.918938533204672742 -- ln(2 pi) / 2
    + (1 - (1 / 30.0 - 1 / (105 * x * x)) / (x * x)) / (12 * x)
    - ln(v_product);
end
$$;

comment on function flashsale.log_gamma(double precision) is
$$The logarithm of the gamma function, for x > 0$$;

-- The sum over i = 0 .. n - 1 of B(a + i, b + m) / ((m + i) B(1 + i, m) B(a, b)). Each term is the
-- one before it, times a ratio.
create or replace function flashsale.beta_above(
  p_n integer, p_m double precision, p_a double precision, p_b double precision)
returns double precision
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  v_term double precision := exp(greatest(-700,
    flashsale.log_gamma(p_b + p_m) + flashsale.log_gamma(p_a + p_b)
    - flashsale.log_gamma(p_a + p_b + p_m) - flashsale.log_gamma(p_b)));
  v_sum double precision := 0;
begin
  for i in 0 .. p_n - 1 loop
    exit when v_term < 1e-200; -- of no account, and an underflow would be an error
    v_sum := v_sum + v_term;
    v_term := v_term * ((p_a + i) / (p_a + i + p_b + p_m) * (p_m + i) / (i + 1));
  end loop;
  return v_sum;
end
$$;

comment on function flashsale.beta_above(
  integer, double precision, double precision, double precision) is
$$The probability that a Beta(n, m) variable is above a Beta(a, b) one
All four are above 0. Exact; it has p_n steps.$$;

-- The log-odds of a Beta(a, b) variable have the cumulants psi(a) - psi(b), psi'(a) + psi'(b) and
-- psi''(a) - psi''(b). The series below give psi and its derivatives to six digits from 20 on.
create or replace function flashsale.beta_above_by_normal(
  n double precision, m double precision, a double precision, b double precision)
returns double precision
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  v_mean constant double precision := ln(n / m * b / a)
    - (1 / n - 1 / m + 1 / b - 1 / a) / 2
    - (1 / n ^ 2 - 1 / m ^ 2 + 1 / b ^ 2 - 1 / a ^ 2) / 12;
  v_deviation constant double precision := sqrt(
    1 / n + 1 / m + 1 / a + 1 / b + (1 / n ^ 2 + 1 / m ^ 2 + 1 / a ^ 2 + 1 / b ^ 2) / 2);
  v_skewness constant double precision := (
    -1 / n ^ 2 + 1 / m ^ 2 + 1 / a ^ 2 - 1 / b ^ 2
    - 1 / n ^ 3 + 1 / m ^ 3 + 1 / a ^ 3 - 1 / b ^ 3) / v_deviation ^ 3;
  z constant double precision := greatest(-8, least(8, v_mean / v_deviation));
  v_density constant double precision := exp(-z * z / 2) * 0.398942280401432678; -- 1 / sqrt(2 pi)
  t constant double precision := 1 / (1 + 0.2316419 * abs(z));
  -- Of the normal distribution, above |z|: Abramowitz and Stegun, formula 26.2.17.
  v_tail constant double precision := v_density * t * (0.319381530 + t * (-0.356563782
    + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
begin
  return greatest(0, least(1,
    case when z > 0 then 1 - v_tail else v_tail end
    + v_skewness / 6 * (z * z - 1) * v_density));
end
$$;

comment on function flashsale.beta_above_by_normal(
  double precision, double precision, double precision, double precision) is
$$Nearly the probability that a Beta(n, m) variable is above a Beta(a, b)
To 0.002, if all four are above 20. It has one step, however large they are.$$;

create or replace function flashsale.chance(
  p_place integer, p_units integer, p_sold integer, p_lost integer)
returns double precision
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  v_sold constant integer := 4 + greatest(0, p_sold); -- with the opinion from before: see above
  v_lost constant integer := 2 + greatest(0, p_lost);
begin
  return greatest(0, least(1, case
    when p_units < 1 then 0
    when least(p_place, p_units, v_sold, v_lost) > 20
      then flashsale.beta_above_by_normal(v_lost, v_sold, p_place, p_units)
    when v_lost <= least(p_place, p_units, v_sold)
      then flashsale.beta_above(v_lost, v_sold, p_place, p_units)
    when p_units <= least(p_place, v_sold)
      then flashsale.beta_above(p_units, p_place, v_sold, v_lost)
    when p_place <= v_sold
      then 1 - flashsale.beta_above(p_place, p_units, v_lost, v_sold)
    else 1 - flashsale.beta_above(v_sold, v_lost, p_units, p_place)
  end));
end
$$;

comment on function flashsale.chance(integer, integer, integer, integer) is
$$The probability that at least p_place units come back to the line
p_units: so many are held now. p_sold, p_lost: of the holds that have ended, how many ended in a
sale and how many did not. A unit that comes back is held by the next in the line, and may come back
again. The probability is not rounded. It takes at most 20 steps.$$;
