"""The ways to break what a waiting customer is told, one rule at a time."""

from __future__ import annotations

from prove.mutants.kinds import Mutant

FORECAST_MUTANTS = [
    Mutant(
        "place_in: the leavers count",
        "line_of",
        "    else 1 + width_bucket(p_order_id - 1, p_line.first_waiting)\n",
        "    else greatest(1, flashsale.ticket_of(p_order_id) - p_line.now_serving)\n",
        "position::test_who_leaves_the_line_is_before_nobody",
    ),
    Mutant(
        "place_in: the thousandth is far already",
        "line_of",
        "p_line.first_waiting[1000] < p_order_id",
        "p_line.first_waiting[1000] <= p_order_id",
        "position::test_999_1000_1001",
    ),
    Mutant(
        "place_in: a far place is its tickets",
        "line_of",
        "      then greatest(1001, least(\n"
        "        flashsale.ticket_of(p_order_id) - p_line.now_serving,\n"
        "        p_line.waiting / p_line.order_limit))\n",
        "      then flashsale.ticket_of(p_order_id) - p_line.now_serving\n",
        "position::test_a_position_is_never_more_than_the_number_who_wait",
    ),
    Mutant(
        "line_of: leavers that no sweep has counted still wait",
        "line_of",
        "select v_item.gaps_in_line + coalesce(sum(t.gaps_in_line), 0) into v_left",
        "select v_item.gaps_in_line + 0 * coalesce(sum(t.gaps_in_line), 0) into v_left",
        "position::test_a_position_is_never_more_than_the_number_who_wait",
    ),
    Mutant(
        "place_in: the entitled still need a unit to come back",
        "line_of",
        "    else v_place.position - width_bucket(v_entitled, p_line.first_waiting)\n",
        "    else v_place.position\n",
        "forecast::test_the_entitled_are_served_for_certain_also_in_a_pause",
    ),
    Mutant(
        "outlook: units that are to be withdrawn come back to the line",
        "line_of",
        "p_item.stock - p_item.paid - p_item.withdrawing",
        "p_item.stock - p_item.paid",
        "forecast::test_units_that_leave_the_sale_as_they_come_back_are_nobody_s_chance",
    ),
    Mutant(
        "outlook: the close is no reason for hurry",
        "line_of",
        "  if p_item.closes_at is not null then\n",
        "  if false then\n",
        "forecast::test_the_chance_shrinks_as_the_sale_comes_to_its_close",
    ),
    Mutant(
        "chance: nothing is learnt from the holds that have ended",
        "chance",
        "4 + greatest(0, p_sold);",
        "4;",
        "forecast::test_the_chance_is_that_of_the_definition",
    ),
    Mutant(
        "recycle_forfeits: those who left the line count as holds",
        "promote",
        "holds_lost = i.holds_lost + c.forfeits - c.gaps",
        "holds_lost = i.holds_lost + c.forfeits",
        "forecast::test_those_who_leave_the_line_are_no_holds",
    ),
    Mutant(
        "fold_tallies: sales teach nothing",
        "sweep",
        "    holds_sold = i.holds_sold + s.paid,\n",
        "",
        "forecast::test_the_chance_follows_the_holds_of_this_item_that_have_ended",
    ),
    Mutant(
        "reserve: a new customer is behind those who have left",
        "reserve",
        "- p_now_serving - p_gaps_in_line), p_now",
        "- p_now_serving), p_now",
        "position::test_the_answer_to_a_request_counts_those_who_left_as_of_the_last_sweep",
    ),
    Mutant(
        "line_of: the parts of an order have places of their own",
        "line_of",
        "        and o.status = 'waiting' and o.head_id is null\n",
        "        and o.status = 'waiting'\n",
        "position::test_an_order_for_several_units_has_one_place",
    ),
    Mutant(
        "place_in: each ticket that waits is an order",
        "line_of",
        "p_line.waiting / p_line.order_limit",
        "p_line.waiting",
        "position::test_orders_for_several_units_far_behind",
    ),
    Mutant(
        "granting_id: the first unit of an order serves it",
        "line_of",
        "  return case when v_more > 0 then (",
        "  return case when v_more < 0 then (",
        "forecast::test_an_order_for_several_units_needs_as_many",
    ),
]
