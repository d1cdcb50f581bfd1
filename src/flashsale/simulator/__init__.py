"""A simulated payment provider, for development, tests and demonstrations."""
