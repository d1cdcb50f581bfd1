"""The ways to break the draw, one rule at a time."""

from __future__ import annotations

from prove.mutants.kinds import Mutant, PythonMutant

DRAW_MUTANTS = [
    Mutant(
        "a key leads to the id that the entry had",
        "order_status",
        "where o.order_id = flashsale.current_id(p_order_id)",
        "where o.order_id = p_order_id",
        "draw::test_an_entry_keeps_its_id_for_ever",
    ),
    Mutant(
        "after the draw an order is shown by its ticket",
        "order_status",
        "p_outcome, flashsale.shown_id(o.order_id)",
        "p_outcome, o.order_id",
        "draw::test_an_entry_keeps_its_id_for_ever",
    ),
    Mutant(
        "the list is made while entries are not committed",
        "draw",
        "if v_noted_xid <= pg_snapshot_xmin(v_snapshot) then",
        "if v_noted_xid is not null then",
        "draw_races::test_an_entry_that_is_not_committed_at_the_opening_delays_the_draw",
    ),
    Mutant(
        "a sweep that has an id already notes it",
        "draw",
        "case when pg_current_xact_id_if_assigned() is null then flashsale.terms_of_draw(i) end",
        "flashsale.terms_of_draw(i)",
        "draw_races::test_a_sweep_that_has_an_id_already_notes_nothing",
    ),
    Mutant(
        "what was noted holds after the sale was opened again",
        "draw",
        "update flashsale_data.draws d set noted_xid = null, noted_at = null",
        "update flashsale_data.draws d set noted_at = null",
        "draw_races::test_what_was_noted_is_forgotten_when_the_sale_is_opened_again",
    ),
    Mutant(
        "an old snapshot can enter what has been closed",
        "enter",
        "if current_setting('transaction_isolation') <> 'read committed' then",
        "if false then",
        "draw_races::test_an_old_snapshot_can_not_enter_what_has_been_opened_or_closed",
    ),
    Mutant(
        "the order does not depend on the list",
        "draw",
        "sha256(d.secret || d.list_hash || convert_to(l.entry_id::text, 'UTF8'))",
        "sha256(d.secret || convert_to(l.entry_id::text, 'UTF8'))",
        "draw::test_everybody_has_the_place_that_the_secret_gives_them",
    ),
    Mutant(
        "later customers get tickets of the draw",
        "draw",
        "perform setval(p_item.line, d.units)",
        "perform setval(p_item.line, 1)",
        "draw::test_later_customers_stand_behind_the_entries",
    ),
    Mutant(
        "tickets that are still to be drawn are taken for holes",
        "fill",
        "if not found or v_item.draw in ('listing', 'drawing') then",
        "if not found then",
        "draw::test_drawing_goes_on_in_bounded_steps",
    ),
    Mutant(
        "the secret is public before all have their tickets",
        "draw_status",
        "case when i.draw = 'drawn' then encode(d.secret, 'hex') end",
        "case when d.listed_at is not null then encode(d.secret, 'hex') end",
        "draw::test_nobody_can_read_the_secret_before",
    ),
    Mutant(
        "the draw ends without those that were locked",
        "draw",
        "where d.item_id = p_item_id and d.put_off = 0;",
        "where d.item_id = p_item_id;",
        "draw_races::test_an_entry_that_is_locked_delays_only_itself",
    ),
    Mutant(
        "who waited for the draw finds no order",
        "enter",
        "return flashsale.current_id(p_order_id);",
        "return p_order_id;",
        "draw_races::test_who_cancels_while_they_are_drawn_gives_up_the_order_of_the_ticket",
    ),
    Mutant(
        "who cancels after the list was made leaves no gap",
        "draw",
        "where o.order_id = any (p_order_ids) and o.ended_at is not null;",
        "where false;",
        "draw::test_who_cancels_after_the_list_was_made_keeps_the_place",
    ),
    Mutant(
        "a cancelled entry counts as a gap in the line",
        "cancel",
        "case when flashsale.is_entry(p_order_id) then 0 else coalesce(p_quantity, 1) end",
        "coalesce(p_quantity, 1)",
        "draw::test_an_entry_can_be_cancelled",
    ),
    Mutant(
        "a request that does not wait enters",
        "enter",
        "when p_draw = 'entering' and p_opens_at > p_now and p_wait is not false then 'entered'",
        "when p_draw = 'entering' and p_opens_at > p_now then 'entered'",
        "draw::test_a_request_that_does_not_wait_does_not_enter",
    ),
    Mutant(
        "the opening can be moved after the draw has begun",
        "change_item",
        "if (p_item.draw <> 'entering' or p_item.opens_at <= v_now)",
        "if p_item.draw <> 'entering'",
        "draw::test_the_opening_can_be_moved_until_it_comes",
    ),
    Mutant(
        "closing a draw that has not begun leaves its entries",
        "draw",
        "    set status = 'unserved', ended_at = p_now\n"
        "    where o.order_id = any (array(select l.order_id from leaving l))"
        " and o.status = 'entered'",
        "    set status = 'unserved', ended_at = p_now\n    where false",
        "draw::test_closing_before_the_opening_calls_the_draw_off",
    ),
    Mutant(
        "withdrawing while customers enter takes tickets",
        "withdraw",
        "elsif p_item.draw in ('entering', 'listing') then",
        "elsif false then",
        "draw::test_stock_can_change_while_customers_enter",
    ),
    Mutant(
        "the parts of a group are missing after the draw",
        "draw",
        "cross join generate_series(1, o.quantity - 1) n",
        "cross join generate_series(2, o.quantity - 1) n",
        "draw::test_a_group_has_consecutive_tickets",
    ),
]

DRAW_PYTHON_MUTANTS = [
    PythonMutant(
        "check-draw believes the secret",
        "check_draw",
        "if hashlib.sha256(secret).digest() != list_hash:",
        "if False:",
        "http_draw::test_check_draw_finds_each_fault",
    ),
    PythonMutant(
        "check-draw does not look at the places",
        "check_draw",
        "if entry.ticket != place:",
        "if entry.ticket is None:",
        "http_draw::test_check_draw_finds_each_fault",
    ),
    PythonMutant(
        "check-draw believes the list",
        "check_draw",
        'if list_hash.hex() != draw["list_hash"]:',
        "if False:",
        "http_draw::test_check_draw_finds_each_fault",
    ),
]
