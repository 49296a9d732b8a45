"""The chi-square test, without scipy."""

from __future__ import annotations

import math

import numpy as np


def gamma_survival(a, x):
    """Q(a, x), the regularised upper incomplete gamma function (series below a + 1, continued fraction above)."""
    front = math.exp(-x + a * math.log(x) - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        for n in range(1, 10000):
            term *= x / (a + n)
            total += term
        return 1 - front * total
    b, c = x + 1 - a, 1e300
    d = h = 1 / b
    for n in range(1, 10000):
        b += 2
        d = 1 / (b - n * (n - a) * d)
        c = b - n * (n - a) / c
        h *= d * c
    return front * h


def chi_square_survival(counts, expected):
    """Return the probability of a statistic at least as large; outcomes expected less than 10 times are pooled."""
    rare = expected < 10
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return gamma_survival((len(counts) - 1) / 2, statistic / 2)
