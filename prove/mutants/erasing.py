"""The ways to break what every door refuses, and what is erased, one rule at a time."""

from __future__ import annotations

from prove.mutants.kinds import Mutant

ERASING_MUTANTS = [
    Mutant(
        "texts: an id may end with a space",
        "texts",
        "'^[!-~](?:[ -~]*[!-~])?$'",
        "'^[!-~][ -~]*$'",
        "doors::test_customers_that_look_alike_are_one_customer_or_refused",
    ),
    Mutant(
        "texts: a text may have control characters of the upper half",
        "texts",
        r"[\u0001-\u001f\u007f-\u009f\u2028\u2029]",
        r"[\u0001-\u001f\u007f\u2028\u2029]",
        "doors::test_every_text_of_one_character_is_judged_alike",
    ),
    Mutant(
        "moments: a timestamp is taken as it is",
        "moments",
        "  perform flashsale.raise_no_moment(p_time::text);\n  return null;\n",
        "  return row(p_time::timestamptz)::flashsale.moment;\n",
        "doors::test_a_value_that_has_no_zone_is_refused",
    ),
    Mutant(
        "check_terms: a time without its zone is read in the session's",
        "check_terms",
        "jsonb_typeof(p_terms -> p_name) <> 'null' and not flashsale.is_zoned(p_terms ->> p_name)",
        "jsonb_typeof(p_terms -> p_name) in ('number', 'boolean', 'object', 'array')",
        "doors::test_a_time_without_its_zone_is_refused_at_every_door",
    ),
    Mutant(
        "forget_customer: orders are not locked",
        "forget_customer",
        "    order by o.item_id, o.customer_id\n    for update);\n",
        "    order by o.item_id, o.customer_id);\n",
        "forget_customer::test_money_of_the_same_moment_is_seen",
    ),
    Mutant(
        "forget_customer: the history keeps the name",
        "forget_customer",
        "    reason = flashsale.without_name(h.reason, p_customer_id, p_pseudonym),\n",
        "    reason = h.reason,\n",
        "forget_customer::test_nothing_names_a_forgotten_customer_any_more",
    ),
    Mutant(
        "forget_customer: a refund that is due is not in the way",
        "still_open",
        "in ('requested', 'open', 'refund_due')",
        "in ('requested', 'open')",
        "forget_customer::test_what_is_open_is_refused_and_listed",
    ),
    Mutant(
        "delete_item: a request that is running is not seen",
        "delete_item",
        "l.mode = 'RowExclusiveLock'",
        "l.mode = 'ExclusiveLock'",
        "delete_item::test_a_request_that_is_running_is_seen",
    ),
    Mutant(
        "delete_item: an order goes although its money has to go back",
        "delete_item",
        "w.kind <> 'e-mail'",
        "w.kind <> 'e-mail' and false",
        "delete_item::test_money_that_comes_meanwhile_goes_back_before_its_order_goes",
    ),
    Mutant(
        "delete_item: a step has no limit",
        "delete_item",
        "    order by o.order_id\n    limit p_limit)\n",
        "    order by o.order_id)\n",
        "delete_item::test_steps_are_bounded",
    ),
    Mutant(
        "purge: a key goes with its age, whatever its order does",
        "purge",
        "coalesce(o.ended_at, o.paid_at) < p_before",
        "coalesce(o.ended_at, o.paid_at, o.created_at) < p_before",
        "retention::test_keys_go_so_long_after_their_orders_have_ended",
    ),
    Mutant(
        "purge: a walk begins anew with each step",
        "purge",
        "> (coalesce(p_after[1], ''), coalesce(p_after[2]::integer, 0), coalesce(p_after[3], ''))",
        "> ('', 0, '')",
        "retention::test_a_walk_sees_every_key_whatever_the_size_of_its_steps",
    ),
    Mutant(
        "purge: dead letters of payments go too",
        "purge",
        "o.queue = 'notifications' and o.died_at",
        "o.died_at",
        "retention::test_undeliverable_e_mails_go_and_what_is_about_money_stays",
    ),
]
