"""The way to the database: the calls of the SQL API, its connections, and bringing it up to date.

No module here imports the other rooms or Litestar; of the flat modules they import settings,
models and refusals. The processes that use the room share it: the API, the worker and migrate.
"""
