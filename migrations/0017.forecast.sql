-- What a customer in the line is told: an exact place, and the chance to be served.

-- Both count from this migration on, so that they can be compared: the sale of a hold that ended
-- before is in items.paid, but nobody has counted the holds that ended without one.
alter table flashsale_data.items
  add column holds_sold integer not null default 0, -- holds that ended in a sale, without those
                                                    -- still in tallies; a refund takes one away
  add column holds_lost integer not null default 0; -- ... and those whose units went on to the line

-- The line of an item as its customers see it at one moment (flashsale.line_of).
create type flashsale_data.line as (
  item_id integer,
  first_waiting bigint[], -- the first orders that wait, by ticket: all, or a thousand
  next_tickets bigint[],  -- the ids of the first waiting tickets above now_serving: the same
  waiting integer,        -- at least so many tickets wait
  order_limit integer,    -- no order has more tickets than this
  now_serving integer,
  units integer,          -- units that may still come back to the line
  sold integer,           -- of the holds that have ended: how many ended in a sale
  lost integer,           -- ... and how many did not
  is_closed boolean,
  as_of timestamptz       -- when the counters were brought up to date
);

-- The place of an order in it (flashsale.place_in).
create type flashsale_data.place as (
  position integer,
  chance double precision,
  as_of timestamptz
);

alter type flashsale.order_row add attribute chance double precision;
alter type flashsale.order_row add attribute forecast_as_of timestamptz;
