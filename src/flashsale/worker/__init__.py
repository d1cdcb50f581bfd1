"""The worker: it sweeps, and does the jobs that the database has put into its queues.

All decisions are made in SQL. This package does only what a database can't do itself: call the
payment provider, send e-mail, and sweep at intervals. Any number of workers may run, because a job
is leased to one of them at a time, and a worker that is too slow learns that it has lost the lease.
The worker holds no database connection while it calls the provider or sends e-mail.
"""
