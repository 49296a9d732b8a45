"""Log-probabilities as JSON has them."""

from __future__ import annotations

__all__ = ["in_json"]

LEAST = -9999.0  # OpenAI's log-probability of an impossible token; JSON has no infinity


def in_json(logprob: float) -> float:
    """A log-probability as a client gets it."""
    return max(logprob, LEAST)
