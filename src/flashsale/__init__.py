"""flashsale: flash sale reservations in one Postgres: correct, fair and fast.

The logic is in sql/; this package starts it, maps HTTP to its functions, and works its queues.
"""
