"""Maps the token ids of a large model to those of a small one, by the tokens' strings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlf.errors import TokenizerMismatchError
from dlf.text.tokenizer import Tokenizer

__all__ = ["LEAST_COVERAGE", "TokenMap", "token_map"]

LEAST_COVERAGE = 0.5
"""Share of the large model's ordinary tokens that must have a partner. With less, the tokenizers spell in other
alphabets (bytes, or sentencepiece's characters), and the strings that they share need not mean the same text."""

NONE = -1


@dataclass(frozen=True)
class TokenMap:
    """Ids of a small model by token of the large one.

    Attributes
    ----------
    feed : int32 [vocab]
        Id that the small model reads in place of each token.
    read : int32 [vocab]
        Id whose logit stands for each token, or -1 if the token has no partner.
    coverage
        Share of the large model's ordinary tokens that have a partner.
    """

    feed: NDArray[np.int32]
    read: NDArray[np.int32]
    coverage: float

    @property
    def has_all(self) -> bool:
        """Whether every token has a partner."""
        return bool((self.read != NONE).all())

    @property
    def changes_nothing(self) -> bool:
        """Whether both models have the same ids."""
        return bool((self.read == np.arange(len(self.read))).all())

    def without(self, missing: NDArray[np.bool_]) -> TokenMap:
        """Return the map that reads no logit of these tokens; they are fed as before."""
        return TokenMap(self.feed, np.where(missing, np.int32(NONE), self.read), self.coverage)


def token_map(large: Tokenizer, small: Tokenizer, names: tuple[str, str], vocab: int, small_vocab: int) -> TokenMap:
    """Map tokens to partners: the token of the small tokenizer with the same string, byte for byte.

    An ordinary token has an ordinary partner, an added token an added one. A token without partner is fed as the small
    tokenizer's unknown token or, if it has none, as the first token of what it makes of the token's text.

    Parameters
    ----------
    large, small
        The tokenizers.
    names
        Their models, for errors.
    vocab, small_vocab
        Ids of each model that are used.

    Raises
    ------
    TokenizerMismatchError
        If less than `LEAST_COVERAGE` of the large model's ordinary tokens have a partner.
    """
    read = np.full(vocab, NONE, np.int32)
    feed = np.zeros(vocab, np.int32)
    ordinary = partners = 0
    alone = []
    for token, token_id in large.vocab.items():
        if token_id >= vocab:
            continue
        added = token_id in large.added_ids
        ordinary += not added
        partner = small.vocab.get(token, small_vocab)
        if partner < small_vocab and (partner in small.added_ids) == added:
            read[token_id] = feed[token_id] = partner
            partners += not added
        else:
            alone.append(token_id)
    coverage = partners / ordinary if ordinary else 0.0
    if coverage < LEAST_COVERAGE:
        raise TokenizerMismatchError(
            f"{100 * coverage:.1f} % of the ordinary tokens of {names[0]} are in the vocabulary of {names[1]}, less "
            f"than the {100 * LEAST_COVERAGE:.0f} % that tokenizer_map='exact' needs; fuse models of one family"
        )
    for token_id in alone:
        feed[token_id] = _stand_in(large, small, token_id, small_vocab)
    return TokenMap(feed, read, coverage)


def _stand_in(large: Tokenizer, small: Tokenizer, token_id: int, small_vocab: int) -> int:
    """Id that a model reads in place of a token that it lacks."""
    if small.unk_token_id is not None and small.unk_token_id < small_vocab:
        return small.unk_token_id
    text = large.decode([token_id], skip_special_tokens=False)
    found = small.encode(text, add_special_tokens=False)
    return found[0] if found and found[0] < small_vocab else 0
