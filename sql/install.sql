-- flashsale: a flash sale that stays correct, fair and fast in one Postgres database.
--
-- This file is the contents page: a short essay, then the list of the files. A verb stands in the
-- file of its name. A helper stands in the file of its caller, or in the file of the verb that it
-- belongs to. If it belongs to no verb and several files call it, it stands in a file named after
-- its subject.
--
-- TABLES (schema flashsale_data, private; created by migrations/)
--   items      What is on sale: its terms, and the counters of its line. Operators and sweeps write
--              them.
--   orders     One row per ticket: a customer's claim on one unit. Every verb writes them.
--   payments   One row per attempt to pay an order, from the moment at which the worker takes the
--              attempt's job.
--   There are also order_keys (which order answered an Idempotency-Key), request_keys (the keys of
--   all other calls), payment_events (what the payment provider told us), tallies (changes of
--   counters on their way to items), dead_letters (jobs that were given up), sweepers (who swept
--   when), sweep_failures (items whose sweep fails), offline_references (what tills call their
--   payments), provider_status (whether the payment provider is down), history (what staff have
--   done), retention (for how long what only grows is kept) and deleting_items (items that are
--   being deleted). The jobs themselves are in pgmq's queues.
--   Of draws there are draws (the secret, and how far it is), drawn_entries (the list, which leads
--   from an entry to its order) and draw_hashes (the order of a draw that is going on).
--
-- THE LINE
--   Each item has a sequence. An order takes the sequence's next number: its ticket. The order is
--   `reserved` if ticket <= now_serving, and `waiting` otherwise. now_serving is a generated column
--   of items, stock + forfeited: the number of tickets that are entitled to a unit. It never goes
--   down. An order that ends without a sale is recycled once the line has passed its ticket: it is
--   counted into forfeited, exactly once, so that the next ticket is entitled to its unit.
--   That is all the bookkeeping there is. An item is never oversold because now_serving is a sum,
--   and the sale is fair because the tickets come from a sequence.
--
-- VERBS THAT CHANGE AN ORDER'S STATE
--   reserve, reserve_many    (none) -> reserved | waiting; entered, before the opening of a draw
--   pay                      reserved, settling -> paid, if the money came before the deadline
--   pay_offline              reserved -> paid, before the deadline
--   cancel                   entered, reserved, waiting -> cancelled; paid -> refunded, if allowed
--   refund_order             paid -> refunded; and record_payment_event, if the provider says so
--   expire                   reserved -> settling, expired, or waiting again, from the deadline on
--                            (hold_fates decides); settling -> expired
--   promote                  waiting -> reserved; waiting -> unserved after the sale has closed
--   draw                     entered -> waiting; entered -> unserved, if the sale never opens
--   fill                     (a hole in the line) -> void
--   sweep does expire, draw, fill and promote for all that is due. It may run at any time and any
--   number of times at once. Runners do the same one item per transaction: begin_sweep, sweep_item.
--
-- LOCK ORDER
--   request_keys, order_keys, then orders, then payments. Only two verbs wait for several orders,
--   both in the order of (product or item, customer): reserve_many, which inserts keys and orders
--   and locks orders that are in the way, and extend_holds, which locks the holds of one item that
--   run. An order of items would not do: two variants have one place per customer, where requests
--   for either meet. The other verbs wait for one order. Sweeps lock many, by order_id or by
--   deadline, but with skip locked, so that a sweep never waits.
--   There is one exception. Late money may buy a new order (buy_late): pay then inserts an order
--   while it holds the old order and the payment. It can wait only for a transaction that is just
--   inserting an order of the same customer and item. That one found the old order ended already.
--   So it needs neither the old order nor its payment, and there is no deadlock.
--   An entry into a draw locks the item for share, but only above `read committed`.
--   The row of an item is locked by sweeps, with skip locked, and by operators, who hold no lock on
--   an order at that time. reserve takes no lock that another customer needs. There are no advisory
--   locks, and nothing calls NOTIFY.
--
-- PLANS
--   A session keeps the plans of its statements. A plan that was made while a table was empty may
--   read all of that table in the storm that follows. So a function that looks something up in
--   orders, payments, keys, events or queues has enable_seqscan = off if tests/test_plans.py shows
--   that it needs it. That does not keep a plan from reading a whole index. So lookups of many rows
--   are lateral with a limit, updates name their rows by an array of ids, and the predicates of
--   partial indexes name columns that only the queries for that index name.
--
-- HOW THIS IS DEPLOYED
--   Each migrate applies the new migrations and replays, in this order, the files whose text is not
--   what the database has; all of that is one transaction. It replays all files if the functions,
--   views and rights are not those that the last migrate left, and roles.sql and schedule.sql each
--   time: these make what is not in a dump. Functions and views are replaced and never dropped, so
--   that objects of other people that depend on them stay. What we no longer have is dropped by
--   name in dropped.sql. Tables, and the row types of the API, are in migrations/.
--   A value of an enum can't be used in the transaction that adds it. So migrate adds the values
--   that migrations and sql/ need before all of that, and commits them.

-- Foundations: dropped objects, roles, the clock, row types, and functions that several verbs call
\ir dropped.sql
\ir roles.sql
\ir clock.sql
\ir utc.sql
\ir row_types.sql
\ir errors.sql
\ir shut_by.sql
\ir texts.sql
\ir moments.sql
\ir money.sql
\ir order_ids.sql
\ir enter.sql
\ir issued_tickets.sql
\ir history.sql
\ir request_keys.sql
\ir enqueue.sql
\ir note_provider.sql
\ir hold_fates.sql
\ir groups.sql
\ir chance.sql
\ir line_of.sql

-- Customers: request a unit, look at orders, cancel
\ir order_status.sql
\ir orders_of.sql
\ir orders_by_id.sql
\ir orders_of_item.sql
\ir fairness.sql
\ir reserve.sql
\ir reserve_many.sql
\ir find_held.sql
\ir cancel.sql

-- Items: the terms of sale, and the verbs of operators
\ir item_status.sql
\ir items.sql
\ir check_terms.sql
\ir lock_item.sql
\ir create_item.sql
\ir change_item.sql
\ir restock.sql
\ir withdraw.sql
\ir open_item.sql
\ir close_item.sql
\ir pause_item.sql
\ir resume_item.sql

-- Money: what a payment does, and what the payment provider tells us
\ir pay.sql
\ir first_payments.sql
\ir request_payment.sql
\ir record_payment_event.sql
\ir end_payment.sql
\ir settle_refund.sql
\ir refund_order.sql
\ir pay_offline.sql
\ir extend_holds.sql

-- The line moves: overdue holds end, forfeits are recycled, the next customers get their units
\ir expire.sql
\ir promote.sql
\ir fill.sql
\ir draw.sql
\ir draw_status.sql
\ir draw_entries.sql
\ir announce_orders.sql
\ir publish_events.sql
\ir sweep.sql
\ir begin_sweep.sql
\ir sweep_item.sql
\ir sweep_failed.sql
\ir cron.sql
\ir schedule.sql

-- The worker's jobs: calls to the payment provider, and e-mails
\ir lease.sql
\ir take_payment_jobs.sql
\ir payments_opened.sql
\ir payment_opened.sql
\ir payment_voided.sql
\ir payment_captured.sql
\ir payment_refunded.sql
\ir take_notifications.sql
\ir finish_notifications.sql
\ir retry_job.sql
\ir retry_dead_letter.sql

-- The feed, for programs of others: what happened, in one order
\ir events.sql
\ir forget_events.sql

-- The delivery of the feed of events
\ir event_delivery.sql
\ir take_events.sql
\ir events_delivered.sql
\ir event_failed.sql
\ir skip_event.sql
\ir move_event_cursor.sql

-- Erasing: customers, items, and what is old
\ir still_open.sql
\ir forget_customer.sql
\ir delete_item.sql
\ir purge.sql
\ir set_retention.sql

-- For people: the history of an order, views for dashboards, and the promises as queries
\ir explain_order.sql
\ir views.sql
\ir violation.sql

-- The rights to call functions. This file comes last, because it revokes everything first.
\ir grants.sql
