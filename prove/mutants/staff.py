"""The ways to break what staff do: the history, keys of calls, prices, lists and the report."""

from __future__ import annotations

from prove.mutants.kinds import Mutant, PythonMutant

STAFF_MUTANTS = [
    Mutant(
        "request_keys: a key is not bound to its request",
        "request_keys",
        "  elsif not v_is_same then\n",
        "  elsif false then\n",
        "request_keys::test_a_key_belongs_to_one_request",
    ),
    Mutant(
        "request_keys: a repeat has its effect again",
        "request_keys",
        "  return true;\n",
        "  return false;\n",
        "request_keys::test_the_same_call_again_has_one_effect",
    ),
    Mutant(
        "request_keys: customers share their keys",
        "cancel",
        "  if flashsale.is_repeated(coalesce(p_customer_id, ''), p_idempotency_key",
        "  if flashsale.is_repeated('', p_idempotency_key",
        "request_keys::test_customers_do_not_share_keys",
    ),
    Mutant(
        "extend_holds: a repeat forgets how many it moved",
        "extend_holds",
        "  perform flashsale.note_result('', p_idempotency_key, v_count);\n",
        "",
        "request_keys::test_deadlines_are_moved_once_and_the_number_stays",
    ),
    Mutant(
        "history: what changed nothing is noted",
        "history",
        "  where i.item_id = p_item_id and n.value is distinct from o.value;\n",
        "  where i.item_id = p_item_id;\n",
        "history::test_what_changes_nothing_is_not_noted",
    ),
    Mutant(
        "history: a withdrawal is not noted",
        "withdraw",
        "    perform flashsale.note_item('withdraw', p_item_id, v_item, p_reason, p_staff);\n",
        "",
        "history::test_every_verb_of_staff_is_in_history",
    ),
    Mutant(
        "history: a cancellation by staff is not noted",
        "cancel",
        "p_reason) where p_customer_id is null;\n",
        "p_reason) where false;\n",
        "history::test_every_verb_of_staff_is_in_history",
    ),
    Mutant(
        "history: what a customer cancels is noted as staff's",
        "cancel",
        "p_reason) where p_customer_id is null;\n",
        "p_reason) where true;\n",
        "history::test_what_customers_do_is_not_noted",
    ),
    Mutant(
        "set_price: the tickets that are entitled to a unit stay",
        "change_item",
        "    select nextval(p_item.line)::integer as ticket from generate_series(1, v_free)\n",
        "    select null::integer as ticket from generate_series(1, 0)\n",
        "prices::test_a_request_that_has_read_the_old_price_is_not_served_at_it",
    ),
    Mutant(
        "set_price: a ticket of an open transaction is nobody's",
        "change_item",
        "    and p_last_ticket = (\n",
        "    and p_last_ticket >= (\n",
        "prices::test_a_first_order_that_has_not_committed_comes_first",
    ),
    Mutant(
        "set_price: holes are somebody's",
        "change_item",
        "        and o.status = 'void')\n",
        "        and false)\n",
        "prices::test_a_first_request_that_rolled_back_does_not_fix_the_price",
    ),
    Mutant(
        "set_price: the new tickets are not counted",
        "change_item",
        ", forfeited = i.forfeited + greatest(0, v_free)\n",
        "\n",
        "prices::test_a_price_and_a_currency_are_corrected_before_the_first_order",
    ),
    Mutant(
        "orders_of_item: a page ends the list",
        "orders_of_item",
        "      when (select count(*) from looked) = 10000 then "
        "(select max(l.order_id) from looked l)\n",
        "",
        "orders_of_item::test_a_page_looks_at_a_bounded_number_of_orders",
    ),
    Mutant(
        "orders_of_item: a status is the one in the row",
        "orders_of_item",
        "  where p_status is null or r.status = p_status\n",
        "",
        "orders_of_item::test_a_status_is_the_one_that_is_shown",
    ),
    Mutant(
        "fairness: the ids of others are shown",
        "fairness",
        "select left(p_customer_id, least(3, length(p_customer_id) / 3)) || '…'",
        "select p_customer_id",
        "fairness::test_everybody_finds_themselves_and_nobody_else",
    ),
    PythonMutant(
        "export: a cell may be a formula",
        "database/export",
        "    if isinstance(value, str) and value.startswith(_FORMULA):\n",
        "    if False:\n",
        "export::test_no_cell_is_a_formula",
    ),
    PythonMutant(
        "queries: what no call knows is ignored",
        "api/queries",
        "    if unknown := sorted(set(given) - known):\n",
        "    if unknown := []:\n",
        "http_staff::test_unknown_query_parameters_are_refused",
    ),
    PythonMutant(
        "express: a request for a unit with a query goes the express way",
        "api/express",
        '    if scope["query_string"]:  # there is no parameter that this call knows\n'
        "        return None\n",
        "",
        "http_staff::test_unknown_query_parameters_are_refused",
    ),
    PythonMutant(
        "psql: a session of the owner that acts as an operator",
        "database/operators",
        "        if conn.execute(_IS_OWNER).fetchone() != (True,):\n",
        "        if True:\n",
        "psql::test_it_logs_in_as_an_operator_and_not_as_the_owner",
    ),
]
