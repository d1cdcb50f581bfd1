"""What only development needs: a Postgres of our own, the whole stack as children, and the demo."""
