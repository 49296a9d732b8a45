"""The models of an engine, loaded and checked against each other, and the step loop that runs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from dlf import _C
from dlf.adapters.adapter import load_adapter
from dlf.arguments import context
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.precision import TORCH_DTYPES, Precision
from dlf.checkpoints.source import open_checkpoint
from dlf.errors import OptionError, field_of
from dlf.experts import AnyExpert, Guidance
from dlf.experts.merged import merged_experts
from dlf.grammar_mask import GrammarTokens
from dlf.lanes import Lanes, ModelKey
from dlf.memory import Memory, check_memory, plan_memory
from dlf.model import Model, load_model
from dlf.options import EngineOptions
from dlf.rule import UNSAID, Rule, native_rule
from dlf.shared_models import SharedModels
from dlf.text.layout import CHAT
from dlf.text.tokenizer import Tokenizer
from dlf.vocabulary import NamedTokenizer, Vocabulary

__all__ = ["Ensemble"]


@dataclass
class Ensemble:
    """A large model and its experts, ready to run.

    Attributes
    ----------
    experts
        The engine's experts, with its defaults filled in.
    lanes, models
        The contexts of a sequence, and the loaded models that they run on.
    adapters
        Loaded adapters of each model.
    memory
        Memory that it takes, as planned before the models were loaded.
    tokenizer
        Tokenizer of the large model.
    vocabulary
        Token ids of prompts and results, and how each model's own ids follow from them.
    max_context, trained_context
        Tokens of prompt and completion together: the engine's limit, and the models'.
    shared
        Finds the models and adapters that this and other engines have.
    """

    options: EngineOptions
    experts: list[AnyExpert]
    lanes: Lanes
    models: list[Model]
    adapters: list[list[_C.Adapter]]
    memory: Memory
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    max_context: int
    trained_context: int
    shared: SharedModels

    @classmethod
    def load(cls, options: EngineOptions, experts: Sequence[AnyExpert], known: Ensemble | None = None) -> Ensemble:
        """Load the models, except those that `known`, which this one replaces, or other engines share already.

        Raises
        ------
        FileNotFoundError, CheckpointError, TokenizerMismatchError, ValueError, MemoryError
            As for `dlf.Engine`.
        """
        dtype, weights, placement = options.dtype, options.weights, options.placement
        # Impossible options should not cost the loading of a large model.
        _check_experts(options, experts)
        shared = known.shared if known else options.models or SharedModels()
        with merged_experts(experts) as whole, shared.loading:
            lanes = Lanes.of(options.large, whole, dtype, weights, options.template, options.drafter)
            keys = [(key, placement.cuda) for key in lanes.keys]
            have = {key: model for key in keys if (model := shared.find(key)) is not None}
            found = {
                key: open_checkpoint(name) for key, (name, _) in zip(keys, lanes.models, strict=True) if key not in have
            }
            configs = [have[key].config if key in have else found[key].config for key in keys]
            trained = min(config.context_length for config in configs)
            max_context = context(options.max_context, trained, [config.short_context for config in configs])
            adapters = [
                [shared.adapter(key, name, partial(_load_adapter, name, config, *key)) for name in names]
                for key, config, names in zip(keys, configs, lanes.adapters, strict=True)
            ]
            named = [
                NamedTokenizer(os.fspath(name), config, have[key].tokenizer if key in have else found[key].tokenizer())
                for key, (name, _), config in zip(keys, lanes.models, configs, strict=True)
            ]
            vocabulary = Vocabulary.of(named, lanes, options.tokenizer_map)
            memory = plan_memory(
                options,
                lanes,
                configs,
                [sum(adapter.nbytes for adapter in of_model) for of_model in adapters],
                max_context,
                lanes.plan(vocabulary.size, vocabulary.native()),
                given_up=known.memory if known else None,
            )
            check_memory(memory, options.max_batch, max_context)
            models = [
                have[key]
                if key in have
                else shared.add(key, load_model(name, dtype, weights, placement.cuda, found[key], one.tokenizer))
                for key, (name, weights), one in zip(keys, lanes.models, named, strict=True)
            ]
        for lane in lanes.lanes:
            model = models[lane.model]
            if lane.layout.template == CHAT and not model.tokenizer.has_chat_template:
                raise OptionError(
                    f"{model.name} has no chat template to read; give it a template of its own, for "
                    'example base_template="{prompt}" for the base of a chat expert',
                    "template",
                )
        return cls(
            options,
            list(experts),
            lanes,
            models,
            adapters,
            memory,
            models[0].tokenizer,
            vocabulary,
            max_context,
            trained,
            shared,
        )

    @property
    def vocab_size(self) -> int:
        """Number of token ids of prompts and results."""
        return self.vocabulary.size

    @property
    def labels(self) -> list[str]:
        """Names of the experts."""
        return [expert.label for expert in self.experts]

    def rule(self, wanted: Rule, names: Sequence[str] | None, chosen: Sequence[int]) -> _C.Rule:
        """Rule for the solver of a request that fuses the `chosen` experts; `names` is the request's order, if any.

        Raises
        ------
        OptionError, OptionTypeError
            If the rule does not fit these experts.
        """
        order = chosen if names is None else [self.labels.index(name) for name in dict.fromkeys(names)]
        return native_rule(wanted, self._own_rule, self.labels, order)

    @cached_property
    def grammar_tokens(self) -> GrammarTokens:
        """The large model's tokens for grammars."""
        return GrammarTokens(self.tokenizer, self.vocab_size)

    @cached_property
    def _own_rule(self) -> Rule:
        return self.options.rule_of(self.experts)

    def loop(self) -> _C.StepLoop:
        """Return a step loop on these models, with caches of its own."""
        weights = [model.weights for model in self.models]
        options = self.options.native(self.max_context, len(weights))
        return _C.StepLoop(weights, self.lanes.plan(self.vocab_size, self.vocabulary.native()), options, self.adapters)


def _load_adapter(name: str, config: ModelConfig, key: ModelKey, cuda: bool) -> Any:
    return load_adapter(name, config, TORCH_DTYPES[key[1].float_dtype(config.dtype, cuda)])


def _check_experts(options: EngineOptions, experts: Sequence[AnyExpert]) -> None:
    if len(experts) > _C.MAX_EXPERTS:
        raise OptionError(f"{len(experts)} experts; at most {_C.MAX_EXPERTS} can be fused", "experts")
    for expert in experts:
        try:
            options.placement.check_dtype(Precision.of(options.dtype, expert.weights).dtype)
        except ValueError as error:
            raise OptionError(f"expert '{expert.label}': {error}", field_of(error)) from None
    guides = [expert.label for expert in experts if isinstance(expert, Guidance)]
    for name in guides:
        if guides.count(name) > 1:
            raise OptionError(f"several dlf.Guidance are called {name!r}; give each a name", "experts")
    if experts:
        native_rule(UNSAID, options.rule_of(experts), [], range(len(experts)))  # raises
