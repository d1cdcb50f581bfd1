-- The id of an order is made of its item and its ticket: the item's id is the upper half, the
-- ticket is the lower half. The functions are plain SQL without settings, so the planner inlines
-- them into the statements that use them, and they cost nothing.
create or replace function flashsale.order_id_of(p_item_id integer, p_ticket integer) returns bigint
language sql immutable parallel safe
as $$ select (p_item_id::bigint << 32) | p_ticket::bigint $$;

comment on function flashsale.order_id_of(integer, integer) is
$$The order's id: the item and the place in its line
In ticket order, all orders of item i lie between order_id_of(i, 0) and order_id_of(i, 2147483647),
which is the highest ticket.$$;

create or replace function flashsale.item_of(p_order_id bigint) returns integer
language sql immutable parallel safe
as $$ select (p_order_id >> 32)::integer $$;

comment on function flashsale.item_of(bigint) is
$$The order's item, by the order's id$$;

create or replace function flashsale.ticket_of(p_order_id bigint) returns integer
language sql immutable parallel safe
as $$ select (p_order_id & 4294967295)::integer $$;

comment on function flashsale.ticket_of(bigint) is
$$The order's place in its item's line, by the order's id$$;
