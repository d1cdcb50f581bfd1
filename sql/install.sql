-- flashsale: a flash sale that stays correct, fair and fast in one Postgres.
--
-- TABLES (migrations/, schema flashsale_data, private)
--   items      what is on sale, with the counters of its line   written by operators and sweeps
--   orders     one row a ticket: a customer's claim on a unit   written by every verb
--   payments   one row an attempt to pay, once somebody began   when the worker takes its job
--   and: order_keys (Idempotency-Key -> order), payment_events (as they came), tallies (counters
--   on their way to items), dead_letters (jobs that gave up), sweepers (who swept when).
--
-- THE LINE
--   Each item has a sequence. An order takes the next number, its ticket, and is `reserved` if
--   ticket <= now_serving, else `waiting`. now_serving = stock + forfeited, a generated column:
--   so many tickets are entitled to a unit. It never goes down. An order that ends without a sale
--   is recycled once the line has passed it: counted into forfeited, exactly once. That is the
--   whole of the bookkeeping: never oversold is arithmetic, fair is the sequence.
--
-- VERBS                                        FROM -> TO
--   reserve, reserve_many                      (none) -> reserved | waiting
--   pay                                        reserved -> paid, before the deadline
--   cancel                                     reserved, waiting -> cancelled
--   expire                                     reserved -> expired, from the deadline on
--   promote                                    waiting -> reserved, or -> unserved after the close
--   fill                                       (a hole in the line) -> void
--   sweep = expire, fill, promote for everything that is due; any time, any number at once
--
-- LOCK ORDER
--   order_keys, orders, payments; each in (item, customer) or order_id order. The row of an item
--   is locked by sweeps (skip locked: they never wait) and by operators (who hold no order then).
--   reserve takes no lock that another customer needs. No advisory locks, no NOTIFY.
--
-- This file is replayed whole at every migrate, in one transaction, over an empty schema.
drop schema if exists flashsale cascade;
create schema flashsale;

\ir clock.sql
\ir roles.sql
\ir order_status.sql
\ir item_status.sql
\ir items.sql
\ir notify.sql
\ir expire.sql
\ir errors.sql
\ir reserve.sql
\ir reserve_many.sql
\ir cancel.sql
\ir pay.sql
\ir promote.sql
\ir sweep.sql
\ir jobs.sql
\ir explain_order.sql
\ir views.sql
\ir violation.sql
\ir cron.sql
\ir grants.sql
