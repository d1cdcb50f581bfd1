"""The code broken on purpose, one rule at a time."""

from prove.mutants.trial import MUTANTS, Fate, judge, misfit

__all__ = ["MUTANTS", "Fate", "judge", "misfit"]
