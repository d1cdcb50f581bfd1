"""The worker: it sweeps, and does what the database has left in its queues."""
