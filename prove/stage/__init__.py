"""What a proof runs on: the service, its clusters, and the wires between its parts."""
