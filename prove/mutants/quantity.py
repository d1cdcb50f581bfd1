"""The ways to break orders for several units, and limits per customer."""

from __future__ import annotations

from prove.mutants.kinds import Mutant

QUANTITY_MUTANTS = [
    Mutant(
        "groups: granted before the minimum is served",
        "groups",
        "        >= coalesce(h.min_quantity, h.quantity)\n",
        "        >= 1\n",
        "quantity::test_a_group_waits_until_its_minimum_is_served",
    ),
    Mutant(
        "groups: tickets that are not served are kept",
        "groups",
        "    set status = 'unserved', ended_at = v_now\n    where p.head_id",
        "    set status = 'waiting'\n    where p.head_id",
        "quantity::test_a_waiting_group_is_granted_a_part_as_soon_as_that_is_enough",
    ),
    Mutant(
        "groups: units are set aside for ever",
        "groups",
        "          and h.part_served_at + p_item.hold_seconds * interval '1 second' <= v_now\n",
        "          and false\n",
        "quantity::test_units_are_set_aside_for_a_group_no_longer_than_a_hold",
    ),
    Mutant(
        "groups: units are not set aside at all",
        "groups",
        "          and h.part_served_at + p_item.hold_seconds * interval '1 second' <= v_now\n",
        "          and h.part_served_at <= v_now\n",
        "quantity::test_units_are_set_aside_for_a_group_no_longer_than_a_hold",
    ),
    Mutant(
        "groups: parts do not follow",
        "groups",
        "    and p.status <> h.status;",
        "    and false;",
        "quantity::test_parts_end_together_with_their_order",
    ),
    Mutant(
        "groups: tickets that were given up follow too",
        "groups",
        "  where p.head_id = any (p_order_ids) and p.ended_at is null\n",
        "  where p.head_id = any (p_order_ids)\n",
        "quantity::test_an_outage_gives_a_group_back_to_the_line_as_a_whole",
    ),
    Mutant(
        "reserve_many: the first ticket of a group is enough",
        "reserve_many",
        "coalesce(p_min_quantities[t.ord], p_quantities[t.ord])) as granting",
        "1) as granting",
        "quantity::test_a_batch_takes_tickets_in_the_order_of_its_requests",
    ),
    Mutant(
        "reserve_many: what is paid does not count",
        "reserve_many",
        "        or p_paid + p_quantity > coalesce(",
        "        or p_quantity > coalesce(",
        "quantity::test_what_a_customer_has_paid_counts_towards_their_limit",
    ),
    Mutant(
        "reserve_many: variants are counted apart",
        "reserve_many",
        "  from flashsale.paid_units(coalesce(v_item.product_id, p_item_id), p_customer_id);",
        "  from flashsale.paid_units(p_item_id, p_customer_id);",
        "quantity::test_variants_share_a_limit_and_one_open_order",
    ),
    Mutant(
        "reserve_many: an order of another variant is the answer",
        "reserve_many",
        "      when v_open.item_id <> p_item_id then 'has_other_order'\n",
        "",
        "quantity::test_variants_share_a_limit_and_one_open_order",
    ),
    Mutant(
        "reserve_many: counts before the paid order is locked",
        "reserve_many",
        "v_paid.last_order_id <> all (coalesce(p_cleared_ids, '{}'))",
        "v_paid.last_order_id <> all (coalesce(p_cleared_ids, '{}')) and false",
        "quantity::test_what_a_customer_has_paid_counts_towards_their_limit",
    ),
    Mutant(
        "reserve_many: a key may ask for anything",
        "reserve_many",
        "    = (p_quantity, p_min_quantity, p_wait is not false)\n",
        "    is not null\n",
        "quantity::test_a_key_is_bound_to_what_it_asked_for",
    ),
    Mutant(
        "reserve_many: a group may take more than max_per_order",
        "reserve_many",
        "      when p_quantity > p_item.max_per_order\n        or p_paid",
        "      when p_paid",
        "quantity::test_too_many_takes_no_ticket_and_writes_nothing",
    ),
    Mutant(
        "reserve_many: without waiting, all units of a group count",
        "reserve_many",
        "        + case when p_wait is false then p_min_quantity else p_quantity end\n",
        "        + p_quantity\n",
        "quantity::test_a_request_that_does_not_wait_takes_no_tickets_if_too_few_are_left",
    ),
    Mutant(
        "pay: money of one unit buys all",
        "first_payments",
        "i.price * coalesce(o.units, 1)",
        "i.price",
        "quantity::test_money_of_one_unit_does_not_buy_three",
    ),
    Mutant(
        "pay: late money buys a part of the units",
        "pay",
        "    or pg_sequence_last_value(v_item.line) + coalesce(p_late.units, 1) "
        "> v_item.now_serving\n",
        "    or pg_sequence_last_value(v_item.line) >= v_item.now_serving\n",
        "quantity::test_late_money_for_a_group_buys_as_many_units_or_none",
    ),
    Mutant(
        "refund_order: one unit of several stays off sale",
        "refund_order",
        "    set withdrawing = least(i.stock, i.withdrawing + v_units)\n",
        "    set withdrawing = least(i.stock, i.withdrawing + 1)\n",
        "quantity::test_parts_end_together_with_their_order",
    ),
    Mutant(
        "cancel: the other tickets of a waiting group are no gaps",
        "cancel",
        "      c.order_id, c.reserved_at, c.quantity) t",
        "      c.order_id, c.reserved_at, 1) t",
        "quantity::test_a_waiting_group_can_leave_the_line",
    ),
    Mutant(
        "order_status: shows parts as orders",
        "order_status",
        "where o.head_id is null;",
        "where true;",
        "quantity::test_a_part_is_no_order_for_anybody",
    ),
]
