-- Drops objects that earlier versions had and this one has not. The files of sql/ are replayed over
-- the functions and views that exist (create or replace). Without a line here, a function or view
-- that we remove or rename would stay for ever. So would the old form of a function whose argument
-- types change, because for Postgres that is another function. A function whose result type or
-- argument names change also needs a line here, because Postgres refuses to replace it.
--
-- One line per object, with its argument types, in the order of the releases that dropped them:
--
--   drop function if exists flashsale.name(integer, text); -- 0.2: is now other_name
--
-- There is no `cascade` here. If somebody else's object depends on ours, the replay stops with a
-- message that names it, and nothing is changed. The row types of the API are dropped by
-- migrations.
drop function if exists flashsale.fold_tallies(); -- 0.2: folds one item
drop function if exists flashsale.fill_next_items(text, integer); -- 0.2: is now items_to_fill
drop function if exists flashsale.note_sweep(text, integer, integer, integer); -- 0.2: more counts
drop function if exists flashsale.items_to_serve(); -- 0.2: is now lines_to_serve
-- 0.2: one job for all sessions of an order; and more arguments
drop function if exists flashsale.void_payments_of(bigint[]);
drop function if exists flashsale.pay(bigint, text, bigint, text);
drop function if exists flashsale.buy_in_time(bigint, bigint, text, timestamptz);
drop function if exists flashsale.end_payment(bigint, text, text);
drop function if exists flashsale.payment_captured(bigint, integer, bigint, text, bigint, text);
drop function if exists
  flashsale.record_payment_event(text, text, text, text, bigint, text, timestamptz);
drop function if exists flashsale.retry_job(text, bigint, integer, text);
drop function if exists flashsale.create_item(
  text, text, bigint, text, integer, integer, timestamptz, timestamptz, integer, text);
drop function if exists flashsale.create_item(
  text, text, bigint, text, integer, integer, timestamptz, timestamptz, integer, text, integer,
  integer); -- 0.2: its times are of type flashsale.moment
drop function if exists flashsale.create_item(
  text, text, bigint, text, integer, integer, timestamptz, timestamptz, integer, text, integer,
  integer, integer, integer, text, text, text, text); -- the same, with limits
drop function if exists flashsale.order_story(flashsale_data.orders, text);
drop function if exists flashsale.payment_story(bigint);
-- 0.2: and whether orders that are back in the line count
drop function if exists flashsale.busy_payments(bigint[]);
drop function if exists flashsale.is_busy(bigint);
-- 0.2: staff say who they are and why, and a call may have an idempotency key
drop function if exists flashsale.change_item(integer, jsonb);
drop function if exists flashsale.restock(integer, integer);
drop function if exists flashsale.withdraw(integer, integer);
drop function if exists flashsale.open_item(integer);
drop function if exists flashsale.close_item(integer);
drop function if exists flashsale.pause_item(integer);
drop function if exists flashsale.resume_item(integer);
drop function if exists flashsale.extend_holds(integer, integer, text, text);
drop function if exists flashsale.pay_offline(bigint, text, text);
drop function if exists flashsale.refund_order(bigint, text, boolean, text);
drop function if exists flashsale.retry_dead_letter(bigint);
drop function if exists flashsale.cancel(bigint, text);
drop function if exists flashsale.request_payment(bigint, text);
-- 0.2: and how many units
drop function if exists flashsale.order_of_key(integer, text, text);
drop function if exists flashsale.look_up(integer, text, text, bigint, boolean, timestamptz);
drop function if exists flashsale.reserve(integer, text, text, boolean);
drop function if exists flashsale.reserve_in_batch(integer, text, text, boolean);
drop function if exists flashsale.reserve_many(integer[], text[], text[], boolean[]);
drop function if exists flashsale.check_batch(integer[], text[], text[], boolean[]);
drop function if exists flashsale.look_up_batch(
  integer[], text[], text[], boolean[], timestamptz, text[], bigint[]);
drop function if exists flashsale.take_tickets(
  integer[], text[], text[], boolean[], timestamptz, text[], bigint[]);
drop function if exists flashsale.place_orders(
  integer[], text[], text[], bigint[], timestamptz[], timestamptz, text[], bigint[]);
drop function if exists flashsale.order_outlook(flashsale_data.orders, integer, timestamptz);
-- 0.2: and how many tickets of the line have no order that waits
drop function if exists flashsale.waiting(bigint, integer, text, timestamptz, integer);
