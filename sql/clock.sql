-- The only source of time for deadlines. It does not return now(), which is the start of the
-- transaction, because a call may have waited for a lock since then. The tests replace this
-- function and no other.
create or replace function flashsale.clock() returns timestamptz
language sql volatile parallel safe
as $$ select pg_catalog.clock_timestamp() $$;

comment on function flashsale.clock() is
$$The time that decides deadlines: the database's clock, read when called
Not now(), which is the start of the transaction.$$;
