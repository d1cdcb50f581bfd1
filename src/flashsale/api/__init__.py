"""The HTTP service: what the API's process runs, and nothing that another process needs."""
