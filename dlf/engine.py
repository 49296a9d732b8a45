"""The engine: models, experts and the step loop behind one object."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, overload

import torch
from tqdm import tqdm

from dlf import _C
from dlf.arguments import (
    EXPERTS,
    AnyExpert,
    Path,
    Prompt,
    as_expert,
    as_prompts,
    chosen_experts,
    positive,
    prefix_bytes,
    sampling_options,
    with_alpha,
)
from dlf.devices import Placement
from dlf.ensemble import Ensemble, Options
from dlf.layout import Example, Layout, Messages, as_examples
from dlf.precision import Precision
from dlf.prompts import lane_prompts
from dlf.request import RunningRequest
from dlf.results import Completion, Piece, Score
from dlf.sampling import SamplingOptions, StopStrings
from dlf.scoring import as_continuations, as_score, score_groups
from dlf.speculation import Speculate, as_speculation, native_speculation, uses_drafter
from dlf.tokenizer import Tokenizer

__all__ = ["Engine"]

Callback: TypeAlias = "Callable[[Piece], bool | None]"


class Engine:
    """A large language model specialised at decoding time by small experts.

    At every step the logits are ``large + sum_t alpha_t (expert_t - base_t)``, with the weights solved so that the
    fused distribution moves away from the large model's as far, in KL divergence, as the expert moved from its base
    (Fan et al., NeurIPS 2024, arXiv 2406.15480).

    Parameters
    ----------
    large : str or path
        Folder in Hugging Face format, or hub id, of the large model.
    experts : sequence of Expert, InContext, Lora, TaskArithmetic, str or path
        At most 16; a plain string takes `base`, a `TaskArithmetic` is merged first. None: the large model decodes
        alone. Experts of all kinds can be mixed; what shares weights runs in one batch.
    base : str or path, optional
        Base of the experts that do not name their own.
    template : str, optional
        How a prompt is written for the large model, and for the experts and bases that have no template of their own:
        ``"chat"`` is each model's chat template, a text has ``{prompt}`` where the prompt goes, or ``{question}`` and
        ``{answer}``, by which examples are written too. By default prompts are read as they are, and messages by the
        chat template of each model that has one.
    combine : {"select", "centroid", "joint", "static", "grid"}
        How the weights of several experts come together; see `dlf.fusion.solve`.
    match : {"symmetric", "forward", "reverse"}
        Which divergences are matched.
    alpha : sequence of float or None, optional
        Given weights, one for each expert, for ``combine="static"``; with any other `combine` None stands for an expert
        whose weight is solved. An expert may have its own instead.
    alpha_max : float
        Upper bound of a solved weight, for experts without their own.
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
        Sequences that decode side by side; further ones wait. At most 256 on CUDA.
    max_context : int, optional
        Tokens of prompt and completion together; by default what all models were trained for, at most 4096.
    prefix_cache_bytes : int
        Memory for what prompts have in common at their beginning, such as examples or a system message: it is read
        once. The least recently used goes first; 0 reads every prompt anew. The results are the same to the bit.
    defaults : mapping, optional
        Sampling options of requests that do not say otherwise.
    speculate : {"auto", False} or Speculation
        Whether tokens are drafted by a small model and verified together, which changes how fast they come and nothing
        else; ``"auto"`` drafts where that is expected to be faster.
    drafter : str or path, optional
        A further small model that is not fused and only drafts; it shares the tokenizer. Experts can draft without it.

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
        experts: Sequence[AnyExpert | Path] = (),
        *,
        base: Path | None = None,
        template: str | None = None,
        combine: str = "select",
        match: str = "symmetric",
        alpha: Sequence[float | None] | None = None,
        alpha_max: float = 2.0,
        dtype: str = "auto",
        weights: str | None = None,
        device: str = "cpu",
        device_map: Mapping[str, str] | None = None,
        cuda_graph: bool = True,
        threads: int | None = None,
        max_batch: int = 8,
        max_context: int | None = None,
        prefix_cache_bytes: int = 1 << 30,
        defaults: Mapping[str, Any] | None = None,
        speculate: Speculate = "auto",
        drafter: Path | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._loop: _C.StepLoop | None = None
        self._running: dict[int, RunningRequest] = {}
        self._scoring = 0  # calls of score
        self._ids = itertools.count()
        placement = Placement.of(device, device_map)
        threads = positive("threads", torch.get_num_threads() if threads is None else threads)
        Layout(template)  # raises
        if isinstance(experts, (str, os.PathLike, *EXPERTS)):
            raise TypeError("experts is one expert; give a list: experts=[...]")
        placement.check_dtype(Precision.of(dtype, weights).dtype)  # of() raises where the two contradict each other
        max_batch = positive("max_batch", max_batch)
        placement.check_batch(max_batch)
        self._defaults = dict(defaults or {})
        sampling_options(self._defaults)  # raises
        self._speculation = as_speculation(speculate)
        options = Options(
            large,
            base,
            template,
            combine,
            match,
            float(alpha_max),
            dtype,
            weights,
            placement,
            cuda_graph,
            threads,
            max_batch,
            max_context,
            prefix_bytes(prefix_cache_bytes),
            drafter,
        )
        wanted = [as_expert(expert, base, weights) for expert in experts]
        self._ensemble = Ensemble.load(options, with_alpha(wanted, alpha))
        self._loop = self._ensemble.loop()

    @classmethod
    def from_recipe(cls, path: Path, **overrides: Any) -> Engine:
        """Make the engine that a recipe describes.

        Parameters
        ----------
        path : str or path
            A YAML file: ``large``, ``base``, ``template``, ``experts``, ``fusion``, ``engine`` and ``sampling``; see
            the README, and ``dlf recipe check``.
        **overrides
            Arguments of the engine that replace the recipe's.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        RecipeError
            A ValueError with all mistakes of the file, each with its line and field.
        """
        from dlf.recipe import load_recipe  # what checks recipes takes a while to import

        return cls(**load_recipe(os.fspath(path)).engine_arguments() | overrides)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the large model."""
        return self._ensemble.tokenizer

    @property
    def vocab_size(self) -> int:
        """Token ids that all models share; logits above it are padding and are never chosen."""
        return self._ensemble.vocab_size

    @property
    def max_context(self) -> int:
        """Tokens of prompt and completion together, for each model."""
        return self._ensemble.max_context

    @property
    def max_batch(self) -> int:
        """Sequences that decode side by side."""
        return self._ensemble.options.max_batch

    @property
    def reads_tokens(self) -> bool:
        """Whether every model reads prompts as they are, without templates or examples: they may be token ids."""
        return all(lane.layout.plain for lane in self._ensemble.lanes.lanes)

    @property
    def experts(self) -> list[str]:
        """Names of the experts: the columns of ``Completion.alpha``."""
        return self._ensemble.labels

    def add_expert(self, expert: AnyExpert | Path) -> None:
        """Take in a further expert; models that are there already are not loaded again.

        Parameters
        ----------
        expert : Expert, InContext, Lora, TaskArithmetic, str or path
            As in the list that the engine was made with.

        Raises
        ------
        RuntimeError
            If requests are running.
        ValueError, TypeError, FileNotFoundError, CheckpointError, TokenizerMismatchError, MemoryError
            As from the engine itself, which then is as it was.
        """
        options = self._ensemble.options
        with self._lock:
            self._change([*self._ensemble.experts, as_expert(expert, options.base, options.weights)])

    def remove_expert(self, name: str) -> None:
        """Let an expert go, with the models that no other needs.

        Raises
        ------
        RuntimeError
            If requests are running.
        ValueError
            If there is no expert of this name, or several.
        """
        with self._lock:
            [number] = chosen_experts([name], self.experts)
            experts = self._ensemble.experts
            self._change(experts[:number] + experts[number + 1 :])

    def _change(self, experts: list[AnyExpert]) -> None:
        self._open()
        running = len(self._running) + self._scoring
        if running:
            raise RuntimeError(
                f"{running} requests are running on the experts of this engine; finish or close them first"
            )
        ensemble = Ensemble.load(self._ensemble.options, experts, known=self._ensemble)
        # The caches of the old loop go before the new one's are taken.
        self._loop = None
        try:
            self._loop = ensemble.loop()
            self._ensemble = ensemble
        except BaseException:
            self._loop = self._ensemble.loop()
            raise

    @overload
    def generate(
        self,
        prompt: str,
        *,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Any: ...

    def generate(
        self,
        prompt: Any = None,
        *,
        messages: Any = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Decode one prompt or a list of prompts.

        Parameters
        ----------
        prompt : str, list of str, list of int, or list of list of int
            Text, or token ids as they are. Each prompt of a list gives exactly what it gives alone.
        messages : list of dict, or list of such lists
            Instead of a prompt: conversations, as ``{"role": "user", "content": "..."}``. Each model reads them by its
            template; one without gets what was said as plain text.
        examples : list of (question, answer), optional
            Examples that the large model reads before the prompt.
        experts : list of str, optional
            Names of the experts to fuse, all of them if not given. Lanes of the others are not run.
        callback : callable, optional
            Receives every `Piece` as it comes; returning False ends its sequence.
        progress : bool, optional
            Whether to show a progress bar; by default for a list of prompts on a terminal.
        speculate : {"auto", False} or Speculation, optional
            Whether tokens are drafted, as in the engine, which says it if this is not given.
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
        prompts, single = as_prompts(prompt, messages)
        sampling = sampling_options(self._defaults | options)
        requests = self._add(prompts, sampling, examples, experts, speculate)
        try:
            if progress is None:
                progress = not single and len(requests) > 1 and sys.stderr.isatty()
            with tqdm(total=len(requests), desc="Generating", unit="seq", disable=not progress) as bar:
                left = requests
                while left:
                    # Requests begin in their order: those behind have no news yet.
                    begun = left[: self._ensemble.options.max_batch]
                    going_on = [request for request in begun if not request.finished]
                    self._deliver(begun, callback)
                    if len(going_on) < len(begun):  # which are over, and all of them is delivered
                        bar.update(len(begun) - len(going_on))
                        left = going_on + left[len(begun) :]
                    elif not any(request.finished for request in begun):
                        self._step(begun)
        finally:
            self._cancel(requests)
        completions = [request.completion() for request in requests]
        return completions[0] if single and len(completions) == 1 else completions

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        """Decode one prompt and yield each step as it comes.

        Closing the iterator early ends the sequence and frees its places. Options and errors are those of `generate`;
        they are checked when this is called, not at the first piece.

        Yields
        ------
        Piece
            One for each token.
        """
        prompts, single = as_prompts(prompt, messages)
        sampling = sampling_options(self._defaults | options)
        if not single or sampling.num_return_sequences != 1:
            raise ValueError("stream decodes one sequence; use generate with a callback for several")
        return self._stream(self._add(prompts, sampling, examples, experts, speculate))

    @overload
    def score(
        self,
        prompt: str,
        continuation: str,
        *,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        progress: bool | None = None,
    ) -> Score: ...

    @overload
    def score(
        self,
        prompt: Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | str | None = None,
        continuation: Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | str = "",
        *,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        progress: bool | None = None,
    ) -> Any: ...

    def score(
        self,
        prompt: Any = None,
        continuation: Any = "",
        *,
        messages: Any = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        progress: bool | None = None,
    ) -> Score | list[Score]:
        """Give the log-probabilities of texts that follow prompts, under the fused distributions.

        They are those of decoding token by token, with the weights of the experts solved at every position; but all
        positions of a continuation go through each model together. It has a place of its own beside the `max_batch` of
        the engine: requests that are running neither wait to be moved on nor hold it up.

        Parameters
        ----------
        prompt : str, list of str, list of int, or list of list of int
            Text, or token ids as they are.
        continuation : str, list of str, list of int, or list of list of int
            What follows it: text, or token ids. A list of prompts takes a list with one for each; one prompt may have
            several, and is read once for all of them. A text is encoded together with what the large model reads
            before it, as lm-evaluation-harness does: spaces at the end of a prompt count as the continuation's.
        messages : list of dict, or list of such lists
            Instead of a prompt, as in `generate`.
        examples : list of (question, answer), optional
            Examples that the large model reads before the prompt.
        experts : list of str, optional
            Names of the experts to fuse, all of them if not given.
        progress : bool, optional
            Whether to show a progress bar; by default for several continuations on a terminal.

        Returns
        -------
        Score or list of Score
            A list if there is one of prompts or of continuations.

        Raises
        ------
        ValueError, TypeError
            If a prompt or a continuation is empty, or both are longer than the context.
        FloatingPointError
            If a model's logits are not finite; the message names the model and the token.
        """
        prompts, one_prompt = as_prompts(prompt, messages)
        continuations, single = as_continuations(continuation, None if one_prompt else len(prompts))
        if one_prompt:
            prompts = [prompts[0]] * len(continuations)  # type: ignore[assignment]
        shots = () if examples is None else as_examples(examples)
        with self._lock:
            self._open()
            chosen = chosen_experts(experts, self.experts)
            names = [self.experts[number] for number in chosen]
            groups = score_groups(self._ensemble, prompts, continuations, chosen, shots)
            self._scoring += 1
        scores: list[Score | None] = [None] * len(continuations)
        if progress is None:
            progress = len(continuations) > 1 and sys.stderr.isatty()
        try:
            with tqdm(total=len(continuations), desc="Scoring", unit="seq", disable=not progress) as bar:
                for group in groups:
                    for numbers, tokens in group.parts():
                        with self._lock:
                            found = self._open().score(group.lanes, chosen, tokens)
                        for number, own, native in zip(numbers, tokens, found, strict=True):
                            _raise_failure(native.error)
                            scores[number] = as_score(native, own, names)
                        bar.update(len(numbers))
        finally:
            with self._lock:
                self._scoring -= 1
        complete = [score for score in scores if score is not None]
        return complete[0] if single else complete

    def close(self) -> None:
        """Free the models and caches; the engine cannot be used afterwards."""
        with self._lock:
            self._running.clear()
            self._loop = None
            self._ensemble = replace(self._ensemble, models=[], adapters=[])

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
                    _raise_failure(request.error)
                    return
                self._step(requests)
        finally:
            self._cancel(requests)

    def _add(
        self,
        prompts: Sequence[Prompt] | Sequence[Messages],
        sampling: SamplingOptions,
        examples: Sequence[Example] | None,
        experts: Sequence[str] | None,
        speculate: Speculate | None,
    ) -> list[RunningRequest]:
        """Check and queue all prompts, or none."""
        speculation = self._speculation if speculate is None else as_speculation(speculate)
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        shots = () if examples is None else as_examples(examples)
        requests: list[RunningRequest] = []
        with self._lock:
            loop, ensemble = self._open(), self._ensemble
            chosen = chosen_experts(experts, self.experts)
            names = [self.experts[number] for number in chosen]
            native_draft = native_speculation(speculation, ensemble, chosen)
            bad_words = [
                self.tokenizer.encode(form, add_special_tokens=False)
                for word in sampling.bad_words or ()
                for form in (word, " " + word)
            ]
            encoded = [
                lane_prompts(
                    ensemble,
                    prompt,
                    chosen,
                    shots,
                    f"prompt {i}" if len(prompts) > 1 else "the prompt",
                    drafter=uses_drafter(native_draft, ensemble),
                )
                for i, prompt in enumerate(prompts)
            ]
            try:
                for i, lanes in enumerate(encoded):
                    for sample in range(sampling.num_return_sequences):
                        native = sampling.build(
                            eos_token_ids=ensemble.eos_token_ids,
                            bad_words_ids=bad_words,
                            seed=seed,
                            stream=sample,
                        )
                        request = RunningRequest(
                            next(self._ids),
                            i * sampling.num_return_sequences + sample,
                            len(lanes[0].tokens),
                            self.tokenizer,
                            StopStrings(sampling.stop_strings or ()),
                            names,
                        )
                        loop.add(request.request, lanes, chosen, native, sampling.max_new_tokens, native_draft)
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
                    if output.drafted >= 0:  # the first token that the step gave it
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
                if callback is not None and callback(piece) is False:
                    request.cut("callback")
                    self._cancel([request])
            _raise_failure(request.error)

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


def _raise_failure(error: str | None) -> None:
    if error:
        raise FloatingPointError(error) if "NaN" in error else ValueError(error)
