"""Payment providers: the interface of all of them, and the client of the simulated one.

The worker opens, voids and refunds sessions through it; the API reads the provider's events through
it. FLASHSALE_PROVIDER names another one: docs/how-to/use-your-own-payment-provider.md.
"""
