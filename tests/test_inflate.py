"""Inflated models compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.inflate import inflate
from bench.reading import Reader
from dlf import zoo


def test_inflated_logits_are_equal(tmp_path: Path) -> None:
    small = zoo.path("small-base")
    big = inflate(small, tmp_path / "big", "143M", torch.float32)
    problem = zoo.problems("math")[0]
    tokens, expected = Reader(small, threads=2, weights="fp32").continued("Q", problem.prompt)
    again, found = Reader(big, threads=2, weights="fp32").continued("Q", problem.prompt)
    assert again == tokens and found.shape[1] == 32000
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=2e-3, rtol=1e-4)
    assert not found[:, expected.shape[1] :].any()


def test_a_model_that_is_too_big_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="large-base has a share of 2; tiny has 1"):
        inflate(zoo.path("large-base"), tmp_path / "big", "tiny")
    assert not (tmp_path / "big").exists()
