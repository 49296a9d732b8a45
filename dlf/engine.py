"""The engine: models, experts and the step loop behind one object."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar, overload

import torch
from tqdm import tqdm

from dlf import _C
from dlf.arguments import Path, Prompt, as_prompts, chosen_experts, positive, prefix_bytes, sampling_options
from dlf.call import Call, Stream
from dlf.checkpoints.precision import Precision
from dlf.devices import Placement
from dlf.driver import CLOSED, Driver, Poll, Submission
from dlf.ensemble import Ensemble, Options
from dlf.experts import EXPERTS, AnyExpert, as_expert, with_alpha
from dlf.memory import Memory
from dlf.prompts import end_tokens, lane_prompts
from dlf.request import RunningRequest, raise_failure
from dlf.results import Completion, Piece, Score
from dlf.sampling import SamplingOptions, StopStrings
from dlf.scoring import as_continuations, as_score, score_groups
from dlf.speculation import Speculate, as_speculation, native_speculation, uses_drafter
from dlf.text.layout import Example, Layout, Messages, as_examples
from dlf.text.tokenizer import Tokenizer

__all__ = ["Engine"]

Callback: TypeAlias = "Callable[[Piece], bool | None]"
Result = TypeVar("Result")


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
        ``~/.cache/dlf``, see docs/guide/quantization.md); ``"int8"`` has a scale for each output channel, ``"int4"``
        one for each 32 inputs, ``"int4-g64"`` one for each 64, which is less exact and, where layers have a multiple of
        64 inputs, smaller. ``"fp32"``, ``"bf16"`` and ``"fp16"`` are the same as `dtype`. An `Expert` may have its own;
        a base used in two types is loaded in both.
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
        Tokens of prompt and completion together; by default what all models were made for, at most 4096. A model with
        two lists of rotary frequencies (``longrope``) takes the long one for every text where this is beyond its
        original length, which the default is not.
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
        self._running: dict[int, RunningRequest | None] = {}  # None is a call of score
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
        self._driver = Driver(self._ensemble.loop(), survives_fork=not placement.cuda)
        weakref.finalize(self, self._driver.close, wait=False)

    @classmethod
    def from_recipe(cls, path: Path, **overrides: Any) -> Engine:
        """Make the engine that a recipe describes.

        Parameters
        ----------
        path : str or path
            A YAML file: ``large``, ``base``, ``template``, ``experts``, ``fusion``, ``engine`` and ``sampling``; see
            docs/guide/recipes.md, and ``dlf recipe check``.
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
    def memory(self) -> Memory:
        """What the engine takes of memory, by part, as planned before its models were loaded.

        The same is logged then (``logging.getLogger("dlf")``, level INFO), and is in the error where it does not fit.
        """
        return self._ensemble.memory

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
        new = as_expert(expert, options.base, options.weights)
        self._change(lambda experts: [*experts, new])

    def remove_expert(self, name: str) -> None:
        """Let an expert go, with the models that no other needs.

        Raises
        ------
        RuntimeError
            If requests are running.
        ValueError
            If there is no expert of this name, or several.
        """

        def without(experts: list[AnyExpert]) -> list[AnyExpert]:
            [number] = chosen_experts([name], [expert.label for expert in experts])
            return experts[:number] + experts[number + 1 :]

        self._change(without)

    def _change(self, change: Callable[[list[AnyExpert]], list[AnyExpert]]) -> None:
        """Load what is new in this thread, and take it between two steps, if nothing runs then."""

        def load(known: Ensemble) -> None:
            self._check_idle()
            found = Ensemble.load(known.options, change(known.experts), known=known)

            def swap(poll: Poll) -> None:
                self._check_ensemble(known)
                self._check_idle()
                self._driver.replace(found.loop, known.loop)
                self._ensemble = found

            self._driver.call(swap)

        self._on_ensemble(load)

    def _check_idle(self) -> None:
        running = len(self._running)
        if running:
            raise RuntimeError(
                f"{running} requests are running on the experts of this engine; finish or close them first"
            )

    def _on_ensemble(self, work: Callable[[Ensemble], Result]) -> Result:
        """Do what needs the ensemble, and do it again if that changed before the driver had it."""
        while True:
            ensemble = self._ensemble
            if not ensemble.models:
                raise RuntimeError(CLOSED)
            try:
                return work(ensemble)
            except _Changed:
                continue

    def _check_ensemble(self, ensemble: Ensemble) -> None:
        if self._ensemble is not ensemble:
            raise _Changed

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
        call = self._start(prompts, sampling, examples, experts, speculate)
        if progress is None:
            progress = not single and len(call.requests) > 1 and sys.stderr.isatty()
        try:
            with tqdm(total=len(call.requests), desc="Generating", unit="seq", disable=not progress) as bar:
                left = len(call.requests)
                while left:
                    for request in call.receive():
                        _deliver(call, request, callback)
                        left -= request.finished
                        bar.update(int(request.finished))
        finally:
            call.cancel()
        completions = [request.completion() for request in call.requests]
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
    ) -> Stream:
        """Decode one prompt and yield each step as it comes.

        Options and errors are those of `generate`; they are checked when this is called, not at the first piece.

        Returns
        -------
        Stream
            An iterator over the `Piece` of each token. Closing it, leaving its ``with`` block or forgetting it ends the
            sequence and frees its places.
        """
        prompts, single = as_prompts(prompt, messages)
        sampling = sampling_options(self._defaults | options)
        if not single or sampling.num_return_sequences != 1:
            raise ValueError("stream decodes one sequence; use generate with a callback for several")
        return Stream(self._start(prompts, sampling, examples, experts, speculate), self)

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
        if progress is None:
            progress = len(continuations) > 1 and sys.stderr.isatty()

        def work(ensemble: Ensemble) -> list[Score]:
            chosen = chosen_experts(experts, ensemble.labels)
            names = [ensemble.labels[number] for number in chosen]
            scores: list[Score | None] = [None] * len(continuations)
            bar = tqdm(total=len(continuations), desc="Scoring", unit="seq", disable=not progress)
            with bar, _Entered(self._running, next(self._ids)):
                for group in score_groups(ensemble, prompts, continuations, chosen, shots):
                    for numbers, tokens in group.parts():
                        found = self._driver.call(self._scoring(ensemble, group.lanes, chosen, tokens), long=True)
                        for number, own, native in zip(numbers, tokens, found, strict=True):
                            raise_failure(native.error)
                            scores[number] = as_score(native, own, names)
                        bar.update(len(numbers))
            return [score for score in scores if score is not None]

        complete = self._on_ensemble(work)
        return complete[0] if single else complete

    def _scoring(
        self, ensemble: Ensemble, lanes: list[_C.Prompt], chosen: list[int], continuations: list[list[int]]
    ) -> Callable[[Poll], list[_C.Score]]:
        def work(poll: Poll) -> list[_C.Score]:
            self._check_ensemble(ensemble)
            return self._driver.loop.score(lanes, chosen, continuations, poll)

        return work

    def close(self) -> None:
        """Free the models and caches; requests that are running fail. The engine cannot be used afterwards."""
        self._driver.close()
        self._ensemble = replace(self._ensemble, models=[], adapters=[])

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(
        self,
        prompts: Sequence[Prompt] | Sequence[Messages],
        sampling: SamplingOptions,
        examples: Sequence[Example] | None,
        experts: Sequence[str] | None,
        speculate: Speculate | None,
    ) -> Call:
        """Check and queue all prompts, or none."""
        speculation = self._speculation if speculate is None else as_speculation(speculate)
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        shots = () if examples is None else as_examples(examples)

        def work(ensemble: Ensemble) -> Call:
            chosen = chosen_experts(experts, ensemble.labels)
            names = [ensemble.labels[number] for number in chosen]
            native_draft = native_speculation(speculation, ensemble, chosen)
            bad_words = [
                ensemble.tokenizer.encode(form, add_special_tokens=False)
                for word in sampling.bad_words or ()
                for form in (word, " " + word)
            ]
            requests: list[RunningRequest] = []
            submissions: list[Submission] = []
            for i, prompt in enumerate(prompts):
                which = f"prompt {i}" if len(prompts) > 1 else "the prompt"
                drafter = uses_drafter(native_draft, ensemble)
                lanes = lane_prompts(ensemble, prompt, chosen, shots, which, drafter=drafter)
                ends = end_tokens(ensemble, prompt)
                for sample in range(sampling.num_return_sequences):
                    native = sampling.build(eos_token_ids=ends, bad_words_ids=bad_words, seed=seed, stream=sample)
                    request = RunningRequest(
                        next(self._ids),
                        i * sampling.num_return_sequences + sample,
                        len(lanes[0].tokens),
                        ensemble.tokenizer,
                        StopStrings(sampling.stop_strings or ()),
                        names,
                    )
                    requests.append(request)
                    submissions.append((request.request, lanes, chosen, native, sampling.max_new_tokens, native_draft))
            call = Call(self._driver, self._running)
            call.start(requests, submissions, lambda: self._check_ensemble(ensemble))
            return call

        return self._on_ensemble(work)


class _Changed(Exception):
    """The experts changed while a request was prepared."""


class _Entered:
    """A call of score among what is running; it leaves with whoever holds it, whatever interrupts him."""

    def __init__(self, running: dict[int, RunningRequest | None], number: int) -> None:
        self._running, self._number = running, number
        running[number] = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        self._running.pop(self._number, None)

    __del__ = __exit__


def _deliver(call: Call, request: RunningRequest, callback: Callback | None) -> None:
    while request.pieces:
        piece = request.pieces.popleft()
        if callback is not None and callback(piece) is False:
            call.cut(request, "callback")
    request.raise_failure()
