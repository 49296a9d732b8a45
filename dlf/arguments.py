"""Checks of a caller's arguments, before anything is loaded or queued."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from dlf.checkpoints.config import ModelConfig
from dlf.errors import OptionError, OptionTypeError, PromptError, TokenizerMismatchError
from dlf.sampling import SamplingOptions
from dlf.support.option_values import MAX_INT, as_int
from dlf.text.chat_options import PLAIN_CHAT, ChatOptions
from dlf.text.layout import Messages, as_messages
from dlf.text.tokenizer import Tokenizer

__all__ = [
    "Path",
    "Prompt",
    "as_list",
    "as_prompts",
    "machine_bytes",
    "chosen_experts",
    "common_vocabulary",
    "context",
    "prefix_bytes",
    "sampling_options",
    "token_ids",
]

Path: TypeAlias = str | os.PathLike[str]
Prompt: TypeAlias = "str | Sequence[int]"

DEFAULT_CONTEXT = 4096


def prefix_bytes(size: int) -> int:
    """Check the bytes of a prefix cache: no more than the machine has."""
    have = machine_bytes()
    return as_int("prefix_cache_bytes", size, 0, MAX_INT if have is None else have)


def machine_bytes() -> int | None:
    """Bytes of memory of this machine; None if unknown."""
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def chosen_experts(names: Sequence[str] | None, labels: Sequence[str]) -> list[int]:
    """Numbers of the experts with these names, in rising order; of all experts for None."""
    if names is None:
        return list(range(len(labels)))
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise OptionTypeError("experts must be a list of names; [] lets the large model decode alone", "experts")
    found = set()
    for name in names:
        if labels.count(name) != 1:
            several = "no expert is" if name not in labels else f"{labels.count(name)} experts are"
            raise OptionError(f"{several} called {name!r}; there are: {', '.join(labels) or 'none'}", "experts")
        found.add(labels.index(name))
    return sorted(found)


def as_prompts(
    prompt: Any, messages: Any = None, chat: ChatOptions = PLAIN_CHAT
) -> tuple[Sequence[Prompt] | Sequence[Messages], bool]:
    """The prompts or conversations, and whether there was a single one rather than a list."""
    if (prompt is None) == (messages is None):
        raise TypeError("give a prompt or messages, one of the two")
    if messages is not None:
        return as_messages(messages, chat)
    if isinstance(prompt, str):
        return [prompt], True
    tokens = token_ids(prompt)
    if tokens is not None and (tokens or not isinstance(prompt, (list, tuple))):
        return [tokens], True
    prompts = as_list(prompt)
    if prompts is None:
        raise TypeError(f"a prompt is text or token ids, or a list of such, not {type(prompt).__name__}")
    if not prompts:
        raise PromptError("there is no prompt; give text or token ids, or a list of such")
    found: list[Prompt] = []
    for one in prompts:
        ids = one if isinstance(one, str) else token_ids(one)
        if ids is None:
            raise TypeError("each prompt must be a string or a list of token ids")
        found.append(ids)
    return found, False


def as_list(value: Any) -> list[Any] | None:
    """Elements of a list or a tuple, or rows of an array or a tensor; None for anything else."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return list(value) if value.ndim else None
    return list(value) if isinstance(value, (list, tuple)) else None


def token_ids(value: Any) -> list[int] | None:
    """Token ids in a list or tuple of integers, also NumPy's, or in an array or tensor; None for anything else."""
    if isinstance(value, torch.Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        return value.tolist() if whole and value.ndim == 1 else None
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "iu" and value.ndim == 1 else None
    if not isinstance(value, (list, tuple)):
        return None
    if all(type(token) is int for token in value):
        return list(value)
    found = []
    for token in value:
        if isinstance(token, (bool, np.bool_)) or isinstance(token, (np.ndarray, torch.Tensor)) and token.ndim:
            return None
        try:
            found.append(operator.index(token))
        except TypeError:
            return None
    return found


def sampling_options(options: Mapping[str, Any]) -> SamplingOptions:
    """The options of a request; an unknown name is an error that lists the known ones."""
    unknown = sorted(options.keys() - SamplingOptions.__dataclass_fields__.keys())
    if unknown:
        raise OptionTypeError(
            f"no option is called {unknown[0]!r}; there are: {', '.join(SamplingOptions.__dataclass_fields__)}",
            unknown[0],
        )
    return SamplingOptions(**options)


def common_vocabulary(models: Sequence[tuple[ModelConfig, Tokenizer]]) -> int:
    """Number of token ids in use: all logits of a single model; of several, the tokens that every tokenizer has."""
    size = min(config.vocab_size for config, _ in models)
    if len(models) > 1:
        size = min(size, *(tokenizer.vocab_size for _, tokenizer in models))
    if size < 2:
        raise TokenizerMismatchError("the models share fewer than two tokens; fuse models of one family")
    return size


def context(max_context: int | None, trained: int, short: Sequence[int | None] = ()) -> int:
    """Tokens of prompt and completion together, at most the `trained` ones, which all models can read.

    The default also stays within the `short` contexts: beyond them a model has other frequencies for every text.
    """
    if max_context is None:
        return min(trained, DEFAULT_CONTEXT, *(one for one in short if one is not None))
    if isinstance(max_context, bool) or not isinstance(max_context, int):
        raise OptionTypeError(f"max_context must be an integer, not {max_context!r}", "max_context")
    if not 2 <= max_context <= trained:
        raise OptionError(
            f"max_context is {max_context}; the models were made for 2 to {trained} tokens", "max_context"
        )
    return max_context
