"""Compares the tokenizers of models that exchange token ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from dlf.errors import TokenizerMismatchError
from dlf.text.tokenizer import Tokenizer

__all__ = ["AddedDifference", "check_same_tokenizer", "warn_of_added_tokens"]

SHOWN = 16  # differing added tokens of a pair that a warning names


@dataclass(frozen=True)
class AddedDifference:
    """An id whose added token has another name in each of two tokenizers; None: that tokenizer has no such id."""

    token_id: int
    name_a: str | None
    name_b: str | None


def check_same_tokenizer(
    a: Tokenizer, b: Tokenizer, name_a: str, name_b: str, size: int | None = None
) -> list[AddedDifference]:
    """Check that two tokenizers agree on what an id means, so that their models can exchange ids.

    An ordinary token that both have must have the same id, and an id that is an ordinary token in one must not be
    another token in the other; one tokenizer may have more tokens at the end. An added token, such as
    ``<|im_start|>``, may have another name under its id, or be missing: fine-tuned models rename the ones they need. It
    may not have another id.

    Parameters
    ----------
    a, b
        The tokenizers.
    name_a, name_b
        Their models, for errors.
    size
        Ids that the logits of both models have. A token beyond them, such as one for padding, is never read or
        written, and may differ.

    Returns
    -------
    list of AddedDifference
        Added tokens that were renamed, or that one of them lacks, by rising id.

    Raises
    ------
    TokenizerMismatchError
        Naming the first ids that differ, and how many do.
    """
    vocab_a, vocab_b = a.vocab, b.vocab
    if vocab_a == vocab_b:
        return []
    if size is not None:
        vocab_a, vocab_b = ({token: i for token, i in vocab.items() if i < size} for vocab in (vocab_a, vocab_b))
    tokens_b = {token_id: token for token, token_id in vocab_b.items()}
    differing, added, shared = [], [], 0
    for token, token_id in vocab_a.items():
        other, other_id = tokens_b.get(token_id), vocab_b.get(token)
        shared += other is not None
        moved = other_id not in (None, token_id) or (other is not None and vocab_a.get(other, token_id) != token_id)
        renamed = token_id in a.added_ids and (other is None or token_id in b.added_ids)
        if moved or (other not in (None, token) and not renamed):
            differing.append((token_id, token, other, other_id))
        elif other != token and renamed:
            added.append(AddedDifference(token_id, token, other))
    if differing or not shared:
        raise _mismatch(sorted(differing, key=lambda one: one[0]), (len(vocab_a), len(vocab_b)), name_a, name_b)
    ids_a = set(vocab_a.values())
    added += [AddedDifference(i, None, tokens_b[i]) for i in b.added_ids & tokens_b.keys() - ids_a]
    return sorted(added, key=lambda one: one.token_id)


def warn_of_added_tokens(pairs: Sequence[tuple[str, str, Sequence[AddedDifference]]], what: str) -> None:
    """Warn once of all added tokens that differ between pairs of models; say nothing if none does.

    Parameters
    ----------
    pairs
        Names of two models, and their differences.
    what
        What the caller makes of an id whose names differ.
    """
    told = [_told(name_a, name_b, found) for name_a, name_b, found in pairs if found]
    if told:
        warnings.warn(f"{'; '.join(told)}. {what}", RuntimeWarning, stacklevel=3)


def _told(name_a: str, name_b: str, found: Sequence[AddedDifference]) -> str:
    listed = [f"{one.token_id} is {_named(one.name_a)} and {_named(one.name_b)}" for one in found[:SHOWN]]
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{name_a} and {name_b} have different added tokens: {', '.join(listed)}{more}"


def _named(token: str | None) -> str:
    return "missing" if token is None else f"{token!r:.40}"


def _mismatch(
    differing: list[tuple[int, str, str | None, int | None]], sizes: tuple[int, int], name_a: str, name_b: str
) -> TokenizerMismatchError:
    examples = "; ".join(
        f"{token_id} is {token!r:.40} in {name_a}, "
        + (f"{other!r:.40} in {name_b}" if other is not None else f"which has the id {other_id} in {name_b}")
        for token_id, token, other, other_id in differing[:3]
    )
    return TokenizerMismatchError(
        f"{name_a} and {name_b} do not share a tokenizer: {len(differing)} of {sizes[0]} and {sizes[1]} tokens "
        f"differ ({examples}); fuse models of one family"
    )
