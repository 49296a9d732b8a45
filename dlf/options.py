"""The options of an engine: the one list from which `Engine`, recipes and the command line take theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import torch

from dlf import _C
from dlf.arguments import Path, prefix_bytes, sampling_options
from dlf.checkpoints.precision import DTYPES, WEIGHTS, Precision
from dlf.devices import DeviceMap, Placement
from dlf.errors import OptionError, OptionTypeError
from dlf.experts import EXPERTS, AnyExpert, as_expert, with_weights
from dlf.rule import Rule
from dlf.shared_models import SharedModels
from dlf.speculation import Speculate, as_speculation
from dlf.support.option import Option, options_of
from dlf.support.option_values import MAX_INT, MAX_THREADS, as_flag, as_float, as_int, shown
from dlf.text.layout import Layout

__all__ = ["COMBINE", "MATCH", "EngineOptions"]

TOKENIZER_MAPS = ("exact",)
COMBINE, MATCH, GATES = _C.COMBINES, _C.MATCHES, _C.GATES
FUSION, MACHINE = "fusion", "engine"  # sections of a recipe


@dataclass(frozen=True)
class EngineOptions:
    """The arguments of `Engine` and `AsyncEngine`, checked as far as that reads no file.

    Parameters
    ----------
    large : str or path
        Folder in Hugging Face format, or hub id, of the large model.
    experts : sequence of Expert, InContext, Lora, TaskArithmetic, Guidance, Amateur, str or path
        At most 16; a plain string takes `base`, a `TaskArithmetic` is merged first. Without experts the large model
        decodes alone. Experts of all kinds can be mixed; those that share weights run in one batch.
    base : str or path, optional
        Base of the experts that do not name their own.
    template : str, optional
        How a prompt is written for the large model, and for the experts and bases that have no template of their own:
        ``"chat"`` for each model's chat template, a text with ``{prompt}`` where the prompt goes, or a text with
        ``{question}`` and ``{answer}``, which is also the form of examples. By default prompts are read as they are,
        and messages in the chat template of each model that has one.
    combine : {"select", "centroid", "joint", "static", "grid", "jsd", "certainty"}
        How several experts are combined; see `dlf.fusion.solve`. The options from this one to `gate_threshold` are the
        rule of requests that have no other; see `dlf.Rule`.
    match : {"symmetric", "forward", "reverse"}
        Which divergences are matched.
    alpha : sequence of float or None, optional
        Given weights, one for each expert, for ``combine="static"``; with any other `combine` None stands for an expert
        whose weight is solved. An expert may have its own instead.
    alpha_max : float
        Upper bound of a solved weight, for experts without their own.
    mix : sequence of float or None, optional
        Shares, one for each expert, of experts whose probabilities are mixed in; None for one that is added to the
        logits. An expert may have its own instead.
    large_weight : float
        Coefficient of the large model's logits.
    plausibility : float
        Excludes tokens whose probability by the large model is below this share of its largest; 0 excludes none.
    gate : {"none", "entropy", "top_prob", "disagree"}
        Where the experts take part.
    gate_threshold : float
        Threshold of the gate: nats for ``"entropy"``, a probability for ``"top_prob"``.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Type of the weights and of the KV cache; ``"auto"`` keeps each file's. ``"float16"`` is for CUDA devices.
    weights : {"fp32", "bf16", "fp16", "int8", "int4", "int4-g64"}, optional
        Type of the weights if it differs from `dtype`, which then holds for the embedding and the KV cache.
        ``"int8"`` and ``"int4"`` quantize the linear layers when they are first loaded and keep the result on disk (in
        ``~/.cache/dlf``, see docs/guide/quantization.md); ``"int8"`` has a scale for each output channel, ``"int4"``
        one for each 32 inputs, ``"int4-g64"`` one for each 64, which is less exact and, where layers have a multiple of
        64 inputs, smaller. ``"fp32"``, ``"bf16"`` and ``"fp16"`` are the same as `dtype`. An `Expert` may have its own;
        a base used in two types is loaded in both.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:0"``, ``"cuda:1"``, ...
    device_map : mapping, optional
        Devices of the ``"large"`` model and of the ``"experts"`` with their bases, if they differ:
        ``{"large": "cuda:0", "experts": "cuda:1"}``. A list of devices splits the large model over them:
        ``{"large": ["cuda:0", "cuda:1"], "experts": "cuda:0"}``, see docs/guide/gpu.md.
    cuda_graph : bool
        Whether a decode step on CUDA is captured once for each size of batch and replayed as one launch. If not, the
        same kernels are launched one by one, which is slower but easier to profile.
    threads : int, optional
        Threads of a decode step on the CPU; by default the physical cores.
    max_batch : int
        Sequences that decode side by side; further ones wait. At most 256 on CUDA.
    max_context : int, optional
        Tokens of prompt and completion together; by default what all models were made for, at most 4096. A model with
        two lists of rotary frequencies (``longrope``) takes the long one for every text if this is beyond its original
        length; the default is not.
    prompt_budget : int
        Tokens of prompts that a step reads while other requests decode; 0 is one chunk: 256 tokens on the CPU, or 64 if
        all models are quantized and have no routed experts, and 512 on CUDA. With more, prompts begin sooner, and
        running requests wait longer between two tokens. The results are bit-identical.
    prefix_cache_bytes : int
        Memory for common beginnings of prompts, such as examples or a system message, which are then read once. The
        least recently used are dropped first; 0 reads every prompt anew. The results are bit-identical.
    kv_cache_bytes : int
        Memory for the KV caches of all models together, the prefix cache included; by default (0) it holds `max_batch`
        requests of `max_context` tokens beside the prefix cache. With less, requests take it as their texts grow: where
        none is left, the last one in turn is put back, and later goes on with the same result.
    tokenizer_map : {"exact"}, optional
        How the models' token ids are matched. By default they must be the same. ``"exact"`` maps the ids of small
        models by the tokens' strings: a token that one of them lacks keeps the large model's logit. It does not help
        where two tokenizers split a text into other tokens; see docs/guide/tokenizers.md.
    defaults : mapping, optional
        Sampling options of requests that do not set them.
    speculate : {"auto", False} or Speculation
        Whether a small model drafts tokens that are then verified together, which changes the speed and nothing else;
        ``"auto"`` drafts where that is expected to be faster.
    drafter : str or path, optional
        A small model with the same tokenizer that is not fused and only drafts. Experts can draft without it.
    models : SharedModels, optional
        Shares loaded checkpoints with the other engines that are made with it.

    Raises
    ------
    OptionError, OptionTypeError
        If an option is impossible: a ValueError or a TypeError with its name as `field`.
    DeviceError
        If there is no such device; a RuntimeError.
    """

    large: Path
    experts: Sequence[AnyExpert | Path] = ()
    _: KW_ONLY
    base: Path | None = None
    template: Annotated[str | None, Option("chat, or a text with {prompt} in it.", flag="")] = None
    combine: Annotated[str, Option("How several experts are combined.", COMBINE, section=FUSION, flag="")] = "select"
    match: Annotated[str, Option("Which divergences are matched.", MATCH, section=FUSION, flag="")] = "symmetric"
    alpha: Annotated[
        Sequence[float | None] | None, Option("Weight of each expert, for static.", section=FUSION, flag="", each=float)
    ] = None
    alpha_max: Annotated[float, Option("Upper bound of a solved weight.", section=FUSION, flag="")] = 2.0
    mix: Annotated[
        Sequence[float | None] | None,
        Option("Share of each expert whose probabilities are mixed in.", section=FUSION, flag="", each=float),
    ] = None
    large_weight: Annotated[float, Option("Coefficient of the large model's logits.", section=FUSION, flag="")] = 1.0
    plausibility: Annotated[
        float, Option("Least probability of a token, as a share of the largest.", section=FUSION, flag="")
    ] = 0.0
    gate: Annotated[str, Option("Where the experts take part.", GATES, section=FUSION, flag="")] = "none"
    gate_threshold: Annotated[float, Option("Threshold of the gate.", section=FUSION, flag="")] = 0.0
    dtype: Annotated[str, Option("Type of weights and KV cache.", ("auto", *DTYPES), section=MACHINE, flag="")] = "auto"
    weights: Annotated[
        str | None, Option("Type of the weights; by default dtype's.", WEIGHTS, section=MACHINE, flag="")
    ] = None
    device: Annotated[str, Option("cpu, cuda or cuda:0, cuda:1, ...", section=MACHINE, flag="")] = "cpu"
    device_map: Annotated[
        DeviceMap | None, Option("Devices of the large model and of the experts.", section=MACHINE)
    ] = None
    cuda_graph: Annotated[bool, Option("Launch a step on CUDA as one graph.", section=MACHINE)] = True
    threads: Annotated[
        int | None, Option("Threads of a decode step on the CPU.", least=1, most=MAX_THREADS, section=MACHINE, flag="")
    ] = None
    max_batch: Annotated[int, Option("Sequences that decode side by side.", least=1, most=1024, section=MACHINE)] = 8
    max_context: Annotated[
        int | None, Option("Tokens of prompt and completion together.", least=2, section=MACHINE, flag="")
    ] = None
    prompt_budget: Annotated[
        int, Option("Tokens of prompts that a step reads beside decoding; 0: one chunk.", least=0, section=MACHINE)
    ] = 0
    prefix_cache_bytes: Annotated[
        int, Option("Bytes of memory for common beginnings of prompts.", least=0, section=MACHINE)
    ] = 1 << 30
    kv_cache_bytes: Annotated[
        int, Option("Bytes of all KV caches; 0: room for max_batch whole contexts.", least=0, section=MACHINE)
    ] = 0
    tokenizer_map: Annotated[
        str | None, Option("How token ids of other tokenizers are matched.", TOKENIZER_MAPS, section=MACHINE, flag="")
    ] = None
    defaults: Mapping[str, Any] | None = None
    speculate: Annotated[Speculate, Option("Draft tokens and verify them together.", section=MACHINE)] = "auto"
    drafter: Annotated[
        Path | None, Option("A small model that only drafts; experts can draft too.", section=MACHINE, flag="")
    ] = None
    models: SharedModels | None = None

    def __post_init__(self) -> None:
        if isinstance(self.experts, (str, os.PathLike, *EXPERTS)):
            raise OptionTypeError("experts is one expert; give a list: experts=[...]", "experts")
        Layout(self.template)  # raises, as does the next line
        _ = self.rule
        for name, option in options_of(EngineOptions).items():
            value = getattr(self, name)
            if option.least is not None and (value is not None or option.default is not None):
                self._set(name, as_int(name, value, option.least, MAX_INT if option.most is None else option.most))
        for name in ("alpha_max", "large_weight", "plausibility", "gate_threshold"):
            self._set(name, as_float(name, getattr(self, name)))
        as_flag("cuda_graph", self.cuda_graph)
        if self.tokenizer_map is not None and self.tokenizer_map not in TOKENIZER_MAPS:
            raise OptionError(
                f"tokenizer_map is {shown(self.tokenizer_map)}; it takes 'exact', or None for equal ids",
                "tokenizer_map",
            )
        prefix_bytes(self.prefix_cache_bytes)  # raises
        # Precision.of raises if dtype and weights contradict each other.
        self.placement.check_dtype(Precision.of(self.dtype, self.weights).dtype)
        self.placement.check_batch(self.max_batch)
        self._set("defaults", dict(self.defaults or {}))
        sampling_options(self.defaults or {})  # raises, as does the next line
        as_speculation(self.speculate)
        if self.models is not None and not isinstance(self.models, SharedModels):
            raise OptionTypeError(f"models is {shown(self.models)}: give a dlf.SharedModels", "models")

    @cached_property
    def rule(self) -> Rule:
        """The rule of requests, without what each expert may have of its own."""
        return Rule(
            self.combine,
            self.match,
            large_weight=self.large_weight,
            plausibility=self.plausibility,
            gate=self.gate,
            gate_threshold=self.gate_threshold,
        )

    def rule_of(self, experts: Sequence[AnyExpert]) -> Rule:
        """The rule of requests, with the weight, its bound or the share of every expert."""
        bounds = [_number(expert, "alpha_max", self.alpha_max) for expert in experts]
        alpha, mix = ([_number(expert, name, None) for expert in experts] for name in ("alpha", "mix"))
        return replace(self.rule, alpha=alpha, alpha_max=bounds, mix=mix)

    @cached_property
    def placement(self) -> Placement:
        """Where the models run."""
        return Placement.of(self.device, self.device_map)

    def native(self, max_context: int, models: int) -> _C.EngineOptions:
        """Options for the step loop of this many models."""
        return _C.EngineOptions(
            self.max_batch,
            max_context,
            threads=self.threads or torch.get_num_threads(),
            prefix_cache_bytes=self.prefix_cache_bytes,
            kv_cache_bytes=self.kv_cache_bytes,
            prompt_budget=self.prompt_budget,
            devices=self.placement.devices(models),
            split=self.placement.split,
            cuda_graph=self.cuda_graph,
        )

    def whole_experts(self) -> list[AnyExpert]:
        """The experts, with the engine's values where they have none."""
        experts = [as_expert(expert, self.base, self.weights) for expert in self.experts]
        return with_weights(experts, self.alpha, self.mix)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _number(expert: AnyExpert, name: str, default: float | None) -> Any:
    value = getattr(expert, name, None)
    return default if value is None else as_float(f"expert '{expert.label}': {name}", value, name)
