"""The worker: it sweeps, and does what the database has left in its queues.

All decisions are made in SQL. Here is only what a database can't do itself: call the payment
provider, send mail, and sweep at intervals. Any number of workers may run: a job is leased to one
of them, and a worker that is late is told so. No connection to the database is held while somebody
outside is being called.
"""
