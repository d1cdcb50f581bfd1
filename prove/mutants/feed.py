"""The ways to break the feed."""

from __future__ import annotations

from prove.mutants.kinds import Mutant, PythonMutant

FEED_MUTANTS = [
    Mutant(
        "feed: rows of transactions that were running are not looked for again",
        "publish_events",
        "array(select pg_snapshot_xip(v_snapshot)) || v_held || pg_current_xact_id()",
        "v_held || pg_current_xact_id()",
        "feed::test_what_commits_late_comes_behind_what_was_read",
    ),
    Mutant(
        "feed: what a publisher writes after its visit is not looked for",
        "publish_events",
        " || v_held || pg_current_xact_id()",
        " || v_held",
        "feed::test_a_transaction_may_go_on_after_it_has_published",
    ),
    Mutant(
        "feed: what happened to an order is told before the order",
        "publish_events",
        "n.order_id is null or flashsale.is_announced(n.order_id) as ready",
        "true as ready",
        "feed::test_new_orders_are_announced_by_ticket_a_few_at_a_time",
    ),
    Mutant(
        "feed: rows that were kept back are forgotten",
        "publish_events",
        " || v_held || pg_current_xact_id()",
        " || pg_current_xact_id()",
        "feed::test_what_is_kept_back_is_told_later",
    ),
    Mutant(
        "feed: publishers do not take turns",
        "publish_events",
        "  perform from flashsale_data.feed f where f.one_row for no key update skip locked;",
        "  perform from flashsale_data.feed f;",
        "feed::test_two_publishers_never_wait_for_each_other",
    ),
    Mutant(
        "feed: a restored database gives numbers out again",
        "publish_events",
        "then ((f.last_event_id >> 32) + 1) << 32",
        "then f.last_event_id",
        "feed::test_after_a_restore_no_number_is_given_out_again",
    ),
    Mutant(
        "feed: a restored database believes what another server has seen",
        "publish_events",
        "branch = v_branch, seen_xmax = '0', unseen = '{}',",
        "branch = v_branch,",
        "feed::test_after_a_restore_no_number_is_given_out_again",
    ),
    Mutant(
        "feed: dead rows are read again and again",
        "publish_events",
        "seen_xmax = case when more then f.seen_xmax else pg_snapshot_xmax(v_snapshot) end",
        "seen_xmax = f.seen_xmax",
        "feed::test_old_deleted_rows_are_not_read_again",
    ),
    Mutant(
        "feed: a gap that nothing has come into is forgotten",
        "announce_orders",
        "        filter (where f.ticket is not null), '{}') as tickets",
        "        , '{}') as tickets",
        "feed::test_a_late_order_is_told_when_it_comes_and_keeps_nobody_back",
    ),
    Mutant(
        "feed: a gap is forgotten with orders in it that are not told",
        "announce_orders",
        "case when not n.has_more_late then n.settled + 1 end",
        "n.settled + 1",
        "feed::test_many_late_orders_are_announced_a_few_at_a_time",
    ),
    Mutant(
        "feed: gaps are kept for ever",
        "announce_orders",
        "case when not n.has_more_late then n.settled + 1 end",
        "null",
        "feed::test_withdrawn_tickets_are_no_gaps_for_ever",
    ),
    Mutant(
        "feed: parts of an order are told as orders",
        "announce_orders",
        "where o.customer_id is not null -- else",
        "where o.status <> 'void' -- else",
        "feed::test_an_order_for_several_units_is_one_order",
    ),
    Mutant(
        "feed: only the first items are looked at",
        "announce_orders",
        "where l.item_id > (select f.last_examined_item_id",
        "where l.item_id > 0 * (select f.last_examined_item_id",
        "feed::test_more_items_than_a_visit_looks_at_have_their_turn",
    ),
    Mutant(
        "events: a cursor that retention has passed is believed",
        "events",
        "p_after < v_forgotten_through then",
        "false then",
        "feed::test_forgetting_deletes_the_beginning_and_refuses_older_cursors",
    ),
    Mutant(
        "forget_events: an old event behind a young one is deleted",
        "forget_events",
        "bool_and(e.at < v_before) over (order by e.event_id) as is_old",
        "e.at < v_before as is_old",
        "feed::test_forgetting_never_leaves_a_hole_in_the_feed",
    ),
    Mutant(
        "promote: the feed is not told of a promotion",
        "promote",
        "    from granted g\n    order by g.order_id\n",
        "    from granted g\n    where false\n",
        "feed::test_each_change_of_an_order_is_told_once_and_in_order",
    ),
    PythonMutant(
        "cursors: a mistyped cursor is read",
        "cursors",
        " and cursor_of(event_id) == cursor else None",
        " else None",
        "http_feed::test_nonsense_is_refused",
    ),
]
