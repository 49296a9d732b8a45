"""The results of generation and scoring."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dlf.errors import OptionError

__all__ = ["Completion", "Piece", "Score", "Step", "Timings", "Trace"]


@dataclass(frozen=True)
class Piece:
    """One token of one sequence, as `Engine.stream` yields it and callbacks receive it.

    Attributes
    ----------
    text : str
        Text that became certain with this token; empty while a character or a possible stop string is incomplete.
    token : int
        Token id.
    logprob : float
        Its log-probability under the fused distribution, before temperature and penalties, in nats.
    alpha : ndarray
        Weight of each expert, float64 ``[experts]``.
    index : int
        Number of its sequence in the call.
    f, g : float
        KL(fused || large) and KL(large || fused) at this step, in nats.
    top_logprobs : dict or None
        The most probable tokens and their log-probabilities, if ``logprobs`` asked for them.
    own_token : int or None
        With the option ``trace``: the token that the large model alone would have chosen here.
    """

    text: str
    token: int
    logprob: float
    alpha: npt.NDArray[np.float64]
    index: int = 0
    f: float = 0.0
    g: float = 0.0
    top_logprobs: dict[int, float] | None = None
    own_token: int | None = None


@dataclass
class Step:
    """One step of the engine that a sequence took part in.

    Attributes
    ----------
    seconds : float
        Time since the step before it; for the first one, since the request.
    tokens : int
        Tokens that it gave the sequence.
    drafted : int
        Tokens that it drafted for each of its sequences, on CUDA; 0 on a CPU, where each has its own draft.
    drafter : int
        Source of the drafted tokens, if any: a lane of the engine, or -2 for prompt lookup.
    graph : bool
        Whether it was launched as one CUDA graph.
    small_passes : int
        Passes of the models beside the large one, each counted, for all of its sequences; those that read prompts are
        not. A closed gate saves them.
    """

    seconds: float
    tokens: int
    drafted: int
    drafter: int
    graph: bool
    small_passes: int


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds.

    Attributes
    ----------
    time_to_first_token : float
        Time from the request to its first token, waiting for a free slot included.
    token_times : ndarray
        Time between each token and the one before it, float64 ``[steps - 1]``; tokens of one pass come together.
    shares : dict
        Fractions of the steps' time spent in the ``large`` model, the ``small`` models, ``solve`` and ``sample``; all
        zero on CUDA, where a step is one launch.
    steps : list of Step
        Each step that the sequence took part in.
    """

    time_to_first_token: float
    token_times: npt.NDArray[np.float64]
    shares: dict[str, float]
    steps: list[Step] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Rate after the first token; 0 if there was only one."""
        total = float(self.token_times.sum())
        return len(self.token_times) / total if total > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """One generated sequence.

    Attributes
    ----------
    text : str
        Decoded text without special tokens and without the stop string that ended it.
    tokens : list of int
        Every token that was decoded, the end-of-sequence token included.
    logprobs : ndarray
        Log-probability of each token under the fused distribution, before temperature and penalties;
        float64 ``[steps]``.
    alpha : ndarray
        Weight of each expert at each step, float64 ``[steps, experts]``.
    f, g : ndarray
        KL(fused || large) and KL(large || fused) at each step, in nats, float64 ``[steps]``.
    finish_reason : str or None
        ``"stop"`` (end of sequence, stop token or stop string), ``"length"`` (max_new_tokens or context),
        ``"callback"``, ``"error"``, or ``"cancelled"`` for a stream that was closed before its end;
        None while it runs.
    prompt_tokens : int
        Length of the large model's prompt in tokens.
    timings : Timings
        Where the time went.
    experts : list of str
        Names of the columns of `alpha`.
    top_logprobs : list of dict
        For each step the most probable tokens and their log-probabilities, if ``logprobs`` asked for them.
    cached_tokens : int
        Prompt tokens that the prefix cache had, of all lanes.
    passes : int
        Passes of the large model that gave a token, or several if they had been drafted; the prompt's is the first.
    drafted : int
        Tokens that were drafted; ``len(tokens) - passes`` of them were accepted.
    own_tokens : list of int
        With the option ``trace``: the token that the large model alone would have chosen at each step, after the same
        text and with the same random number.
    alpha_max : list of float or None
        Upper bound of each expert's weight; None for a weight that was given.
    """

    text: str
    tokens: list[int]
    logprobs: npt.NDArray[np.float64]
    alpha: npt.NDArray[np.float64]
    f: npt.NDArray[np.float64]
    g: npt.NDArray[np.float64]
    finish_reason: str | None
    prompt_tokens: int
    timings: Timings
    experts: list[str] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    cached_tokens: int = 0
    passes: int = 0
    drafted: int = 0
    own_tokens: list[int] = field(default_factory=list)
    alpha_max: list[float | None] = field(default_factory=list)

    @property
    def trace(self) -> Trace:
        """What the fusion did at each token."""
        bounds = np.array([np.nan if bound is None else bound for bound in self.alpha_max], np.float64)
        changed = np.array(self.own_tokens) != np.array(self.tokens) if self.own_tokens else None
        return Trace(self.alpha, self.f, self.g, bounds, changed, list(self.experts))


@dataclass(frozen=True)
class Trace:
    """What the fusion did at each token of a completion.

    Attributes
    ----------
    alpha : ndarray
        Weight of each expert, float64 ``[steps, experts]``.
    f, g : ndarray
        KL(fused || large) and KL(large || fused), in nats, float64 ``[steps]``.
    alpha_max : ndarray
        Upper bound of each expert's weight, float64 ``[experts]``; NaN for a weight that was given.
    changed : ndarray or None
        Whether the large model alone would have chosen another token, after the same text and with the same random
        number; bool ``[steps]``. None unless the request had ``trace=True``.
    experts : list of str
        Names of the columns of `alpha`.
    """

    alpha: npt.NDArray[np.float64]
    f: npt.NDArray[np.float64]
    g: npt.NDArray[np.float64]
    alpha_max: npt.NDArray[np.float64]
    changed: npt.NDArray[np.bool_] | None
    experts: list[str]

    @property
    def changed_share(self) -> float:
        """Share of the tokens that the fusion changed.

        Raises
        ------
        ValueError
            If the request was made without ``trace=True``.
        """
        if self.changed is None:
            raise OptionError("the request was not traced: give generate the option trace=True", "trace")
        return float(self.changed.mean()) if self.changed.size else 0.0

    @property
    def bound_share(self) -> float:
        """Share of the solved weights that lie at their upper bound; 0 if none was solved."""
        solved = ~np.isnan(self.alpha_max)
        at_bound = self.alpha[:, solved] >= self.alpha_max[solved] * (1 - 1e-6)
        return float(at_bound.mean()) if at_bound.size else 0.0


@dataclass(frozen=True)
class CacheUse:
    """How full the KV caches of an engine are.

    Attributes
    ----------
    share : float
        Share of the cache that running requests hold, from 0 to 1, of the model where it is largest.
    put_back : int
        How often a request was put back, to go on later, because memory ran out.
    """

    share: float
    put_back: int


@dataclass(frozen=True)
class Score:
    """Scores of the tokens of one continuation under the fused distributions.

    Attributes
    ----------
    tokens : list of int
        Tokens of the continuation.
    logprobs : ndarray
        Log-probability of each token, given the prompt and the tokens before it, in nats; float64 ``[tokens]``.
    is_greedy : ndarray
        Whether it is the most probable token, which greedy decoding would have chosen; bool ``[tokens]``.
    alpha : ndarray
        Weight of each expert at each token, float64 ``[tokens, experts]``.
    f, g : ndarray
        KL(fused || large) and KL(large || fused) at each token, in nats, float64 ``[tokens]``.
    experts : list of str
        Names of the columns of `alpha`.
    """

    tokens: list[int]
    logprobs: npt.NDArray[np.float64]
    is_greedy: npt.NDArray[np.bool_]
    alpha: npt.NDArray[np.float64]
    f: npt.NDArray[np.float64]
    g: npt.NDArray[np.float64]
    experts: list[str] = field(default_factory=list)

    @property
    def logprob(self) -> float:
        """Log-probability of the whole continuation."""
        return float(self.logprobs.sum())
