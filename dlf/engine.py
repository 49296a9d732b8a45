"""The engine whose calls block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, overload

from dlf.arguments import Path, Prompt
from dlf.core import Callback, EngineCore
from dlf.experts import AnyExpert
from dlf.own_rule import RuleFunction, StepLogits
from dlf.prepare import Scoring
from dlf.results import CacheUse, Completion, Score
from dlf.rule import Rule
from dlf.speculation import Speculate
from dlf.stream import Stream
from dlf.text.layout import Example
from dlf.waiting import Blocking, run

__all__ = ["Engine"]

BLOCKING = Blocking()


class Engine(EngineCore):
    """A large language model specialised at decoding time by small experts.

    At every step the logits are ``large + sum_t alpha_t (expert_t - base_t)``, with the weights solved so that the
    fused distribution moves away from the large model's as far, in KL divergence, as the expert moved from its base
    (Fan et al., NeurIPS 2024, arXiv 2406.15480).

    Parameters
    ----------
    large, experts, **options
        The fields of `EngineOptions`.

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

    def add_expert(self, expert: AnyExpert | Path) -> None:
        """Add an expert; models that are loaded already are not loaded again.

        Parameters
        ----------
        expert : Expert, InContext, Lora, TaskArithmetic, str or path
            As in `EngineOptions.experts`.

        Raises
        ------
        RuntimeError
            If requests are running.
        ValueError, TypeError, FileNotFoundError, CheckpointError, TokenizerMismatchError, MemoryError
            As when an engine is made; the engine then stays as it was.
        """
        run(self._add(BLOCKING, expert))

    def remove_expert(self, name: str) -> None:
        """Remove an expert, and the models that no other needs.

        Raises
        ------
        RuntimeError
            If requests are running.
        ValueError
            If there is no expert of this name, or several.
        """
        run(self._remove(BLOCKING, name))

    @overload
    def generate(
        self,
        prompt: str,
        *,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
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
        rule: Rule | RuleFunction | None = None,
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
        rule: Rule | RuleFunction | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Decode one prompt or a list of prompts.

        Parameters
        ----------
        prompt : str, list of str, list of int, or list of list of int
            Text, or token ids as they are. Each prompt of a list has exactly the result that it has alone.
        messages : list of dict, or list of such lists
            Conversations instead of prompts, as ``{"role": "user", "content": "..."}``. Each model reads them in its
            chat template; a model without one reads their contents as plain text.
        examples : list of (question, answer), optional
            Examples that the large model reads before the prompt.
        experts : list of str, optional
            Names of the experts to fuse; all by default. Lanes of the others do not run.
        callback : callable, optional
            Receives every `Piece` as it comes; returning False ends its sequence.
        progress : bool, optional
            Whether to show a progress bar; by default for a list of prompts on a terminal.
        rule : Rule or callable, optional
            How the weights of the experts are found; fields that are None are the engine's. A function gets the
            `StepLogits` of every step, and returns None, logits [B, V] or weights [B, T]; an exception from it ends its
            request. It runs in Python, on the engine's thread, for one request after the other, so every request of
            the batch waits for it; on CUDA steps then run without a graph.
        speculate : {"auto", False} or Speculation, optional
            Whether tokens are drafted; as in the engine by default.
        **options
            Fields of `SamplingOptions`, and of `Rule`, which override those of `rule`. ``grammar``: a `dlf.Grammar`
            that each answer must follow; like a function as rule, it runs in Python. ``priority``: an integer; requests
            that wait begin with the lowest, those of one priority in turn, and where memory runs out the highest is put
            back first. For `dlf.Guidance`:
            ``negative_prompt`` and ``positive_prompt`` (a text, token ids or messages; a list has one for each prompt,
            a mapping one for each expert by name) and ``guidance_scale`` (a number, or a mapping by name). For
            messages, as in ``transformers``: ``tools``, ``add_generation_prompt``, ``continue_final_message`` and
            ``chat_template_kwargs``.

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
        wanted = self._generation(prompt, messages, examples, experts, rule, speculate, options)
        return run(self._complete(BLOCKING, wanted, callback, progress))

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        speculate: Speculate | None = None,
        **options: Any,
    ) -> Stream:
        """Decode one prompt and yield each step as it comes.

        Options and errors are those of `generate`; they are checked when this is called, not at the first piece.

        Returns
        -------
        Stream
            An iterator over the `Piece` of each token. Closing it, leaving its ``with`` block or forgetting it ends the
            sequence and frees its slots.
        """
        wanted = self._generation(prompt, messages, examples, experts, rule, speculate, options)
        wanted.check_single()
        return Stream(run(self._start(BLOCKING, wanted)), self)

    def logits(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | None = None,
        **options: Any,
    ) -> StepLogits:
        """Return the logits of all models after a prompt, and the fused ones.

        To see those of every step without copies, give `generate` a function as `rule`.

        Parameters
        ----------
        prompt, messages, examples, experts, rule
            As in `generate`, for one prompt.
        **options
            Fields of `Rule`, and the options of `generate` for `dlf.Guidance`.

        Returns
        -------
        StepLogits
            Logits of one position, ``[1, V]``.

        Raises
        ------
        ValueError, TypeError
            As from `generate`.
        """
        wanted, found = self._logits(prompt, messages, examples, experts, rule, options)
        run(self._complete(BLOCKING, wanted, progress=False))
        return found[0]

    @overload
    def score(
        self,
        prompt: str,
        continuation: str,
        *,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        progress: bool | None = None,
        **options: Any,
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
        rule: Rule | RuleFunction | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Any: ...

    def score(
        self,
        prompt: Any = None,
        continuation: Any = "",
        *,
        messages: Any = None,
        examples: Sequence[Example] | None = None,
        experts: Sequence[str] | None = None,
        rule: Rule | RuleFunction | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Score | list[Score]:
        """Give the log-probabilities of texts that follow prompts, under the fused distributions.

        They are those of decoding token by token, with the weights of the experts solved at every position, but all
        positions of a continuation go through each model together. Scoring has a slot of its own beside the engine's
        `max_batch`: it neither waits for running requests nor holds them up.

        Parameters
        ----------
        prompt : str, list of str, list of int, or list of list of int
            Text, or token ids as they are.
        continuation : str, list of str, list of int, or list of list of int
            Text or token ids after the prompt. A list of prompts takes a list with one for each; one prompt may have
            several, and is read once for all of them. Text is encoded together with the large model's prompt, as in
            lm-evaluation-harness: spaces at the end of a prompt count as the continuation's.
        messages : list of dict, or list of such lists
            Conversations instead of prompts, as in `generate`.
        examples : list of (question, answer), optional
            Examples that the large model reads before the prompt.
        experts : list of str, optional
            Names of the experts to fuse; all by default.
        rule : Rule or callable, optional
            How the weights of the experts are found, as in `generate`.
        progress : bool, optional
            Whether to show a progress bar; by default for several continuations on a terminal.
        **options
            Fields of `Rule`, which override those of `rule`, and the options of `generate` for `dlf.Guidance`.

        Returns
        -------
        Score or list of Score
            A list if `prompt` or `continuation` is a list.

        Raises
        ------
        ValueError, TypeError
            If a prompt or a continuation is empty, or both are longer than the context.
        FloatingPointError
            If a model's logits are not finite; the message names the model and the token.
        """
        wanted = Scoring.of(prompt, continuation, messages, options, examples=examples, experts=experts, rule=rule)
        return run(self._score(BLOCKING, wanted, progress))

    def cache_use(self) -> CacheUse:
        """Return how full the KV caches are, between two steps of the engine.

        Raises
        ------
        RuntimeError
            If the engine is closed.
        """
        return run(self._cache_use(BLOCKING))

    def close(self) -> None:
        """Free the models and caches; requests that are running fail. The engine cannot be used afterwards."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
