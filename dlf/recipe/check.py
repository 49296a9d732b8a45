"""Checks that the models of a recipe exist and go together, without loading one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dlf import _C
from dlf.adapters.adapter import AdapterFile
from dlf.arguments import context
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.precision import Precision
from dlf.checkpoints.source import open_source
from dlf.devices import Placement
from dlf.errors import field_of
from dlf.experts import AnyExpert, Expert, Lora, TaskArithmetic, WholeExpert, as_expert, checkpoints_of
from dlf.lanes import Lanes
from dlf.memory import bytes_by_device, model_bytes
from dlf.options import EngineOptions
from dlf.recipe.engine_recipe import EngineRecipe
from dlf.recipe.yaml_file import Keys
from dlf.sampling import SamplingOptions
from dlf.text.layout import CHAT
from dlf.text.tokenizer import Tokenizer
from dlf.vocabulary import NamedTokenizer, Vocabulary, check_tokenizer

__all__ = ["Checked", "check_recipe"]


@dataclass
class Checked:
    """The result of a check.

    Attributes
    ----------
    problems
        Problems with models and options, each with file, line and field.
    weights_bytes, cache_bytes
        Bytes of the models' weights, without adapters, and of the KV cache, as in `Engine.memory`; None if there are
        problems.
    devices
        Bytes of weights and of KV cache on each CUDA device; empty on the CPU.
    max_context
        Tokens of prompt and completion together.
    """

    problems: list[str] = field(default_factory=list)
    weights_bytes: int | None = None
    cache_bytes: int | None = None
    devices: dict[str, tuple[int, int]] = field(default_factory=dict)
    max_context: int | None = None


def check_recipe(recipe: EngineRecipe) -> Checked:
    """Check every model of a recipe.

    From the hub only configurations and tokenizers are fetched, but adapters completely.
    """
    return _Checker(recipe).run()


class _Checker:
    def __init__(self, recipe: EngineRecipe) -> None:
        self.recipe = recipe
        self.found = Checked()
        self.models: dict[str, tuple[ModelConfig, Tokenizer] | None] = {}  # None: a problem was reported

    def run(self) -> Checked:
        self._check_devices()
        for keys, name in self._checkpoints():
            if name not in self.models:
                self.models[name] = None
                self._try(keys, self._look, name)
        for number, expert in enumerate(self.recipe.experts):
            keys = ("experts", number)
            if isinstance(expert, Lora) and self.models[str(expert.base)]:
                self._try((*keys, "adapter"), self._adapter, expert)
            elif isinstance(expert, TaskArithmetic) and all(
                self.models[str(name)] and _is_here(str(name)) for name in (expert.base, *expert.experts)
            ):
                self._try((*keys, "merge"), lambda expert: expert.open().check(), expert)
        if not self.found.problems:
            self._check_lanes()
        return self.found

    def _checkpoints(self) -> Iterator[tuple[Keys, str]]:
        """Yield every checkpoint, with its keys in the recipe."""
        recipe = self.recipe
        yield ("large",), recipe.large
        if recipe.base is not None:
            yield ("base",), recipe.base
        for number, expert in enumerate(recipe.experts):
            for name, places in checkpoints_of(expert).items():
                for place in places:
                    yield ("experts", number, self._written(number, name)), str(place)
        if recipe.options.get("drafter") is not None:
            yield ("engine", "drafter"), str(recipe.options["drafter"])

    def _written(self, number: int, field: str) -> str:
        """Key of an expert's field in the recipe."""
        other = {"model": ("guidance", "amateur"), "experts": ("merge",)}.get(field, ())
        return next((key for key in other if ("experts", number, key) in self.recipe.lines), field)

    def _look(self, name: str) -> None:
        source = open_source(name, weights=False)
        config = source.config if _is_here(name) else source.declared
        tokenizer = source.tokenizer()
        large = self.models[self.recipe.large]
        if large:
            check_tokenizer(
                NamedTokenizer(self.recipe.large, *large),
                NamedTokenizer(name, config, tokenizer),
                self.recipe.options.get("tokenizer_map"),
            )
        self.models[name] = config, tokenizer

    def _adapter(self, expert: Lora) -> None:
        known = self.models[str(expert.base)]
        assert known
        file = AdapterFile(expert.adapter)
        if not expert.merge:
            file.check_low_rank()
        file.read(known[0])
        file.read_tables(known[0])

    def _check_devices(self) -> None:
        """Check that the options can run on some machine, which need not be this one."""
        options = self.recipe.options
        device, device_map = options.get("device", "cpu"), options.get("device_map")
        placement = self._try(("engine", "device_map"), Placement.named, device, device_map)
        if placement is None:
            return
        self._try(("engine", "max_batch"), placement.check_batch, options.get("max_batch", 1))
        dtype, weights = options.get("dtype", "auto"), options.get("weights")
        own = [(("experts", i, "weights"), one.weights) for i, one in enumerate(self.recipe.experts) if one.weights]
        for keys, what in ((("engine", "dtype" if weights is None else "weights"), weights), *own):
            self._try(keys, placement.check_dtype, Precision.of(dtype, what).dtype)

    def _check_lanes(self) -> None:
        """Check templates and the context as the engine does, and add up the memory."""
        recipe, options = self.recipe, self.recipe.options
        dtype, weights = options.get("dtype", "auto"), options.get("weights")
        experts = [self._unmerged(i, as_expert(one, recipe.base, weights)) for i, one in enumerate(recipe.experts)]
        lanes = Lanes.of(recipe.large, experts, dtype, weights, recipe.template, options.get("drafter"))
        names = [str(name) for name, _ in lanes.models]
        models = [known for name in names if (known := self.models[name])]
        named = [NamedTokenizer(name, *known) for name, known in zip(names, models, strict=True)]
        vocabulary = self._try(("experts",), Vocabulary.of, named, lanes, options.get("tokenizer_map"))
        if vocabulary is None:
            return
        for i, lane in enumerate(lanes.lanes):
            name, tokenizer = lanes.models[lane.model][0], models[lane.model][1]
            if lane.layout.template == CHAT and not tokenizer.has_chat_template:
                keys = self._template_keys(i, lanes)
                self._add(
                    keys,
                    f"{name} has no chat template to read; give it a template of its own, for example "
                    'base_template: "{prompt}" for the base of a chat expert',
                )
        trained = min(config.context_length for config, _ in models)
        short = [config.short_context for config, _ in models]
        length = self._try(("engine", "max_context"), context, options.get("max_context"), trained, short)
        if length is None or self.found.problems:
            return
        self._check_examples(lanes, length, trained)
        self._check_tokens(vocabulary.size)
        if self.found.problems:
            return
        placement = Placement.named(options.get("device", "cpu"), options.get("device_map"))
        native = _C.EngineOptions(
            options.get("max_batch", EngineOptions.max_batch),
            length,
            kv_cache_bytes=options.get("kv_cache_bytes", EngineOptions.kv_cache_bytes),
            devices=placement.devices(len(models)),
            split=placement.split,
        )
        configs = [config for config, _ in models]
        sizes = model_bytes(lanes, configs, lanes.plan(vocabulary.size), native, placement.cuda)
        if placement.cuda:
            devices = self._try(("engine", "device_map"), bytes_by_device, configs, sizes, placement)
            if devices is None:
                return
            self.found.devices = devices
        weights_of, caches = zip(*sizes, strict=True)
        self.found.weights_bytes, self.found.cache_bytes = sum(weights_of), sum(caches)
        self.found.max_context = length

    def _check_examples(self, lanes: Lanes, length: int, trained: int) -> None:
        for number, (own, _) in enumerate(lanes.pairs):
            lane = lanes.lanes[own]
            known = self.models[str(lanes.models[lane.model][0])]
            assert known
            count = len(lane.layout.examples)
            # The shortest prompt that is not empty; a longer one leaves less room.
            fit = lane.layout.fitting(".", known[1], length) if count else None
            if fit is not None and fit < count:
                more = f", or raise max_context, up to {trained}" if trained > length else ""
                self._add(
                    self._examples_keys(number),
                    f"{fit} of {count} examples fit the context of {length} tokens beside a prompt; give fewer{more}",
                )

    def _examples_keys(self, number: int) -> Keys:
        ways = (("experts", number, name) for name in ("examples", "examples_file"))
        return next(keys for keys in ways if keys in self.recipe.lines)

    def _check_tokens(self, vocabulary: int) -> None:
        sampling = self.recipe.sampling
        try:
            _C.Sampler(SamplingOptions(**sampling).build(), vocabulary)
        except ValueError as error:
            field = field_of(error)
            self._add(("sampling", field) if field in sampling else ("sampling",), str(error))

    def _unmerged(self, number: int, expert: AnyExpert) -> WholeExpert:
        """Replace an expert that will be merged by a model with the shapes and the tokenizer of its base."""
        if not isinstance(expert, TaskArithmetic) and not (isinstance(expert, Lora) and expert.merge):
            return expert
        name = f"experts[{number}], merged"
        self.models[name] = self.models[str(expert.base)]
        return Expert(name, expert.base, None, expert.weights, expert.template, expert.base_template)

    def _template_keys(self, lane: int, lanes: Lanes) -> Keys:
        """Keys of a lane's template in the recipe."""
        for number, pair in enumerate(lanes.pairs):
            for name, own in zip(("template", "base_template"), pair, strict=True):
                if own == lane and ("experts", number, name) in self.recipe.lines:
                    return "experts", number, name
        return ("template",)

    def _try(self, keys: Keys, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ValueError, OSError, NotImplementedError) as error:
            self._add(keys, str(error))
            return None

    def _add(self, keys: Keys, message: str) -> None:
        problem = self.recipe.problem(keys, message)
        if problem not in self.found.problems:
            self.found.problems.append(problem)


def _is_here(name: str) -> bool:
    """Whether a checkpoint is a folder or file, with its weights; weights on the hub are not fetched."""
    return os.path.exists(os.path.expanduser(name))
