"""The paper's loop in ``transformers`` on a GPU, as in bench/peers/transformers_loop.py.

It runs eagerly, or with static caches and torch.compile.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import log_softmax

from bench.gpu.shapes import device
from bench.peers.paper_grid import GRID, kl, torch_grid


def eager_token(large: torch.Tensor, expert: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The most probable token under the grid's weight, as the paper's authors find it."""
    ((_, weight),) = torch_grid(large[None], base[None], expert[None, None])
    return (large + weight * (expert - base)).argmax()


def grid_token(large: torch.Tensor, expert: torch.Tensor, base: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """The same without a wait of the host, so that it can be compiled."""
    p, b, tuned = log_softmax(large, -1), log_softmax(base, -1), log_softmax(expert, -1)
    fused = log_softmax(large + alphas[:, None] * (tuned - b), -1)
    losses = (kl(fused, p) - kl(tuned, b)) ** 2 + (kl(p, fused) - kl(b, tuned)) ** 2
    return (large + alphas[losses.argmin()] * (expert - base)).argmax()


class PaperLoop:
    """Large model, expert and base."""

    def __init__(self, models: Sequence[Any], compiled: bool, max_context: int) -> None:
        self.models = models
        self.compiled = compiled
        self.max_context = max_context
        # Newer versions call the argument `cache`.
        names = inspect.signature(models[0].forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        self.takes_position = "cache_position" in names
        self.calls: list[Callable[..., Any]] = list(models)
        self.token: Callable[..., torch.Tensor] = eager_token
        if compiled:
            alphas = torch.from_numpy(GRID).float().to(device())
            choose = torch.compile(grid_token)
            self.token = lambda large, expert, base: choose(large, expert, base, alphas)
            self.calls = [torch.compile(model, mode="reduce-overhead") for model in models]

    def caches(self) -> list[Any]:
        from transformers import DynamicCache, StaticCache

        if self.compiled:
            return [StaticCache(config=model.config, max_cache_len=self.max_context) for model in self.models]
        return [DynamicCache() for _ in self.models]

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        caches = self.caches()
        tokens = torch.tensor([prompt], device=device())
        position = torch.arange(len(prompt), device=device())
        calls: Sequence[Callable[..., Any]] = self.models  # the prompt runs once, so compiling would not pay
        while True:
            logits = []
            with torch.inference_mode(not self.compiled), torch.no_grad():
                if self.compiled:
                    torch.compiler.cudagraph_mark_step_begin()
                for call, cache in zip(calls, caches, strict=True):
                    options: dict[str, Any] = {self.cache_name: cache, "use_cache": True, "logits_to_keep": 1}
                    if self.compiled:
                        options["position_ids"] = position[None]
                        if self.takes_position:
                            options["cache_position"] = position
                    # A copy, since the next replay of a graph overwrites the logits.
                    logits.append(call(tokens, **options).logits[0, -1].float().clone())
                token = self.token(*logits)
                tokens, position = token.view(1, 1).clone(), position[-1:] + 1
            yield int(token)
            calls = self.calls
