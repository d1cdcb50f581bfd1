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
drop function if exists flashsale.order_story(flashsale_data.orders, text);
drop function if exists flashsale.payment_story(bigint);
-- 0.2: and whether orders that are back in the line count
drop function if exists flashsale.busy_payments(bigint[]);
drop function if exists flashsale.is_busy(bigint);
