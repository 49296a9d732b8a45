"""A function of the caller as the rule of a request, and the logits that it gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from dlf import _C
from dlf.errors import OptionError, OptionTypeError

__all__ = ["OwnRule", "RuleFunction", "StepLogits"]


@dataclass(frozen=True, eq=False)
class StepLogits:
    """Logits of all models at the positions of one step of a request.

    There are B positions: the one after the last token, then one after each drafted token. The tensors are on the
    engine's device, float32, and show the engine's own memory: do not change them, and copy what is needed later.

    Attributes
    ----------
    large : [B, V]
        Logits of the large model.
    experts, bases : list of [B, V] or None
        Logits of the request's experts and of their bases, in the engine's order; None for an expert without a base,
        and for models that a closed gate held back.
    fused : [B, V]
        Logits as the request's rule fuses them.
    alpha : [B, T]
        Weights of the rule.
    f, g : [B]
        KL(fused || large) and KL(large || fused), in nats.
    names : list of str
        Names of the experts.
    step : int
        Number of tokens that were decoded before the first position.
    tokens : list of int
        The token before each position, [B]: the prompt's last one or the last decoded one, then the drafted ones.
        Empty where positions are scored.
    state : dict
        Belongs to the request: what a function keeps here it finds at the next step. A position after a drafted token
        may come again, so a function that keeps something keeps it by step.
    """

    large: torch.Tensor
    experts: list[torch.Tensor | None]
    bases: list[torch.Tensor | None]
    fused: torch.Tensor
    alpha: torch.Tensor
    f: torch.Tensor
    g: torch.Tensor
    names: list[str]
    step: int
    tokens: list[int] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    def clone(self) -> StepLogits:
        """Copy all tensors, so that they outlive the step."""

        def copies(tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
            return [None if one is None else one.clone() for one in tensors]

        own = (self.fused.clone(), self.alpha.clone(), self.f.clone(), self.g.clone())
        return StepLogits(
            self.large.clone(),
            copies(self.experts),
            copies(self.bases),
            *own,
            self.names,
            self.step,
            self.tokens,
            self.state,
        )


RuleFunction: TypeAlias = "Callable[[StepLogits], torch.Tensor | None]"


class OwnRule:
    """Runs a function of the caller at each step of one request, on the thread that steps.

    The function returns None to leave the fused logits as they are, logits [B, V] to draw the next tokens from, or
    weights [B, T], with which the logits ``large + sum_t alpha_t (expert_t - base_t)`` are made here.
    """

    def __init__(self, function: RuleFunction, names: list[str]) -> None:
        self._function = function
        self._names = names
        self._state: dict[str, Any] = {}
        self.error: BaseException | None = None

    def __call__(self, rows: _C.HookRows) -> bool:
        """Show the function a step; return whether the request goes on."""
        try:
            with torch.inference_mode():
                self._fuse(rows)
        except BaseException as error:
            self.error = error
            return False
        return True

    def _fuse(self, rows: _C.HookRows) -> None:
        count = len(rows.large)
        none = rows.large.new_zeros(count)
        step = StepLogits(
            rows.large,
            rows.experts,
            rows.bases,
            rows.fused,
            rows.large.new_zeros(count, 0) if rows.alpha is None else rows.alpha,
            none if rows.f is None else rows.f,
            none if rows.g is None else rows.g,
            self._names,
            rows.step,
            rows.tokens,
            self._state,
        )
        answer = self._function(step)
        if answer is None:
            return
        if not isinstance(answer, torch.Tensor) or not answer.is_floating_point():
            raise OptionTypeError(
                f"the function given as rule returned {type(answer).__name__}; it returns None, or a floating-point "
                "tensor: logits [B, V] or weights [B, T]",
                "rule",
            )
        if answer.shape == rows.large.shape:
            alpha, fused = torch.zeros_like(step.alpha), answer
        elif answer.shape == step.alpha.shape:
            alpha, fused = answer, self._added(step, answer)
        else:
            raise OptionError(
                f"the function given as rule returned a tensor of shape {list(answer.shape)}; it returns logits "
                f"{list(rows.large.shape)} or weights {list(step.alpha.shape)}",
                "rule",
            )
        fused = fused.to(rows.large.device, torch.float32)
        if rows.alpha is not None and rows.f is not None and rows.g is not None:
            rows.alpha.copy_(alpha)
            rows.f.copy_(_divergence(fused, rows.large))
            rows.g.copy_(_divergence(rows.large, fused))
        rows.fused.copy_(fused)

    def _added(self, step: StepLogits, alpha: torch.Tensor) -> torch.Tensor:
        fused = step.large.double()
        for t, (expert, base) in enumerate(zip(step.experts, step.bases, strict=True)):
            if expert is None:  # held back by a closed gate, so its weight has no effect
                continue
            delta = expert.double() if base is None else expert.double() - base.double()
            fused = fused + alpha[:, t, None].to(delta) * delta
        return fused


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of logits, in nats, [B]; tokens that p excludes add nothing."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(-1)
