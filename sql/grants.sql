-- Who may call what. Nobody but the owner reaches flashsale_data or pgmq: the functions that
-- callers call are security definer, which means that they run with the owner's rights, so that a
-- caller needs no right to a table. They also pin search_path, so that a caller can't put objects
-- of their own in the way. Views read the tables with their owner's rights for the same reason.
--
-- A function that is replaced keeps its grants, so all rights of our roles are revoked first.
-- Grants to other roles stay.
revoke all on all routines in schema flashsale
  from public, flashsale_api, flashsale_worker, flashsale_tool, flashsale_operator;
revoke all on all tables in schema flashsale
  from public, flashsale_api, flashsale_worker, flashsale_tool, flashsale_operator;

grant usage on schema flashsale
  to flashsale_api, flashsale_worker, flashsale_tool, flashsale_operator;

-- Views call these functions with the rights of the view's reader.
grant execute on function flashsale.clock(), flashsale.issued_tickets(integer),
    flashsale.hold_fate(bigint), flashsale.order_id_of(integer, integer),
    flashsale.is_entry(bigint), flashsale.is_on(timestamptz, timestamptz),
    flashsale.place_of(bigint),
    flashsale.provider_down(), flashsale.running_transactions(),
    flashsale.shut_by(timestamptz, timestamptz, boolean, timestamptz)
  to flashsale_api, flashsale_worker, flashsale_tool, flashsale_operator;

-- Customers' verbs: the HTTP service and internal tools.
grant execute on function
    flashsale.reserve_many(integer[], text[], text[], boolean[], integer[], integer[]),
    flashsale.reserve(integer, text, text, boolean, integer, integer),
    flashsale.find_held(integer[], text[], text[]),
    flashsale.cancel(bigint, text, text, text, text),
    flashsale.request_payment(bigint, text, text),
    flashsale.order_status(bigint, text),
    flashsale.orders_of(text, integer, bigint),
    flashsale.orders_by_id(bigint[]),
    flashsale.item_status(integer),
    flashsale.items(integer, integer),
    flashsale.items(text)
  to flashsale_api, flashsale_tool;

-- What is public of a draw.
grant execute on function
    flashsale.draw_status(integer),
    flashsale.draw_entries(integer, bigint, integer)
  to flashsale_api, flashsale_tool, flashsale_operator;

-- Terms of sale: the HTTP service has them in its contract.
grant execute on function
    flashsale.create_item(
      text, text, bigint, text, integer, integer, flashsale.moment, flashsale.moment, integer, text,
      integer, integer, integer, integer, text, boolean, text, text, text),
    flashsale.create_item(
      text, text, bigint, text, integer, integer, text, flashsale.moment, integer, text,
      integer, integer, integer, integer, text, boolean, text, text, text),
    flashsale.create_item(
      text, text, bigint, text, integer, integer, varchar, flashsale.moment, integer, text,
      integer, integer, integer, integer, text, boolean, text, text, text),
    flashsale.create_item(
      text, text, bigint, text, integer, integer, text, text, integer, text,
      integer, integer, integer, integer, text, boolean, text, text, text),
    flashsale.moment_of(timestamptz), flashsale.moment_of(timestamp), flashsale.moment_of(date),
    flashsale.change_item(integer, jsonb, text, text, text)
  to flashsale_api, flashsale_operator;

-- The orders of all customers.
grant execute on function flashsale.orders_of_item(integer, text, bigint, integer)
  to flashsale_api, flashsale_operator;

grant execute on function
    flashsale.record_payment_event(
      text, text, text, text, bigint, text, timestamptz, text, boolean)
  to flashsale_api;

-- Money by the hands of staff: the HTTP service has these in its contract.
grant execute on function
    flashsale.refund_order(bigint, text, boolean, text, text),
    flashsale.extend_holds(integer, integer, text, text, text)
  to flashsale_api, flashsale_operator;

-- Internal tools that take money themselves, a till for example.
grant execute on function flashsale.pay_offline(bigint, text, text, text, text)
  to flashsale_api, flashsale_tool, flashsale_operator;

grant execute on function
    flashsale.sweep(text, integer),
    flashsale.expire(integer),
    flashsale.promote(integer, integer),
    flashsale.fill(integer, integer),
    flashsale.publish_events(integer)
  to flashsale_worker, flashsale_operator;

grant execute on function
    flashsale.begin_sweep(text, integer),
    flashsale.sweep_item(text, integer, bigint[], integer),
    flashsale.sweep_failed(text, integer, text),
    flashsale.take_payment_jobs(integer, integer),
    flashsale.take_notifications(integer, integer),
    flashsale.finish_notifications(bigint[], integer[]),
    flashsale.retry_job(text, bigint, integer, text, boolean),
    flashsale.note_provider(boolean),
    flashsale.take_events(text, integer, integer),
    flashsale.events_delivered(bigint, bigint, integer),
    flashsale.event_failed(bigint, text, double precision),
    flashsale.payment_opened(bigint, integer, bigint, text, text),
    flashsale.payments_opened(bigint[], integer[], bigint[], text[], text[]),
    flashsale.payment_voided(bigint, integer, bigint),
    flashsale.payment_captured(bigint, integer, bigint, text, bigint, text, timestamptz),
    flashsale.payment_refunded(bigint, integer, bigint)
  to flashsale_worker;

grant execute on function
    flashsale.restock(integer, integer, text, text, text),
    flashsale.withdraw(integer, integer, text, text, text),
    flashsale.open_item(integer, text, text),
    flashsale.close_item(integer, text, text),
    flashsale.pause_item(integer, text, text),
    flashsale.resume_item(integer, text, text),
    flashsale.cancel(bigint, text, text, text, text),
    flashsale.order_status(bigint, text),
    flashsale.orders_of(text, integer, bigint),
    flashsale.item_status(integer),
    flashsale.items(integer, integer),
    flashsale.items(text),
    flashsale.explain_order(bigint),
    flashsale.fairness(integer, text, integer, integer),
    flashsale.retry_dead_letter(bigint, text, text),
    flashsale.skip_event(bigint, text, text),
    flashsale.move_event_cursor(bigint, text, text),
    flashsale.forget_customer(text, text, text),
    flashsale.delete_item(integer, text, text, integer),
    flashsale.set_retention(text, integer, text, text),
    flashsale.purge(integer)
  to flashsale_operator;

grant execute on function
    flashsale.explain_order(bigint),
    flashsale.fairness(integer, text, integer, integer)
  to flashsale_tool;

-- The feed: everybody who may see what happened to anybody's order.
grant execute on function flashsale.events(bigint, integer)
  to flashsale_api, flashsale_worker, flashsale_tool, flashsale_operator;

grant execute on function flashsale.forget_events(interval, integer)
  to flashsale_worker, flashsale_operator;

grant execute on function flashsale.money(bigint, text)
  to flashsale_api, flashsale_worker, flashsale_tool, flashsale_operator;

grant select on flashsale.item_status, flashsale.sweep_status, flashsale.queue_status,
    flashsale.status_totals, flashsale.provider_status
  to flashsale_api, flashsale_worker;
grant select on flashsale.sweep_failure, flashsale.filling_blocker, flashsale.unusable_event,
    flashsale.settling_order, flashsale.event_delivery
  to flashsale_api;
grant select on flashsale.item_status, flashsale.order_status to flashsale_tool;
grant select on all tables in schema flashsale to flashsale_operator;

-- By default PUBLIC may create temporary tables. This right belongs to the database and not to the
-- schema, so a clone or a restored dump of the database has it again until the next migrate.
do $$
begin
  execute format('revoke temporary on database %I from public', current_database());
end
$$;
