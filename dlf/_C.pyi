# Generated from the extension by `make stubs`; do not edit.
"""
The C++ engine of dlf.
"""

from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import torch
import typing

__all__: list[str] = [
    "AUTO_DRAFTER",
    "Adapter",
    "AttentionSpec",
    "CACHE_BLOCK",
    "COMBINES",
    "CacheSize",
    "Decoder",
    "DeviceInfo",
    "EngineOptions",
    "ExpertsSpec",
    "Failure",
    "FailureKind",
    "FeedForwardSpec",
    "FinishReason",
    "FusionPlan",
    "GATES",
    "HookRows",
    "LayerSpec",
    "MATCHES",
    "MAX_BIAS",
    "MAX_CUDA_BATCH",
    "MAX_DRAFT",
    "MAX_EXPERTS",
    "MAX_PENALTY",
    "MAX_SHARDS",
    "MaskRows",
    "MemoryPart",
    "ModelSize",
    "ModelSpec",
    "NormSpec",
    "PROMPT_LOOKUP",
    "Prompt",
    "Request",
    "RopeSpec",
    "Rule",
    "Sampler",
    "SamplingOptions",
    "Score",
    "ScoreRequest",
    "Speculation",
    "StepLoop",
    "StepOutput",
    "StepTimings",
    "TokenMap",
    "Weights",
    "cache_sizes",
    "cpu_capability",
    "cuda_devices",
    "cuda_fusion_solve",
    "cuda_memory",
    "cuda_version",
    "fusion_solve",
    "pack",
    "philox_uniform",
    "quantize",
    "sample_many",
    "shard_sizes",
    "tensor_shapes",
    "tile_bits",
    "torch_minor",
]

class Rule:
    """
    How the weights of a request's experts are found.
    """
    @typing.overload
    def __init__(
        self,
        combine: str,
        match: str,
        alpha: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex | None],
        alpha_max: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
        experts: typing.SupportsInt | typing.SupportsIndex,
        *,
        mix: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex | None] = [],
        large_weight: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        plausibility: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        gate: str = "none",
        gate_threshold: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None:
        """
        The rule for `experts` experts: `alpha` is empty, or has a weight or None for each; `alpha_max` has one bound, or one for each; `mix` is empty, or has a share or None for each.
        """
    @typing.overload
    def __init__(self) -> None:
        """
        The rule "select" for any number of experts, with solved weights.
        """
    @property
    def bounds(self) -> list[float | None]:
        """
        Largest weight that each expert can get, None if the weight is given.
        """
    @property
    def takes_given(self) -> bool:
        """
        Whether all weights are given.
        """

class SamplingOptions:
    """
    How the next token is chosen.
    """

    masked: bool
    def __init__(self, **kwargs: typing.Any) -> None: ...
    @property
    def bad_words(self) -> list[list[int]]: ...
    @bad_words.setter
    def bad_words(
        self, arg0: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]
    ) -> None: ...
    @property
    def frequency_penalty(self) -> float: ...
    @frequency_penalty.setter
    def frequency_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...
    @logit_bias.setter
    def logit_bias(
        self,
        arg0: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]
        ],
    ) -> None: ...
    @property
    def logprobs(self) -> int: ...
    @logprobs.setter
    def logprobs(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def min_new_tokens(self) -> int: ...
    @min_new_tokens.setter
    def min_new_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def min_p(self) -> float: ...
    @min_p.setter
    def min_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def presence_penalty(self) -> float: ...
    @presence_penalty.setter
    def presence_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def repetition_penalty(self) -> float: ...
    @repetition_penalty.setter
    def repetition_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def seed(self) -> int: ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def stop_token_ids(self) -> list[int]: ...
    @stop_token_ids.setter
    def stop_token_ids(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None: ...
    @property
    def stream(self) -> int: ...
    @stream.setter
    def stream(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def temperature(self) -> float: ...
    @temperature.setter
    def temperature(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def top_k(self) -> int: ...
    @top_k.setter
    def top_k(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def top_p(self) -> float: ...
    @top_p.setter
    def top_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class Sampler:
    """
    Chooses the tokens of one sequence.
    """
    def __init__(
        self,
        options: SamplingOptions,
        vocab: typing.SupportsInt | typing.SupportsIndex,
        prompt: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        max_new_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def append(self, token: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Records a token that was chosen.
        """
    def sample(
        self,
        logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
        step: typing.SupportsInt | typing.SupportsIndex,
    ) -> tuple[typing.Any, ...]:
        """
        Token chosen from logits[vocab], its log-probability, and the most probable tokens with theirs.
        """

class NormSpec:
    """
    The norms of the residual stream.
    """
    def __init__(
        self,
        *,
        kind: str = "rms",
        epsilon: typing.SupportsFloat | typing.SupportsIndex = 1e-06,
        offset: bool = False,
        bias: bool = False,
        before: bool = True,
        after: bool = False,
        shared: bool = False,
    ) -> None: ...
    @property
    def after(self) -> bool: ...
    @property
    def before(self) -> bool: ...
    @property
    def bias(self) -> bool: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def offset(self) -> bool: ...
    @property
    def shared(self) -> bool: ...

class AttentionSpec:
    """
    Attention; the same in all layers.
    """
    def __init__(
        self,
        *,
        heads: typing.SupportsInt | typing.SupportsIndex,
        kv_heads: typing.SupportsInt | typing.SupportsIndex,
        head_dim: typing.SupportsInt | typing.SupportsIndex,
        query_scalar: typing.SupportsFloat | typing.SupportsIndex | None = None,
        softcap: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        head_norm: str = "none",
        head_norm_bias: bool = False,
        clip: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        bias: bool = False,
        output_bias: bool = False,
    ) -> None: ...
    @property
    def bias(self) -> bool: ...
    @property
    def clip(self) -> float: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def head_norm(self) -> str: ...
    @property
    def head_norm_bias(self) -> bool: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def output_bias(self) -> bool: ...
    @property
    def query_scalar(self) -> float: ...
    @property
    def softcap(self) -> float: ...

class FeedForwardSpec:
    """
    The feed-forward; the same in all layers.
    """
    def __init__(
        self,
        *,
        size: typing.SupportsInt | typing.SupportsIndex,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
    ) -> None: ...
    @property
    def activation(self) -> str: ...
    @property
    def bias(self) -> bool: ...
    @property
    def gated(self) -> bool: ...
    @property
    def size(self) -> int: ...

class ExpertsSpec:
    """
    The experts of the layers that have some.
    """
    def __init__(
        self,
        *,
        count: typing.SupportsInt | typing.SupportsIndex,
        chosen: typing.SupportsInt | typing.SupportsIndex,
        size: typing.SupportsInt | typing.SupportsIndex,
        normalise: bool = False,
        shared_size: typing.SupportsInt | typing.SupportsIndex = 0,
        shared_router: bool = False,
    ) -> None: ...
    @property
    def chosen(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def normalise(self) -> bool: ...
    @property
    def shared_router(self) -> bool: ...
    @property
    def shared_size(self) -> int: ...
    @property
    def size(self) -> int: ...

class RopeSpec:
    """
    How positions change queries and keys.
    """
    def __init__(
        self,
        *,
        inv_freq: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
        scaling: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        long_inv_freq: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
        short_context: typing.SupportsInt | typing.SupportsIndex = 0,
        query_beta: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        query_positions: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def frequencies(self, context: typing.SupportsInt | typing.SupportsIndex) -> list[float]:
        """
        Frequencies for a context of this length.
        """
    @property
    def inv_freq(self) -> list[float]: ...
    @property
    def long_inv_freq(self) -> list[float]: ...
    @property
    def query_beta(self) -> float: ...
    @property
    def query_positions(self) -> int: ...
    @property
    def scaling(self) -> float: ...
    @property
    def short_context(self) -> int: ...

class LayerSpec:
    """
    What may differ from layer to layer.
    """
    def __init__(
        self,
        *,
        window: typing.SupportsInt | typing.SupportsIndex = 0,
        rope: typing.SupportsInt | typing.SupportsIndex = 0,
        experts: bool = False,
    ) -> None: ...
    @property
    def experts(self) -> bool: ...
    @property
    def rope(self) -> int: ...
    @property
    def window(self) -> int: ...

class ModelSpec:
    """
    What one decoder-only transformer computes.
    """
    def __init__(
        self,
        *,
        vocab_size: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        norm: NormSpec,
        attention: AttentionSpec,
        feed_forward: FeedForwardSpec,
        ropes: collections.abc.Sequence[RopeSpec],
        layers: collections.abc.Sequence[LayerSpec],
        experts: ExpertsSpec | None = None,
        learned_positions: typing.SupportsInt | typing.SupportsIndex = 0,
        embedding_multiplier: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        parallel: bool = False,
        head_bias: bool = False,
        residual_multiplier: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        logit_multiplier: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        logit_softcap: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...
    @property
    def attention(self) -> AttentionSpec: ...
    @property
    def embedding_multiplier(self) -> float: ...
    @property
    def experts(self) -> ExpertsSpec: ...
    @property
    def feed_forward(self) -> FeedForwardSpec: ...
    @property
    def head_bias(self) -> bool: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def layers(self) -> list[LayerSpec]: ...
    @property
    def learned_positions(self) -> int: ...
    @property
    def logit_multiplier(self) -> float: ...
    @property
    def logit_softcap(self) -> float: ...
    @property
    def norm(self) -> NormSpec: ...
    @property
    def parallel(self) -> bool: ...
    @property
    def residual_multiplier(self) -> float: ...
    @property
    def ropes(self) -> list[RopeSpec]: ...
    @property
    def vocab_size(self) -> int: ...

class Weights:
    """
    The tensors and spec of one checkpoint, immutable.
    """
    def __init__(self, spec: ModelSpec, tensors: collections.abc.Mapping[str, torch.Tensor]) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def type(self) -> str:
        """
        Types of the linear layers' weights, the one with most bytes first.
        """

class Adapter:
    """
    What LoRA adds to a checkpoint, immutable.
    """
    def __init__(
        self,
        spec: ModelSpec,
        tensors: collections.abc.Mapping[str, torch.Tensor],
        scales: collections.abc.Mapping[str, typing.SupportsFloat | typing.SupportsIndex],
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class Decoder:
    """
    One model run by hand, without the step loop.
    """
    def __init__(
        self,
        weights: Weights,
        slots: typing.SupportsInt | typing.SupportsIndex,
        max_context: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex,
        adapters: collections.abc.Sequence[Adapter] = [],
    ) -> None: ...
    def decode(
        self,
        tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        slots: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        adapters: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> torch.Tensor:
        """
        Logits [rows, vocab] of one token in each of several slots.
        """
    def prefill(
        self,
        tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        slot: typing.SupportsInt | typing.SupportsIndex,
        position: typing.SupportsInt | typing.SupportsIndex,
        adapter: typing.SupportsInt | typing.SupportsIndex = -1,
    ) -> torch.Tensor:
        """
        Logits [tokens, vocab] of consecutive tokens of one slot.
        """

class HookRows:
    """
    Logits of a request's positions in a step, valid while the hook runs.
    """
    @property
    def alpha(self) -> torch.Tensor | None: ...
    @property
    def bases(self) -> list[torch.Tensor | None]: ...
    @property
    def experts(self) -> list[torch.Tensor | None]: ...
    @property
    def f(self) -> torch.Tensor | None: ...
    @property
    def fused(self) -> torch.Tensor: ...
    @property
    def g(self) -> torch.Tensor | None: ...
    @property
    def large(self) -> torch.Tensor: ...
    @property
    def request(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...

class MaskRows:
    """
    Masks that a request wants: of the tokens that may follow its last tokens, decoded and then drafted behind them. The words are valid while the call runs.
    """
    @property
    def decoded(self) -> list[int]: ...
    @property
    def drafted(self) -> list[int]: ...
    @property
    def request(self) -> int: ...
    @property
    def words(self) -> torch.Tensor: ...

class FinishReason:
    """
    Why a sequence ended.

    Members:

      none

      stop

      length

      error
    """

    __members__: typing.ClassVar[dict[str, FinishReason]]
    error: typing.ClassVar[FinishReason]
    length: typing.ClassVar[FinishReason]
    none: typing.ClassVar[FinishReason]
    stop: typing.ClassVar[FinishReason]
    def __eq__(self, other: typing.Any) -> bool: ...
    def __getstate__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __int__(self) -> int: ...
    def __ne__(self, other: typing.Any) -> bool: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __str__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class FailureKind:
    """
    Why a sequence or a score ended early.

    Members:

      none

      bad_logits

      no_token

      hook
    """

    __members__: typing.ClassVar[dict[str, FailureKind]]
    bad_logits: typing.ClassVar[FailureKind]
    hook: typing.ClassVar[FailureKind]
    no_token: typing.ClassVar[FailureKind]
    none: typing.ClassVar[FailureKind]
    def __eq__(self, other: typing.Any) -> bool: ...
    def __getstate__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __int__(self) -> int: ...
    def __ne__(self, other: typing.Any) -> bool: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __str__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class Failure:
    """
    Why a sequence or a score ended early, with a message.
    """
    def __bool__(self) -> bool: ...
    @property
    def kind(self) -> FailureKind: ...
    @property
    def message(self) -> str: ...

class StepOutput:
    """
    A token that a step gave a sequence.
    """
    @property
    def alpha(self) -> list[float]: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def drafted(self) -> int: ...
    @property
    def f(self) -> float: ...
    @property
    def failure(self) -> Failure: ...
    @property
    def finish(self) -> FinishReason: ...
    @property
    def g(self) -> float: ...
    @property
    def logprob(self) -> float: ...
    @property
    def own_token(self) -> int: ...
    @property
    def request(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def top_logprobs(self) -> list[float]: ...
    @property
    def top_tokens(self) -> list[int]: ...

class Prompt:
    """
    Token ids that a lane reads, and the positions after which other prompts may differ.
    """
    def __init__(
        self,
        tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        breaks: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None: ...
    @property
    def breaks(self) -> list[int]: ...
    @property
    def tokens(self) -> list[int]: ...

class Score:
    """
    Score of one continuation under the fused distributions.
    """
    @property
    def alpha(self) -> list[float]: ...
    @property
    def f(self) -> list[float]: ...
    @property
    def failure(self) -> Failure: ...
    @property
    def g(self) -> list[float]: ...
    @property
    def greedy(self) -> list[bool]: ...
    @property
    def logprobs(self) -> list[float]: ...

class StepTimings:
    """
    Seconds that a step spent in each of its parts, and what kind of step it was.
    """
    @property
    def drafted(self) -> int: ...
    @property
    def drafter(self) -> int: ...
    @property
    def graph(self) -> bool: ...
    @property
    def large(self) -> float: ...
    @property
    def sample(self) -> float: ...
    @property
    def small(self) -> float: ...
    @property
    def small_passes(self) -> int: ...
    @property
    def solve(self) -> float: ...

class Speculation:
    """
    Speculative decoding of a sequence: how many tokens are drafted, and by what.
    """
    def __init__(
        self,
        max_draft: typing.SupportsInt | typing.SupportsIndex,
        drafter: typing.SupportsInt | typing.SupportsIndex = -1,
        adaptive: bool = True,
    ) -> None: ...
    @property
    def adaptive(self) -> bool: ...
    @property
    def drafter(self) -> int: ...
    @property
    def max_draft(self) -> int: ...

class TokenMap:
    """
    Ids of a model whose tokenizer has other ids than the large model's.
    """
    @typing.overload
    def __init__(self) -> None:
        """
        The large model's ids.
        """
    @typing.overload
    def __init__(
        self,
        feed: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        read: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    ) -> None: ...

class FusionPlan:
    """
    Lanes of each sequence, and which of them are experts and bases.
    """
    def __init__(
        self,
        lane_model: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        experts: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        ],
        vocab: typing.SupportsInt | typing.SupportsIndex,
        lane_adapter: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        drafter: typing.SupportsInt | typing.SupportsIndex = -1,
        token_maps: collections.abc.Sequence[TokenMap] = [],
    ) -> None: ...

class EngineOptions:
    """
    Sizes and devices of a step loop.
    """
    def __init__(
        self,
        max_batch: typing.SupportsInt | typing.SupportsIndex,
        max_context: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex = 1,
        prefix_cache_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        kv_cache_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        prompt_budget: typing.SupportsInt | typing.SupportsIndex = 0,
        devices: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        cuda_graph: bool = True,
        split: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None: ...

class CacheSize:
    """
    Blocks of one model's KV cache.
    """
    @property
    def for_prefixes(self) -> int: ...
    @property
    def for_requests(self) -> int: ...

class Request:
    """
    A prompt for each lane, empty if no chosen expert needs it, and how to decode.
    """
    def __init__(
        self,
        id: typing.SupportsInt | typing.SupportsIndex,
        prompts: collections.abc.Sequence[Prompt],
        experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        sampling: SamplingOptions,
        max_new_tokens: typing.SupportsInt | typing.SupportsIndex,
        speculation: Speculation = ...,
        rule: Rule = ...,
        hook: bool = False,
        trace: bool = False,
        priority: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    @property
    def id(self) -> int: ...

class ScoreRequest:
    """
    Prompts as in a Request, and continuations to score.
    """
    def __init__(
        self,
        prompts: collections.abc.Sequence[Prompt],
        experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        continuations: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
        rule: Rule = ...,
    ) -> None: ...

class StepLoop:
    """
    Decodes all running sequences further at each step.
    """
    def __init__(
        self,
        models: collections.abc.Sequence[Weights],
        plan: FusionPlan,
        options: EngineOptions,
        adapters: collections.abc.Sequence[collections.abc.Sequence[Adapter]] = [],
    ) -> None: ...
    def add(self, request: Request) -> None:
        """
        Queues a request.
        """
    def cancel(self, id: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Ends a request and frees its slot; unknown ids are ignored.
        """
    def prepare(self) -> bool:
        """
        Does some work, if the loop is idle, that would otherwise slow down a later step; returns whether there was any.
        """
    def score(
        self,
        request: ScoreRequest,
        poll: collections.abc.Callable[[], None] | None = None,
        hook: collections.abc.Callable[[HookRows], bool] | None = None,
    ) -> list[Score]:
        """
        Scores the continuations of a request, without advancing running sequences. Calls poll() now and then; an exception from it ends the scoring. Calls the hook as step() does.
        """
    def step(
        self,
        hook: collections.abc.Callable[[HookRows], bool] | None = None,
        masks: collections.abc.Callable[[collections.abc.Sequence[MaskRows]], None] | None = None,
    ) -> list[StepOutput]:
        """
        Decodes every running sequence one token further, or more if tokens were drafted. Calls the hook with the logits of each request that has one; the request fails unless it returns True. Calls masks to write those that requests want.
        """
    @property
    def cache_use(self) -> float: ...
    @property
    def idle(self) -> bool: ...
    @property
    def put_back(self) -> int: ...
    @property
    def timings(self) -> StepTimings: ...

class DeviceInfo:
    """
    A CUDA device that this process sees.
    """
    @property
    def compute_capability(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def multiprocessors(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def total_bytes(self) -> int: ...

class ModelSize:
    """
    What decides how much memory a model takes; known before it is loaded.
    """
    def __init__(
        self,
        spec: ModelSpec,
        dtype: str,
        quantized: bool,
        weights: typing.SupportsInt | typing.SupportsIndex,
        adapters: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class MemoryPart:
    """
    A part of the memory that a StepLoop takes of a CUDA device.
    """
    @property
    def bytes(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def model(self) -> int: ...
    @property
    def name(self) -> str: ...

def cache_sizes(
    plan: FusionPlan,
    block_bytes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    options: EngineOptions,
) -> list[CacheSize]:
    """
    Sizes of the KV caches of all models, whose blocks have these bytes.
    """

def cpu_capability() -> str:
    """
    Instruction set that the CPU kernels use: portable, avx2, avx512 or avx512_bf16.
    """

def cuda_devices() -> list[DeviceInfo]:
    """
    CUDA devices that this process sees; empty without a driver or in a build without CUDA.
    """

def cuda_fusion_solve(
    large: torch.Tensor,
    experts: torch.Tensor,
    bases: torch.Tensor,
    rules: collections.abc.Sequence[Rule],
    device: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[typing.Any, ...]:
    """
    fusion_solve on a CUDA device; the fused logits stay there.
    """

def cuda_memory(
    models: collections.abc.Sequence[ModelSize], plan: FusionPlan, options: EngineOptions
) -> list[MemoryPart]:
    """
    Memory that a StepLoop on CUDA takes, by device and part; model is -1 if all models share it.
    """

def fusion_solve(
    large: torch.Tensor,
    experts: torch.Tensor,
    bases: torch.Tensor,
    rules: collections.abc.Sequence[Rule],
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[typing.Any, ...]:
    """
    Fuses float32 logits, by one rule for all rows or one for each. Returns alpha, logits, f, g, target_f, target_g and sweeps.
    """

def pack(
    values: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    *,
    zero: torch.Tensor | None = None,
    block: typing.SupportsInt | typing.SupportsIndex = 0,
    block_scale: torch.Tensor | None = None,
    block_minimum: torch.Tensor | None = None,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> dict[str, torch.Tensor]:
    """
    Lays out the integers and scales of a PackedMatrix in tiles; returns its parts by suffix: '', '.scale', ...
    """

def philox_uniform(
    seed: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex = 0,
) -> float:
    """
    Uniform random number in [0, 1), a function of its arguments alone.
    """

def quantize(
    weight: torch.Tensor,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[typing.Any, ...]:
    """
    Returns tiles and scales of a matrix [out, in] rounded to 8 bits (group 0) or 4 (group 32 or 64).
    """

def sample_many(
    logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    options: SamplingOptions,
    draws: typing.SupportsInt | typing.SupportsIndex,
    prompt: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
) -> numpy.typing.NDArray[numpy.int64]:
    """
    Tokens drawn from the same logits at the steps 0 to draws - 1.
    """

def shard_sizes(
    spec: ModelSpec,
    shards: typing.SupportsInt | typing.SupportsIndex,
    weights: typing.SupportsInt | typing.SupportsIndex,
    kv_cache: typing.SupportsInt | typing.SupportsIndex,
) -> list[tuple[int, int]]:
    """
    Bytes of weights and of KV cache that each device has of a split model, which has so many in all. Raises a ValueError for a model that cannot be split so.
    """

def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """
    Slot and shape of every tensor of a model, in the order of a pass.
    """

def tile_bits(
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    signed: bool,
    minimum: bool,
) -> int:
    """
    Bits of the tiles that keep integers of so many bits; 0 if none do.
    """

AUTO_DRAFTER: int = -1
CACHE_BLOCK: int = 64
COMBINES: tuple[str, ...]
GATES: tuple[str, ...]
MATCHES: tuple[str, ...]
MAX_BIAS: float = 3.4e38
MAX_CUDA_BATCH: int = 256
MAX_DRAFT: int = 16
MAX_EXPERTS: int = 16
MAX_PENALTY: float = 1000000.0
MAX_SHARDS: int = 8
PROMPT_LOOKUP: int = -2
__version__: str
cuda_version: str
torch_minor: str
