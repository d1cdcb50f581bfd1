"""The database: calls of the SQL API, the connections for them, and migrating.

The API, the worker and migrate use this package. Its modules import no other package of flashsale
and no Litestar; of the modules beside the packages they import settings, models and refusals.
"""
