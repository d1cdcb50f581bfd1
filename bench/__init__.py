"""`make bench`: the measurements that docs/performance.md reports."""
