"""The history of a run, and the checks whether the promises were kept."""
