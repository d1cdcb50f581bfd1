"""`make bench`: the measurements that docs/reference/figures.md reports."""
