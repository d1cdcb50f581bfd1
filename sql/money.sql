-- Amounts for people, by the number of decimals that ISO 4217 gives a currency.
create or replace function flashsale.money(p_amount bigint, p_currency text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case
    when d.decimals = 0 then format('%s %s', p_amount, p_currency)
    else format('%s%s.%s %s', case when p_amount < 0 then '-' end, abs(p_amount) / d.unit,
      lpad((abs(p_amount) % d.unit)::text, d.decimals, '0'), p_currency)
  end
  from (
    select n.decimals, (10 ^ n.decimals)::bigint as unit
    from (
      select case
        when p_currency in (
          'BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND',
          'VUV', 'XAF', 'XOF', 'XPF') then 0
        when p_currency in ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND') then 3
        when p_currency in ('CLF', 'UYW') then 4
        else 2
      end as decimals
    ) n
  ) d
$$;

comment on function flashsale.money(bigint, text) is
$$An amount in the format of its currency, for people: 49.00 EUR
p_amount: minor units of p_currency. 4900 are 49.00 EUR, 4900 JPY and 4.900 KWD.$$;
