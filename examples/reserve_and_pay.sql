-- Reserves a unit and pays for it from psql, for example as an operator at a counter.
--
-- With `make run` in another terminal, and an item on sale (see README.md in this folder):
--
--   psql "$(cat .flashsale/database.url)" --quiet -v item_id=ITEM_ID -v customer=CUSTOMER \
--     -v key=KEY -f examples/reserve_and_pay.sql
--
-- KEY names this request: a repeated run with the same key gets the same order, and no other.
\set ON_ERROR_STOP on

-- The URL of `make run` is that of the owner, who may act as any role. Make your own login a member
-- of this role: then it may do only what the role may do.
set role flashsale_tool;

-- \gset makes a variable of psql of each column: order_outcome, order_ticket and so on.
select coalesce(status, outcome) as state, ticket, order_id as id,
  coalesce(status = 'reserved', false) as held
from flashsale.reserve(:item_id, :'customer', :'key') \gset order_

\if :order_held
  \echo :customer: reserved with ticket :order_ticket
  -- Here the money is taken. The second argument is your name for this payment.
  select outcome
  from flashsale.pay_offline(:order_id, 'till-' || :order_id) \gset paid_
  \echo :customer: :paid_outcome
\else
  \echo :customer: :order_state
\endif
