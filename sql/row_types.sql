-- The comments on the row types of the API. The types themselves are in migrations/, because a type
-- can't be replaced.
comment on type flashsale.order_row is
$$What the order functions return: an outcome, and the order as it is
A refusal (outcome not_open, closed, paused, sold_out, too_many, key_reused, unknown_item or
invalid) has no order_id. That of has_other_order names the other order, and nothing else of it.$$;

comment on column flashsale.order_row.outcome is
  'The result of this call; the comment on the function lists the possible outcomes.';
comment on column flashsale.order_row.order_id is
  'The order; null for a refusal. Who entered a draw keeps the id of the entry.';
comment on column flashsale.order_row.item_id is 'The item.';
comment on column flashsale.order_row.customer_id is
  'The customer, by the name that the caller gave them.';
comment on column flashsale.order_row.status is
  'entered, waiting, reserved, settling, paid, refunded, expired, cancelled, unserved or void.';
comment on column flashsale.order_row.ticket is
  'The order''s place in its item''s line, from 1; null: it has entered a draw.';
comment on column flashsale.order_row.position is
  'Of a waiting order: its place among those that wait; 1 is next. Exact up to 1,000.';
comment on column flashsale.order_row.created_at is 'When the customer requested the unit.';
comment on column flashsale.order_row.reserved_at is
  'When a unit was set aside; null: it has never held one, or has lost it to an outage.';
comment on column flashsale.order_row.expires_at is 'The deadline: pay before it.';
comment on column flashsale.order_row.paid_at is 'When it was paid.';
comment on column flashsale.order_row.ended_at is
  'When it ended without a sale, or was refunded.';
comment on column flashsale.order_row.payment_id is 'Its latest payment attempt.';
comment on column flashsale.order_row.payment_status is
  'requested, open, succeeded, failed, voided, refund_due or refunded.';
comment on column flashsale.order_row.amount is
  'The amount that attempt requests, in minor units of currency; once money came, what came.';
comment on column flashsale.order_row.currency is 'ISO 4217.';
comment on column flashsale.order_row.checkout_url is
  'Where the customer pays, once the payment is open.';
comment on column flashsale.order_row.retry_at is 'Of the refusal not_open: when the sale opens.';
comment on column flashsale.order_row.late_order_id is
  'Of an expired order: the order that its late money has bought.';
comment on column flashsale.order_row.reference is
  'Of an order that was paid offline: the till''s name of the payment.';
comment on column flashsale.order_row.quantity is 'How many units were asked for.';
comment on column flashsale.order_row.units is
  'How many units it holds, has bought, or held last; null: it has never held any.';
comment on column flashsale.order_row.chance is
  'Of a waiting order: the chance that it is served, 0 to 1; null as the answer to a new request.';
comment on column flashsale.order_row.forecast_as_of is
  'Of a waiting order: when the counters were brought up to date that chance is computed from.';

comment on type flashsale.moment is
$$A time as an argument: a timestamptz, never one without a time zone$$;

comment on column flashsale.moment.at is 'The time.';

comment on type flashsale.payment_job is
$$A call to make at the payment provider$$;

comment on column flashsale.payment_job.job_id is 'The job; with tries it names the lease.';
comment on column flashsale.payment_job.tries is 'How often the job was taken, this time included.';
comment on column flashsale.payment_job.kind is
  'open (a session to pay in), void (close the session) or refund (send its money back).';
comment on column flashsale.payment_job.payment_id is 'The payment attempt.';
comment on column flashsale.payment_job.order_id is
  'Its order; null for money that names no payment of ours.';
comment on column flashsale.payment_job.item_id is 'The order''s item.';
comment on column flashsale.payment_job.customer_id is 'The order''s customer.';
comment on column flashsale.payment_job.session_id is
  'The provider''s name for the attempt; null until it is open.';
comment on column flashsale.payment_job.amount is
  'Minor units of currency: what to ask for, or what to send back.';
comment on column flashsale.payment_job.currency is 'ISO 4217.';
comment on column flashsale.payment_job.expires_at is 'The deadline of the hold.';
comment on column flashsale.payment_job.item_name is 'What the customer pays for.';

comment on type flashsale.notification_job is
$$An e-mail to send$$;

comment on column flashsale.notification_job.job_id is 'The job; with tries it names the lease.';
comment on column flashsale.notification_job.tries is
  'How often the job was taken, this time included.';
comment on column flashsale.notification_job.message is
  'An object: kind (reserved, your_turn, paid, paid_late, expired, cancelled, refunded,
  order_refunded, unserved, entered or placed), order_id (as text), item_id, item_name, customer_id,
  expires_at, checkout_url, position (of a place in the line) and could_pay.';

comment on type flashsale.draw_row is
$$What is public of a draw$$;

comment on column flashsale.draw_row.item_id is 'The item.';
comment on column flashsale.draw_row.state is
  'entering, listing, drawing, drawn or called_off.';
comment on column flashsale.draw_row.entries is
  'How many have entered, as of the last sweep; once it is listed, how many are on the list.';
comment on column flashsale.draw_row.units is
  'How many units they ask for, and so tickets; null until the list is complete.';
comment on column flashsale.draw_row.commitment is 'sha256(secret), hexadecimal.';
comment on column flashsale.draw_row.list_hash is
  'The hash of the list, hexadecimal; null until it is complete.';
comment on column flashsale.draw_row.secret is
  '32 bytes, hexadecimal; null until the draw is done.';
comment on column flashsale.draw_row.opens_at is 'When the entries end.';
comment on column flashsale.draw_row.listed_at is 'When the list was complete.';
comment on column flashsale.draw_row.drawn_at is 'When all had their tickets.';

comment on type flashsale.draw_entry is
$$An entry on the list of a draw$$;

comment on column flashsale.draw_entry.entry_id is 'The order_id that the customer got.';
comment on column flashsale.draw_entry.quantity is 'How many units it asks for.';
comment on column flashsale.draw_entry.ticket is
  'Its ticket, the first one if it has several; null: it is still to be drawn.';

comment on type flashsale.fairness_row is
$$A ticket in the report that customers may see$$;

comment on column flashsale.fairness_row.ticket is 'The place in the line, from 1.';
comment on column flashsale.fairness_row.customer is
  'Who has it: the customer who looks, in full, the beginning of all others; null: void.';
comment on column flashsale.fairness_row.is_you is 'Whether it is the customer who looks.';
comment on column flashsale.fairness_row.status is 'The order''s status, as in order_status.';
comment on column flashsale.fairness_row.asked_at is 'When the customer asked.';
comment on column flashsale.fairness_row.served_at is
  'When a unit was set aside; null: it has not been, or was lost to an outage.';
comment on column flashsale.fairness_row.ended_at is
  'When it ended without a sale, or was refunded.';

comment on type flashsale.event_row is
$$Something that happened to an order or an item$$;

comment on column flashsale.event_row.event_id is
  'Its number in the feed, which is the cursor to read on from. Ascending, with gaps.';
comment on column flashsale.event_row.type is
  'What happened: order.created, order.paid, item.changed and so on, see docs/reference/events.md.';
comment on column flashsale.event_row.at is 'When it happened.';
comment on column flashsale.event_row.item_id is 'The item, or the item of the order.';
comment on column flashsale.event_row.order_id is 'The order; null: it happened to the item.';
comment on column flashsale.event_row.data is
  'An object: what else is known. Of an order also its customer_id, as it is by now.';

comment on type flashsale.event_job is
$$An event that take_events gave to a worker to deliver$$;

comment on column flashsale.event_job.lease_id is 'For events_delivered and event_failed.';
comment on column flashsale.event_job.failures is
  'How many tries of the first of these events have failed before.';
comment on column flashsale.event_job.event_id is 'Its number in the feed.';
comment on column flashsale.event_job.type is 'What happened.';
comment on column flashsale.event_job.at is 'When it happened.';
comment on column flashsale.event_job.item_id is 'The item; null: it is about none.';
comment on column flashsale.event_job.order_id is 'The order; null: it is about none.';
comment on column flashsale.event_job.data is 'What else is to be known of it.';
