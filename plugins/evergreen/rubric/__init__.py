"""The ML Test Score of a model, from its declaration and what the ledger shows really happened."""

from evergreen.rubric.score import Finding, Score, score_of

__all__ = ["Finding", "Score", "score_of"]
