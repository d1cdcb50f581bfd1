"""The HTTP service: the code that only the API's process runs."""
