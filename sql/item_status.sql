-- The public view of an item. It is computed from the item's row and the line's last ticket, so it
-- costs the same with ten orders as with ten million.
create or replace view flashsale.item_status as
select
  i.item_id,
  i.sku,
  i.name,
  i.price,
  i.currency,
  i.stock,
  i.opens_at,
  i.closes_at,
  i.hold_seconds,
  i.max_waiting,
  i.late_payment::text as late_payment,
  i.paused,
  coalesce(flashsale.shut_by(i.opens_at, i.closes_at, i.paused, c.now), 'open') as state,
  i.now_serving,
  l.issued,
  greatest(0, i.now_serving - l.issued) as available,
  greatest(0, i.stock - greatest(0, i.now_serving - l.issued) - i.paid) as reserved,
  i.paid,
  greatest(0, l.issued - i.now_serving - i.gaps_in_line) as waiting,
  i.withdrawing,
  i.created_at,
  least(s.swept_at, c.now) as as_of,
  i.settle_seconds,
  i.refund_seconds,
  i.max_per_order,
  coalesce(i.max_per_customer, i.max_per_order) as max_per_customer,
  i.product,
  i.draw is not null as draw
from flashsale_data.items i
-- The clock is read once per row: shut_by is inlined for a column, and not for a volatile function.
cross join lateral (select flashsale.clock() as now) c
cross join lateral (select flashsale.issued_tickets(i.item_id) as issued) l
left join (select max(w.swept_at) as swept_at from flashsale_data.sweepers w) s on true;

comment on view flashsale.item_status is
$$Every item: its terms, its state and how many units are where
Everything is counted in units; waiting counts the tickets of waiting orders, one per unit.
available + reserved + paid = stock. available is exact; paid, reserved and waiting are as of the
last sweep (as_of), so up to a second old.$$;

comment on column flashsale.item_status.item_id is 'The item.';
comment on column flashsale.item_status.sku is 'The seller''s name of the item; unique.';
comment on column flashsale.item_status.name is 'What customers call it.';
comment on column flashsale.item_status.price is 'Of a unit, in minor units of currency.';
comment on column flashsale.item_status.currency is 'ISO 4217.';
comment on column flashsale.item_status.stock is 'Units on sale, sold ones included.';
comment on column flashsale.item_status.opens_at is
  'When the sale opens; null: it has always been open.';
comment on column flashsale.item_status.closes_at is 'When the sale closes; null: never.';
comment on column flashsale.item_status.hold_seconds is 'How long a reservation may be paid.';
comment on column flashsale.item_status.max_waiting is
  'Length of the line at most; null: no limit.';
comment on column flashsale.item_status.late_payment is
  'What happens to money that comes too late: refund, or keep_if_free (it buys a free unit).';
comment on column flashsale.item_status.paused is
  'Whether it is paused: no new orders, no promotions.';
comment on column flashsale.item_status.state is
  'open, or why it takes no orders: not_open, paused or closed.';
comment on column flashsale.item_status.now_serving is
  'Tickets up to this one are entitled to a unit.';
comment on column flashsale.item_status.issued is 'How many tickets the line has given out.';
comment on column flashsale.item_status.available is
  'Units that the next customers get at once. Exact.';
comment on column flashsale.item_status.reserved is
  'Units that are held, settling ones included. As of as_of.';
comment on column flashsale.item_status.paid is 'Units that are sold. As of as_of.';
comment on column flashsale.item_status.waiting is
  'Units that waiting orders have asked for: their tickets. As of as_of.';
comment on column flashsale.item_status.withdrawing is
  'Units that leave the sale as they come back.';
comment on column flashsale.item_status.created_at is 'When the item was put on sale.';
comment on column flashsale.item_status.as_of is 'When the last sweep was; null: there was none.';
comment on column flashsale.item_status.settle_seconds is
  'For how long after a deadline the provider is asked whether money came in time.';
comment on column flashsale.item_status.refund_seconds is
  'For how long a customer may give a paid order back; null: never.';
comment on column flashsale.item_status.max_per_order is 'How many units an order may be for.';
comment on column flashsale.item_status.max_per_customer is
  'How many units of its product a customer may have bought and asked for in all.';
comment on column flashsale.item_status.product is
  'The product that it is a variant of; null: none.';
comment on column flashsale.item_status.draw is
  'Whether customers enter a draw before it opens: see flashsale.draw_status.';

create or replace function flashsale.item_status(p_item_id integer) returns flashsale.item_status
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale.item_status;
begin
  select * into v_item from flashsale.item_status s where s.item_id = p_item_id;
  if not found then
    perform flashsale.raise_unknown_item(p_item_id);
  end if;
  return v_item;
end
$$;

comment on function flashsale.item_status(integer) is
$$One item: its terms, its state and how many units are where
Errors: RV101 unknown item.$$;
