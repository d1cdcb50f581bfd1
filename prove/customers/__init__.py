"""Those who ask: over HTTP, and in SQL."""
