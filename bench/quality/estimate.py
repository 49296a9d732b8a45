"""A figure with its uncertainty: a bootstrap that carries through means, differences and ratios."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["DRAWS", "Estimate", "mean"]

DRAWS = 4000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value, and its values on bootstrap draws of the items, which are the same for all systems.

    Arithmetic works draw by draw, so a difference of two systems has the interval of paired items.
    """

    value: float
    draws: Floats  # [DRAWS]

    @classmethod
    def of(cls, scores: Floats, items: str) -> Estimate:
        """The mean of `scores` [count]; equal names of `items`, such as the task's, give equal draws."""
        return cls(float(scores.mean()), _weights(items, len(scores)) @ scores)

    def interval(self, share: float = 0.95) -> tuple[float, float]:
        """Percentiles that hold `share` of the draws."""
        known = self.draws[np.isfinite(self.draws)]  # a ratio to zero is not finite
        if not known.size:
            return float("nan"), float("nan")
        low, high = np.quantile(known, [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: Estimate) -> Estimate:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.float64(self.value) / np.float64(other.value)
            return Estimate(float(value), self.draws / other.draws)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over tasks, whose items are drawn independently."""
    return Estimate(float(np.mean([one.value for one in estimates])), np.mean([one.draws for one in estimates], axis=0))


@cache
def _weights(items: str, count: int) -> Floats:
    """The share of each item in each draw: [DRAWS, count]."""
    random = np.random.default_rng(zlib.crc32(items.encode()))
    return random.multinomial(count, np.full(count, 1 / count), DRAWS) / count
