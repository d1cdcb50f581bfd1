-- The one source of time. Not now(): that is the transaction's start, and a caller may have waited
-- since. The tests replace this function, nothing else.
create or replace function flashsale.clock() returns timestamptz
language sql volatile parallel safe
as $$ select pg_catalog.clock_timestamp() $$;

comment on function flashsale.clock() is
$$The time that decides deadlines: the database's clock, read when called
Not now(), which is the start of the transaction.$$;
