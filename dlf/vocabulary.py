"""The token ids in which the models of an engine exchange tokens and logits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlf import _C
from dlf.arguments import common_vocabulary
from dlf.checkpoints.config import ModelConfig
from dlf.errors import TokenizerMismatchError
from dlf.lanes import NO_LANE, Lanes
from dlf.text.same_tokenizer import AddedDifference, check_same_tokenizer, warn_of_added_tokens
from dlf.text.token_map import TokenMap, token_map
from dlf.text.tokenizer import Tokenizer

__all__ = ["NamedTokenizer", "Vocabulary", "check_tokenizer"]

logger = logging.getLogger("dlf")


@dataclass(frozen=True)
class NamedTokenizer:
    """The tokenizer of a model, with the model's name and configuration."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """The large model's ids, and how each model's own ids follow from them.

    Attributes
    ----------
    size
        Ids in use: those that all models share or, with a map, the large model's.
    maps
        Map of each model; None if its ids are the large model's.
    """

    size: int
    maps: Sequence[TokenMap | None]

    @classmethod
    def of(cls, models: Sequence[NamedTokenizer], lanes: Lanes, tokenizer_map: str | None) -> Vocabulary:
        """Compare the tokenizers of an engine's models, the large one first, and map their ids if that is wanted.

        The share of tokens that have a partner is logged for each mapped model. A token counts for no fused model if
        one of them lacks it, so that an expert and its base always count the same tokens.

        Raises
        ------
        TokenizerMismatchError
            If the models do not go together.
        """
        if tokenizer_map is None:
            pairs = [(models[0].name, other.name, check_same(models[0], other)) for other in models[1:]]
            warn_of_added_tokens(
                pairs,
                "Models exchange ids, so such a token means the same to all; a chat template writes its own model's "
                "names.",
            )
            return cls(common_vocabulary([(one.config, one.tokenizer) for one in models]), [None] * len(models))
        large = models[0]
        size = min(large.config.vocab_size, large.tokenizer.vocab_size)
        maps = [None, *(_map(large, other, size) for other in models[1:])]
        fused = {lanes.lanes[lane].model for pair in lanes.pairs for lane in pair if lane != NO_LANE}
        missing = np.zeros(size, bool)
        for number in fused - {0}:
            found = maps[number]
            assert found is not None
            missing |= found.read < 0
        if missing.any():
            _check_pairs(models, lanes)
        for number, found in enumerate(maps):
            if found is None:
                continue
            if number in fused:
                maps[number] = found = found.without(missing)
            if found.changes_nothing:
                maps[number] = None
            else:
                logger.info(
                    "%s reads and writes the tokens of %s through a map: it has %.1f %% of the ordinary ones",
                    models[number].name,
                    large.name,
                    100 * found.coverage,
                )
        return cls(size, maps)

    def native(self) -> list[_C.TokenMap]:
        """Maps for the step loop; empty if no model has one."""
        if not any(self.maps):
            return []
        return [
            _C.TokenMap() if one is None else _C.TokenMap(one.feed.tolist(), one.read.tolist()) for one in self.maps
        ]


def check_same(large: NamedTokenizer, other: NamedTokenizer) -> list[AddedDifference]:
    """Check that a model has the ids of the large one; return the added tokens that differ."""
    size = min(large.config.vocab_size, other.config.vocab_size)
    try:
        return check_same_tokenizer(large.tokenizer, other.tokenizer, large.name, other.name, size)
    except TokenizerMismatchError as error:
        raise TokenizerMismatchError(f"{error}, or map their tokens by string with tokenizer_map='exact'") from None


def check_tokenizer(large: NamedTokenizer, other: NamedTokenizer, tokenizer_map: str | None) -> None:
    """Check that one model can exchange tokens with the large one.

    Raises
    ------
    TokenizerMismatchError
        If it cannot.
    """
    if tokenizer_map is None:
        check_same(large, other)
    else:
        _map(large, other, min(large.config.vocab_size, large.tokenizer.vocab_size))


def _map(large: NamedTokenizer, other: NamedTokenizer, size: int) -> TokenMap:
    names = large.name, other.name
    return token_map(large.tokenizer, other.tokenizer, names, size, other.config.vocab_size)


def _check_pairs(models: Sequence[NamedTokenizer], lanes: Lanes) -> None:
    """Refuse pairs of which only one side lacks tokens: their difference would be no number that means something."""
    for pair in lanes.pairs:
        large = [lane is None or lane < 0 or lanes.lanes[lane].model == 0 for lane in pair]
        if any(large) and not all(large):
            number = lanes.lanes[pair[large.index(False)]].model
            raise TokenizerMismatchError(
                f"{models[number].name} lacks tokens of {models[0].name}, and is fused with the large model or without "
                "a base: give it a base with its own tokenizer"
            )
