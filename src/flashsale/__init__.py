"""flashsale sells limited stock in a flash sale from one Postgres database, correctly and fairly.

The logic is in sql/. This package installs it, maps HTTP to its functions, and works its queues.
"""
