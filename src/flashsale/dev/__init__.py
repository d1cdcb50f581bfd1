"""Code for development only: an embedded Postgres, the whole stack as child processes, the demo."""
