"""Compares adapters that run as lanes of their base with the models that they make when they are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import dlf

__all__ = ["check_lanes", "experts_of"]


def experts_of(base: Path, adapters: dict[str, Path], *, merge: bool = False) -> list[dlf.Lora]:
    """Make an expert of each adapter."""
    return [dlf.Lora(base, adapter, name=kind, merge=merge) for kind, adapter in adapters.items()]


def check_lanes(large: Path, base: Path, adapters: dict[str, Path], prompts: list[str], **options: Any) -> None:
    """Fuse, score and draft with lanes, in a batch and alone, and compare with merged models."""
    found, scores = [], []
    for merge in (False, True):
        experts = experts_of(base, adapters, merge=merge)
        with dlf.Engine(large, experts, combine="centroid", dtype="float32", threads=2) as engine:
            found.append(engine.generate(prompts, **options))
            scores.append(engine.score(prompts[0], ["fox jumps", "7"]))
            for prompt, together in zip(prompts, [] if merge else found[0], strict=not merge):
                for drafts in (False, *(dlf.Speculation(drafter=kind, adaptive=False) for kind in adapters)):
                    alone = engine.generate(prompt, speculate=drafts, **options)
                    assert (alone.drafted > 0) == (drafts is not False)
                    assert alone.tokens == together.tokens and np.array_equal(alone.alpha, together.alpha)
                    assert np.array_equal(alone.logprobs, together.logprobs)
    for ours, theirs in zip(*found, strict=True):
        assert ours.tokens == theirs.tokens
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-3)
    for mine, other in zip(*scores, strict=True):
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-3)
