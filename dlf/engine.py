"""The engine: models, experts and the step loop behind one object."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import torch
from tqdm import tqdm

from dlf import _C
from dlf.arguments import (
    Path,
    Prompt,
    as_expert,
    as_prompts,
    check_memory,
    common_vocabulary,
    context,
    positive,
    sampling_options,
)
from dlf.checkpoint import resolve
from dlf.config import read_config
from dlf.devices import Placement, check_cuda_memory
from dlf.experts import Expert
from dlf.lanes import Lanes
from dlf.merged import merged_experts
from dlf.model import load_model
from dlf.precision import Precision
from dlf.request import RunningRequest
from dlf.results import Completion, Piece
from dlf.sampling import SamplingOptions, StopStrings
from dlf.task_arithmetic import TaskArithmetic
from dlf.tokenizer import check_same_tokenizer

__all__ = ["Engine"]

Callback: TypeAlias = "Callable[[Piece], bool | None]"

MAX_EXPERTS = 16


class Engine:
    """A large language model specialised at decoding time by small experts.

    At every step the logits are ``large + sum_t alpha_t (expert_t - base_t)``, with the weights solved so that the
    fused distribution moves away from the large model's as far, in KL divergence, as the expert moved from its base
    (Fan et al., NeurIPS 2024, arXiv 2406.15480).

    Parameters
    ----------
    large : str or path
        Folder in Hugging Face format, or hub id, of the large model.
    experts : sequence of Expert, TaskArithmetic, str or path
        At most 16; a plain string takes `base`, a `TaskArithmetic` is merged first. None: the large model decodes
        alone.
    base : str or path, optional
        Base of the experts that do not name their own.
    combine : {"select", "centroid", "joint", "static", "grid"}
        How the weights of several experts come together; see `dlf.fusion.solve`.
    match : {"symmetric", "forward", "reverse"}
        Which divergences are matched.
    alpha : sequence of float, optional
        The weights of ``combine="static"``, one for each expert.
    alpha_max : float
        Upper bound of a solved weight.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Type of the weights and of the KV cache; ``"auto"`` keeps each file's. ``"float16"`` is for CUDA devices.
    weights : {"fp32", "bf16", "fp16", "int8", "int4", "int4-g64"}, optional
        Type of the weights if it is to be another than `dtype`, which then is that of the embedding and the KV cache.
        ``"int8"`` and ``"int4"`` quantize the linear layers when they are first loaded and keep the result on disk (in
        ``~/.cache/dlf``, see the README); ``"int8"`` has a scale for each output channel, ``"int4"`` one for each 32
        inputs, ``"int4-g64"`` one for each 64, which is less exact and, where layers have a multiple of 64
        inputs, smaller. ``"fp32"``, ``"bf16"`` and
        ``"fp16"`` are the same as `dtype`. An `Expert` may have its own; a base used in two types is loaded in both.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:0"``, ``"cuda:1"``, ...
    device_map : mapping, optional
        Devices of the ``"large"`` model and of the ``"experts"`` with their bases, where they are not on one:
        ``{"large": "cuda:0", "experts": "cuda:1"}``.
    cuda_graph : bool
        Whether a decode step on CUDA is captured once for each size of batch and replayed as one launch. Without, the
        same kernels are launched one by one, which is slower and easier to profile.
    threads : int, optional
        Threads of a decode step on the CPU; the physical cores if not given.
    max_batch : int
        Sequences that decode side by side; further ones wait.
    max_context : int, optional
        Tokens of prompt and completion together; by default what all models were trained for, at most 4096.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If a model cannot be loaded.
    TokenizerMismatchError
        If two models give one token id different meanings.
    ValueError, TypeError
        If an option is impossible.
    MemoryError
        If the models and their KV caches do not fit the machine or the device.
    RuntimeError
        If there is no such device.
    """

    def __init__(
        self,
        large: Path,
        experts: Sequence[Expert | TaskArithmetic | Path] = (),
        *,
        base: Path | None = None,
        combine: str = "select",
        match: str = "symmetric",
        alpha: Sequence[float] | None = None,
        alpha_max: float = 2.0,
        dtype: str = "auto",
        weights: str | None = None,
        device: str = "cpu",
        device_map: Mapping[str, str] | None = None,
        cuda_graph: bool = True,
        threads: int | None = None,
        max_batch: int = 8,
        max_context: int | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._loop: _C.StepLoop | None = None
        self._running: dict[int, RunningRequest] = {}
        self._ids = itertools.count()
        placement = Placement.of(device, device_map)
        threads = positive("threads", torch.get_num_threads() if threads is None else threads)
        max_batch = positive("max_batch", max_batch)
        if isinstance(experts, (str, os.PathLike, Expert, TaskArithmetic)):
            raise TypeError("experts is one expert; give a list: experts=[...]")
        precision = Precision.of(dtype, weights)  # raises where the two contradict each other
        if precision.dtype == "float16" and not placement.cuda:
            raise ValueError("float16 is for CUDA devices; on the CPU use bfloat16 or float32")
        wanted = [as_expert(expert, base, dtype, weights) for expert in experts]
        if len(wanted) > MAX_EXPERTS:
            raise ValueError(f"{len(wanted)} experts; at most {MAX_EXPERTS} can be fused")
        # Impossible options should not cost the loading of a large model.
        alphas = [] if alpha is None else [float(weight) for weight in alpha]
        if wanted:
            _C.check_fusion(len(wanted), combine, match, alphas, alpha_max)

        with merged_experts(wanted) as whole:
            lanes = Lanes.of(large, whole, dtype, weights)
            if placement.cuda:
                configs = [read_config(resolve(name)) for name, _ in lanes.models]
                room = context(max_context, min(config.max_position_embeddings for config in configs))
                sizes = [Precision.of(dtype, weights) for _, weights in lanes.models]
                check_cuda_memory(placement, list(zip(configs, sizes, strict=True)), lanes.counts(), max_batch, room)
            loaded = [load_model(name, dtype, weights, placement.cuda) for name, weights in lanes.models]
        self._config = loaded[0].config
        self.tokenizer = loaded[0].tokenizer
        """Tokenizer of the large model."""
        for other in loaded[1:]:
            check_same_tokenizer(self.tokenizer, other.tokenizer, loaded[0].name, other.name)
        self.vocab_size = common_vocabulary(loaded)
        """Token ids that all models share; logits above it are padding and are never chosen."""
        self._trained_context = min(model.config.max_position_embeddings for model in loaded)
        self.max_context = context(max_context, self._trained_context)
        """Tokens of prompt and completion together."""
        self.experts = [expert.label for expert in wanted]
        """Names of the experts: the columns of ``Completion.alpha``."""
        if not placement.cuda:
            check_memory(loaded, lanes.counts(), max_batch, self.max_context)
        self._loop = _C.StepLoop(
            models=[model.weights for model in loaded],
            lane_model=lanes.of_model,
            experts=lanes.pairs,
            combine=combine,
            match=match,
            alpha=alphas,
            alpha_max=alpha_max,
            vocab=self.vocab_size,
            max_batch=max_batch,
            max_context=self.max_context,
            threads=threads,
            devices=placement.devices(len(loaded)),
            cuda_graph=cuda_graph,
        )
        self._lanes = len(lanes.of_model)

    @overload
    def generate(
        self, prompt: str, *, callback: Callback | None = None, progress: bool | None = None, **options: Any
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        *,
        callback: Callback | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Any: ...

    def generate(
        self, prompt: Any, *, callback: Callback | None = None, progress: bool | None = None, **options: Any
    ) -> Completion | list[Completion]:
        """Decode one prompt or a list of prompts.

        Parameters
        ----------
        prompt : str, list of str, list of int, or list of list of int
            Text, or token ids as they are. Each prompt of a list gives exactly what it gives alone.
        callback : callable, optional
            Receives every `Piece` as it comes; returning False ends its sequence.
        progress : bool, optional
            Whether to show a progress bar; by default for a list of prompts on a terminal.
        **options
            The fields of `SamplingOptions`.

        Returns
        -------
        Completion or list of Completion
            A list if `prompt` is one or ``num_return_sequences`` is above 1: all samples of the first prompt first.

        Raises
        ------
        ValueError, TypeError
            If a prompt is empty or longer than the context, or an option is impossible.
        FloatingPointError
            If a model's logits are not finite; the message names the model and the step.
        """
        prompts, single = as_prompts(prompt)
        sampling = sampling_options(options)
        requests = self._add(prompts, sampling)
        try:
            if progress is None:
                progress = not single and len(requests) > 1 and sys.stderr.isatty()
            with tqdm(total=len(requests), desc="Generating", unit="seq", disable=not progress) as bar:
                done = 0
                while True:
                    self._deliver(requests, callback)
                    finished = sum(request.finished for request in requests)
                    bar.update(finished - done)
                    done = finished
                    if finished == len(requests):
                        break
                    self._step(requests)
        finally:
            self._cancel(requests)
        completions = [request.completion() for request in requests]
        return completions[0] if single and len(completions) == 1 else completions

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        """Decode one prompt and yield each step as it comes.

        Closing the iterator early ends the sequence and frees its places. Options and errors are those of `generate`;
        they are checked when this is called, not at the first piece.

        Yields
        ------
        Piece
            One for each token.
        """
        prompts, single = as_prompts(prompt)
        sampling = sampling_options(options)
        if not single or sampling.num_return_sequences != 1:
            raise ValueError("stream decodes one sequence; use generate with a callback for several")
        return self._stream(self._add(prompts, sampling))

    def close(self) -> None:
        """Free the models and caches; the engine cannot be used afterwards."""
        with self._lock:
            self._running.clear()
            self._loop = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _stream(self, requests: list[RunningRequest]) -> Iterator[Piece]:
        request = requests[0]
        try:
            while True:
                while request.pieces:
                    yield request.pieces.popleft()
                if request.finished:
                    _raise_failure(request)
                    return
                self._step(requests)
        finally:
            self._cancel(requests)

    def _add(self, prompts: list[Prompt], sampling: SamplingOptions) -> list[RunningRequest]:
        """Check and queue all prompts, or none."""
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        bad_words = [
            self.tokenizer.encode(form, add_special_tokens=False)
            for word in sampling.bad_words or ()
            for form in (word, " " + word)
        ]
        eos = self._config.eos_token_ids
        if not eos and self.tokenizer.eos_token_id is not None:
            eos = (self.tokenizer.eos_token_id,)
        encoded = []
        for i, prompt in enumerate(prompts):
            tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            which = f"prompt {i}" if len(prompts) > 1 else "the prompt"
            if not prompt or not tokens:  # a special token alone would be a prompt that nobody wrote
                raise ValueError(
                    f"{which} is empty; give text, or token ids such as [bos_token_id] to start from nothing"
                )
            if len(tokens) >= self.max_context:
                longer = self._trained_context > self.max_context
                raise ValueError(
                    f"{which} has {len(tokens)} tokens, but the context holds {self.max_context} with at least one new "
                    f"token; shorten it{f' or raise max_context, up to {self._trained_context}' if longer else ''}"
                )
            outside = next((token for token in tokens if not 0 <= token < self.vocab_size), None)
            if outside is not None:
                raise ValueError(f"{which} has the token id {outside}; ids are from 0 to {self.vocab_size - 1}")
            encoded.append(tokens)
        requests = []
        with self._lock:
            loop = self._open()
            try:
                for i, tokens in enumerate(encoded):
                    for sample in range(sampling.num_return_sequences):
                        native = sampling.build(
                            eos_token_ids=[token for token in eos if token < self.vocab_size],
                            bad_words_ids=bad_words,
                            seed=seed,
                            stream=sample,
                        )
                        request = RunningRequest(
                            next(self._ids),
                            i * sampling.num_return_sequences + sample,
                            len(tokens),
                            self.tokenizer,
                            StopStrings(sampling.stop_strings or ()),
                            self.experts,
                        )
                        prompts = [_C.Prompt(tokens)] * self._lanes
                        loop.add(
                            request.request, prompts, list(range(len(self.experts))), native, sampling.max_new_tokens
                        )
                        self._running[request.request] = request
                        requests.append(request)
            except BaseException:
                for request in requests:
                    loop.cancel(request.request)
                    self._running.pop(request.request, None)
                raise
        return requests

    def _step(self, requests: list[RunningRequest]) -> None:
        """One step of the loop, unless another thread's step has brought news for these requests meanwhile."""
        with self._lock:
            if any(request.pieces or request.error for request in requests):
                return
            loop = self._open()
            try:
                outputs = loop.step()
            except BaseException:
                # The step broke off: what is in the caches is unknown, so no sequence may go on.
                for request in self._running.values():
                    loop.cancel(request.request)
                    request.error, request.finish_reason = "a step of the engine failed", "error"
                self._running.clear()
                raise
            for output in outputs:
                running = self._running.get(output.request)
                if running is not None:
                    running.spend(loop.timings)
                    running.take(output)
                    if running.finished:
                        del self._running[output.request]
                        if output.finish == _C.FinishReason.none:
                            loop.cancel(output.request)

    def _deliver(self, requests: list[RunningRequest], callback: Callback | None) -> None:
        for request in requests:
            while request.pieces:
                piece = request.pieces.popleft()
                if callback is not None and callback(piece) is False and not request.finished:
                    self._cancel([request], "callback")
            _raise_failure(request)

    def _cancel(self, requests: list[RunningRequest], reason: str = "cancelled") -> None:
        with self._lock:
            for request in requests:
                if self._running.pop(request.request, None) is not None and self._loop is not None:
                    self._loop.cancel(request.request)
                request.stop(reason)

    def _open(self) -> _C.StepLoop:
        if self._loop is None:
            raise RuntimeError("the engine is closed; make a new one")
        return self._loop


def _raise_failure(request: RunningRequest) -> None:
    if request.error is not None:
        kind = FloatingPointError if "NaN" in request.error else ValueError
        raise kind(request.error)
