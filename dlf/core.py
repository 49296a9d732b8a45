"""The common core of `Engine` and `AsyncEngine`: models, the driver of the step loop, and the work of each call."""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

from tqdm import tqdm

from dlf import _C
from dlf.arguments import Path, chosen_experts
from dlf.call import Call
from dlf.driver import Driver, Poll, closed
from dlf.ensemble import Ensemble
from dlf.errors import OptionTypeError
from dlf.experts import AnyExpert, as_expert
from dlf.guidance import OPTIONS
from dlf.memory import Memory
from dlf.options import EngineOptions
from dlf.own_rule import OwnRule, RuleFunction, StepLogits
from dlf.prepare import Generation, Scoring, prepare
from dlf.request import RunningRequest, raise_failure
from dlf.results import CacheUse, Completion, Piece, Score
from dlf.rule import FIELDS, Rule, take_rule
from dlf.scoring import as_score, score_groups
from dlf.speculation import Speculate
from dlf.support.option import arguments_of
from dlf.text.layout import Example
from dlf.text.tokenizer import Tokenizer
from dlf.waiting import Waiting

__all__ = ["Callback", "EngineCore"]

Callback: TypeAlias = "Callable[[Piece], bool | None]"
Result = TypeVar("Result")


class EngineCore:
    """Models, experts and the step loop behind one object; how calls wait is left to `Engine` and `AsyncEngine`."""

    @arguments_of(EngineOptions)
    def __init__(self, *arguments: Any, **options: Any) -> None:
        wanted = EngineOptions(*arguments, **options)
        self._running: dict[int, RunningRequest | None] = {}  # None for a call of score
        self._ids = itertools.count()
        self._ensemble = Ensemble.load(wanted, wanted.whole_experts())
        self._driver = Driver(self._ensemble.loop(), survives_fork=not wanted.placement.cuda)
        weakref.finalize(self, self._driver.close, wait=False)

    @classmethod
    def from_recipe(cls, path: Path, **overrides: Any) -> Self:
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
        from dlf.recipe import load_recipe  # slow to import

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
        """Memory that the engine takes, by part, as planned before its models were loaded.

        The plan is logged then (``logging.getLogger("dlf")``, level INFO); if it does not fit, the error shows it.
        """
        return self._ensemble.memory

    @property
    def reads_tokens(self) -> bool:
        """Whether prompts may be token ids: no lane has a template or examples."""
        return all(lane.layout.plain for lane in self._ensemble.lanes.lanes)

    @property
    def reads_chats(self) -> bool:
        """Whether a chat template writes conversations for the large model, rather than their contents one by one."""
        return self._ensemble.lanes.lanes[0].layout.is_chat([], self.tokenizer)

    @property
    def experts(self) -> list[str]:
        """Names of the experts: the columns of ``Completion.alpha``."""
        return self._ensemble.labels

    async def _add(self, waiting: Waiting, expert: AnyExpert | Path) -> None:
        options = self._ensemble.options
        new = as_expert(expert, options.base, options.weights)
        await self._change(waiting, lambda experts: [*experts, new])

    async def _remove(self, waiting: Waiting, name: str) -> None:
        def without(experts: list[AnyExpert]) -> list[AnyExpert]:
            [number] = chosen_experts([name], [expert.label for expert in experts])
            return experts[:number] + experts[number + 1 :]

        await self._change(waiting, without)

    async def _change(self, waiting: Waiting, change: Callable[[list[AnyExpert]], list[AnyExpert]]) -> None:
        """Load the changed ensemble aside and swap it in between two steps; refused while requests are running."""

        async def load(known: Ensemble) -> None:
            self._check_idle()
            found = await waiting.aside(lambda: Ensemble.load(known.options, change(known.experts), known=known))

            def swap(poll: Poll) -> None:
                self._check_ensemble(known)
                self._check_idle()
                self._driver.replace(found.loop, known.loop)
                self._ensemble = found

            await waiting.answer(self._driver, swap)

        await self._on_ensemble(load)

    def _check_idle(self) -> None:
        running = len(self._running)
        if running:
            raise RuntimeError(
                f"{running} requests are running on the experts of this engine; finish or close them first"
            )

    async def _on_ensemble(self, work: Callable[[Ensemble], Awaitable[Result]]) -> Result:
        """Run work that needs the ensemble; repeat it if the ensemble changed before the driver took the work."""
        while True:
            ensemble = self._ensemble
            if not ensemble.models:
                raise closed()
            try:
                return await work(ensemble)
            except _Changed:
                continue

    def _check_ensemble(self, ensemble: Ensemble) -> None:
        if self._ensemble is not ensemble:
            raise _Changed

    def _generation(
        self,
        prompt: Any,
        messages: Any,
        examples: Sequence[Example] | None,
        experts: Sequence[str] | None,
        rule: Rule | RuleFunction | None,
        speculate: Speculate | None,
        options: dict[str, Any],
    ) -> Generation:
        """Check the arguments of a call; the engine's options supply those that it leaves out."""
        asked = self._ensemble.options
        return Generation.of(
            prompt,
            messages,
            {**(asked.defaults or {}), **options},
            examples=examples,
            experts=experts,
            rule=rule,
            speculate=asked.speculate if speculate is None else speculate,
        )

    def _logits(
        self,
        prompt: Any,
        messages: Any,
        examples: Sequence[Example] | None,
        experts: Sequence[str] | None,
        rule: Rule | None,
        options: dict[str, Any],
    ) -> tuple[Generation, list[StepLogits]]:
        """Prepare a request for one token, and a list that gets the logits from which it is drawn."""
        found: list[StepLogits] = []
        fields, others = take_rule(rule, options)
        guidance = {name: others.pop(name) for name in OPTIONS if name in others}
        for name in others:
            raise OptionTypeError(f"no option is called {name!r}; there are: {', '.join(FIELDS)}", name)
        one: dict[str, Any] = {"max_new_tokens": 1, "ignore_eos": True, **guidance}
        wanted = Generation.of(
            prompt,
            messages,
            one,
            examples=examples,
            experts=experts,
            rule=lambda step: found.append(step.clone()),
            speculate=False,
        )
        wanted.check_single()
        return replace(wanted, rule=fields), found

    async def _start(self, waiting: Waiting, wanted: Generation) -> Call:
        """Encode and queue all prompts, or none."""

        async def start(ensemble: Ensemble) -> Call:
            requests, submissions = await waiting.aside(partial(prepare, ensemble, wanted, self._ids))
            call = Call(self._driver, self._running, waiting)
            await call.start(requests, submissions, lambda: self._check_ensemble(ensemble))
            return call

        return await self._on_ensemble(start)

    async def _complete(
        self, waiting: Waiting, wanted: Generation, callback: Callback | None = None, progress: bool | None = None
    ) -> Completion | list[Completion]:
        call = await self._start(waiting, wanted)
        if progress is None:
            progress = not wanted.single and len(call.requests) > 1 and sys.stderr.isatty()
        try:
            with tqdm(total=len(call.requests), desc="Generating", unit="seq", disable=not progress) as bar:
                left = len(call.requests)
                while left:
                    for request in await call.receive():
                        _deliver(call, request, callback)
                        left -= request.finished
                        bar.update(int(request.finished))
        finally:
            call.cancel()
        completions = [request.completion() for request in call.requests]
        return completions[0] if wanted.single and len(completions) == 1 else completions

    async def _score(self, waiting: Waiting, wanted: Scoring, progress: bool | None = None) -> Score | list[Score]:
        count = len(wanted.continuations)
        if progress is None:
            progress = count > 1 and sys.stderr.isatty()

        async def score(ensemble: Ensemble) -> list[Score]:
            chosen = chosen_experts(wanted.experts, ensemble.labels)
            names = [ensemble.labels[number] for number in chosen]
            rule = ensemble.rule(wanted.guided.rule(wanted.rule, ensemble, chosen), wanted.experts, chosen)
            beside = wanted.guided.beside(ensemble, chosen, count)
            scores: list[Score | None] = [None] * count
            bar = tqdm(total=count, desc="Scoring", unit="seq", disable=not progress)
            with bar, _Entered(self._running, next(self._ids)):
                given = wanted.prompts, wanted.continuations, chosen, wanted.examples, beside
                for group in await waiting.aside(partial(score_groups, ensemble, *given)):
                    for numbers, tokens in group.parts():
                        hook = None if wanted.own_rule is None else OwnRule(wanted.own_rule, names)
                        work = self._scoring(ensemble, _C.ScoreRequest(group.lanes, chosen, tokens, rule), hook)
                        found = await waiting.answer(self._driver, work, long=True)
                        for number, own, native in zip(numbers, tokens, found, strict=True):
                            raise_failure(native.failure, hook)
                            scores[number] = as_score(native, own, names)
                        bar.update(len(numbers))
            return [one for one in scores if one is not None]

        complete = await self._on_ensemble(score)
        return complete[0] if wanted.single else complete

    def _scoring(
        self, ensemble: Ensemble, request: _C.ScoreRequest, hook: OwnRule | None
    ) -> Callable[[Poll], list[_C.Score]]:
        def work(poll: Poll) -> list[_C.Score]:
            self._check_ensemble(ensemble)
            return self._driver.loop.score(request, poll, hook)

        return work

    async def _cache_use(self, waiting: Waiting) -> CacheUse:
        def work(_: Poll) -> CacheUse:
            return CacheUse(self._driver.loop.cache_use, self._driver.loop.put_back)

        return await waiting.answer(self._driver, work)

    def _close(self) -> None:
        self._driver.close()
        self._ensemble = replace(self._ensemble, models=[], adapters=[])


class _Changed(Exception):
    """The experts changed while a request was prepared."""


class _Entered:
    """Lists a call of score as running, until its ``with`` block ends or it is forgotten."""

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
