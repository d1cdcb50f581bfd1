"""What a proof runs on: the service, its clusters, and proxies between its parts."""
