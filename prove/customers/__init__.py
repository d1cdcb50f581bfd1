"""The simulated customers, over HTTP and in SQL."""
