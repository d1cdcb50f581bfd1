"""What strikes while customers ask, and the proofs that it breaks no promise."""
