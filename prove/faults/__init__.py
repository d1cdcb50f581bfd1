"""The faults that occur during a sale, and the proofs that they break no promise."""
