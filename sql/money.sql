-- The currencies of ISO 4217, with the number of decimals that it gives them: the same list as
-- src/flashsale/currencies.py, which says the same in the words of Python. A test compares them.
create or replace function flashsale.decimals_of(p_currency text) returns integer
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_currency in (
      'BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND',
      'VUV', 'XAF', 'XOF', 'XPF') then 0
    when p_currency in ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND') then 3
    when p_currency in ('CLF', 'UYW') then 4
    when p_currency in (
      'AED', 'AFN', 'ALL', 'AMD', 'ANG', 'AOA', 'ARS', 'AUD', 'AWG', 'AZN', 'BAM', 'BBD', 'BDT',
      'BGN', 'BMD', 'BND', 'BOB', 'BOV', 'BRL', 'BSD', 'BTN', 'BWP', 'BYN', 'BZD', 'CAD', 'CDF',
      'CHE', 'CHF', 'CHW', 'CNY', 'COP', 'COU', 'CRC', 'CUC', 'CUP', 'CVE', 'CZK', 'DKK', 'DOP',
      'DZD', 'EGP', 'ERN', 'ETB', 'EUR', 'FJD', 'FKP', 'GBP', 'GEL', 'GHS', 'GIP', 'GMD', 'GTQ',
      'GYD', 'HKD', 'HNL', 'HRK', 'HTG', 'HUF', 'IDR', 'ILS', 'INR', 'IRR', 'JMD', 'KES', 'KGS',
      'KHR', 'KPW', 'KYD', 'KZT', 'LAK', 'LBP', 'LKR', 'LRD', 'LSL', 'MAD', 'MDL', 'MGA', 'MKD',
      'MMK', 'MNT', 'MOP', 'MRU', 'MUR', 'MVR', 'MWK', 'MXN', 'MXV', 'MYR', 'MZN', 'NAD', 'NGN',
      'NIO', 'NOK', 'NPR', 'NZD', 'PAB', 'PEN', 'PGK', 'PHP', 'PKR', 'PLN', 'QAR', 'RON', 'RSD',
      'RUB', 'SAR', 'SBD', 'SCR', 'SDG', 'SEK', 'SGD', 'SHP', 'SLE', 'SLL', 'SOS', 'SRD', 'SSP',
      'STN', 'SVC', 'SYP', 'SZL', 'THB', 'TJS', 'TMT', 'TOP', 'TRY', 'TTD', 'TWD', 'TZS', 'UAH',
      'USD', 'USN', 'UYU', 'UZS', 'VED', 'VES', 'WST', 'XCD', 'XCG', 'YER', 'ZAR', 'ZMW', 'ZWG',
      'ZWL') then 2
  end
$$;

comment on function flashsale.decimals_of(text) is
$$How many decimals a currency has; null: it is not in ISO 4217$$;

-- Amounts for people.
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
    from (select coalesce(flashsale.decimals_of(p_currency), 2) as decimals) n
  ) d
$$;

comment on function flashsale.money(bigint, text) is
$$An amount in the format of its currency, for people: 49.00 EUR
p_amount: minor units of p_currency. 4900 are 49.00 EUR, 4900 JPY and 4.900 KWD.$$;
