"""Fuses the logits of a large model with those of experts, with weights solved for every row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from dlf import _C
from dlf.devices import Placement
from dlf.errors import OptionError, OptionTypeError
from dlf.rule import Rule, native_rule, take_rule
from dlf.support.option_values import MAX_THREADS, as_int

__all__ = ["Fusion", "solve"]

Array = TypeVar("Array", torch.Tensor, npt.NDArray[Any])


@dataclass(frozen=True, eq=False)
class Fusion(Generic[Array]):
    """Fused logits and their weights, for B rows, T experts and a vocabulary of V.

    Attributes
    ----------
    alpha : [B, T]
        Weight of every expert.
    logits : [B, V]
        Fused logits ``large + sum_t alpha_t (expert_t - base_t)``, or as the rule says, float32; -inf where any model
        has -inf.
    f, g : [B]
        KL(fused || large) and KL(large || fused), in nats.
    target_f, target_g : [B, T]
        KL(expert || base) and KL(base || expert): the targets of f and g.
    sweeps : [B]
        Sweeps over the vocabulary that the row took, the fusing one included; if experts take different numbers of
        sweeps, the largest.
    """

    alpha: Array
    logits: Array
    f: Array
    g: Array
    target_f: Array
    target_g: Array
    sweeps: Array


def solve(
    large: Array,
    base: Array | None,
    experts: Array,
    *,
    combine: str | None = None,
    match: str | None = None,
    alpha: Sequence[float | None] | None = None,
    alpha_max: float | Sequence[float] | None = None,
    mix: Sequence[float | None] | None = None,
    large_weight: float | None = None,
    plausibility: float | None = None,
    gate: str | None = None,
    gate_threshold: float | None = None,
    rule: Rule | Sequence[Rule] | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Fusion[Array]:
    """Solve the weights of the experts in every row and fuse the logits.

    The fused distribution moves away from the large model's as far as each expert moved away from its base, measured by
    the two Kullback-Leibler divergences f = KL(fused || large) and g = KL(large || fused) against
    a = KL(expert || base) and b = KL(base || expert).

    Parameters
    ----------
    large : [B, V]
        Logits of the large model. A PyTorch tensor or a NumPy array of any floating type, which is converted to
        float32; sums are float64 on the CPU and float32 on a CUDA device. -inf in any model excludes a token.
    base : [B, V] or [B, T, V]
        Logits of the model that the experts were tuned from, or one for each expert. None for experts without a base,
        which are measured against the uniform distribution: ``z_b = 0``.
    experts : [B, T, V]
        Logits of 1 to 16 experts.
    combine : str, optional
        ``"select"``: the one expert whose curve (f, g) passes nearest the mean of the targets; the others get 0. The
        default.
        ``"centroid"``: every expert solved alone, its weight divided by the number of those that are solved.
        ``"joint"``: the least KL(fused || large) at which every expert reaches the mean logit difference that it
        reaches when it is solved alone.
        ``"static"``: all weights given by `alpha`.
        ``"grid"``: as ``"select"``, trying 0, 0.1, ..., 2.0 up to `alpha_max`.
        ``"jsd"``: the Jensen-Shannon divergence of every expert and its base, in nats (AdaCAD, 2409.07394).
        ``"certainty"``: as ``"select"``, but a large model that is surer than an expert moves less, and a selected
        expert that is surer than the fused model is mixed in; see docs/quality.md.
    match : str, optional
        ``"symmetric"`` minimises (f - a)^2 + (g - b)^2, the default; ``"forward"`` brings f to a, ``"reverse"`` g to b.
    alpha : sequence of T floats or None, optional
        Given weights, which may be negative (an anti-expert, as in DExperts, 2105.03023); None for a weight that is
        solved. Solving ignores the experts with given weights; these are added to the fused logits afterwards.
        ``combine="static"`` needs a weight for every expert.
    alpha_max : float or sequence of T floats, optional
        Weights are solved in [0, alpha_max]; one bound for all experts, or one for each; 2 if not given.
    mix : sequence of T floats or None, optional
        Shares, from 0 to 1, of experts whose probabilities are mixed in instead: with s = sum of the shares the result
        is ``(1 - s) fused + sum_t mix_t softmax(expert_t)``.
    large_weight : float, optional
        Coefficient of the large model's logits, 1 if not given. f, g and the solve are then relative to
        ``softmax(large_weight * large)``.
    plausibility : float, optional
        Sets the fused logits to -inf where softmax(large) is less than this share of its largest value; 0 does not. f
        and g are those of the distribution before.
    gate, gate_threshold : optional
        Where the experts take part; see `dlf.Rule`. Where the gate is closed, weights, targets, f and g are 0.
    rule : Rule or sequence of B Rules, optional
        The options above in one value, for all rows or for each; arguments given beside it override it.
    threads : int, optional
        Threads to compute on; by default as many as the process may use. The answer doesn't depend on them.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"cuda:0"``, ...: where to solve; by default where `large` is.

    Returns
    -------
    Fusion
        Tensors on the device of `large` if it is a tensor, arrays if it is an array.

    Raises
    ------
    OptionError, OptionTypeError
        If the logits have the wrong shape or type, or an option is unknown or out of bounds: a ValueError or a
        TypeError with the argument's name as `field`.
    ValueError
        If a logit is NaN or +inf, or no token is allowed by all models.
    RuntimeError
        If the machine has no such device, or this build has no CUDA.

    References
    ----------
    Fan, Lu, Wei et al., "On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion", NeurIPS 2024,
    https://arxiv.org/abs/2406.15480
    """
    logits = {
        "large": _float32(large, "large"),
        "base": torch.zeros_like(_float32(large, "large")) if base is None else _float32(base, "base"),
        "experts": _float32(experts, "experts"),
    }
    _check_shapes(**logits)
    place = Placement.of(str(logits["large"].device) if device is None else device).large
    fields = {
        "combine": combine,
        "match": match,
        "alpha": alpha,
        "alpha_max": alpha_max,
        "mix": mix,
        "large_weight": large_weight,
        "plausibility": plausibility,
        "gate": gate,
        "gate_threshold": gate_threshold,
    }
    every = range(logits["experts"].shape[1])
    default = Rule("select", "symmetric", [None for _ in every], [2.0 for _ in every])
    rules = [
        native_rule(take_rule(one, fields)[0], default, [], every)
        for one in (rule if isinstance(rule, Sequence) else [rule])
    ]
    if not place:
        found = _C.fusion_solve(
            logits["large"].cpu(),
            logits["experts"].cpu(),
            logits["base"].cpu(),
            rules,
            _usable_cores() if threads is None else as_int("threads", threads, 1, MAX_THREADS),
        )
    else:
        found = _C.cuda_fusion_solve(logits["large"], logits["experts"], logits["base"], rules, place[0])
    if isinstance(large, np.ndarray):
        found = tuple(tensor.cpu().numpy() for tensor in found)
    else:
        found = tuple(tensor.to(large.device) for tensor in found)
    return Fusion(*found)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _float32(logits: Any, name: str) -> torch.Tensor:
    """Float32 logits, contiguous; a float64 value beyond float32's range becomes infinite."""
    if isinstance(logits, np.ndarray):
        if not np.issubdtype(logits.dtype, np.floating):
            raise OptionTypeError(f"{name} holds {logits.dtype}; give floating-point logits", name)
        return torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))
    if not isinstance(logits, torch.Tensor):
        raise OptionTypeError(f"{name} is a {type(logits).__name__}; give a torch.Tensor or a numpy.ndarray", name)
    if not logits.is_floating_point():
        raise OptionTypeError(f"{name} holds {logits.dtype}; give floating-point logits", name)
    return logits.detach().to(torch.float32).contiguous()


def _check_shapes(large: torch.Tensor, base: torch.Tensor, experts: torch.Tensor) -> None:
    if large.dim() != 2:
        raise OptionError(f"large has shape {list(large.shape)}; give [B, V] (for one row, large[None])", "large")
    if experts.dim() != 3:
        raise OptionError(
            f"experts has shape {list(experts.shape)}; give [B, T, V] (for one expert, expert[:, None])", "experts"
        )
    batch, vocab = large.shape
    count = experts.shape[1]
    if batch < 1:
        raise OptionError("large has no rows; give at least one", "large")
    if vocab < 2:
        raise OptionError(f"the vocabulary holds {vocab} tokens; fusing takes at least 2", "large")
    if not 1 <= count <= _C.MAX_EXPERTS:
        raise OptionError(f"got {count} experts; give 1 to {_C.MAX_EXPERTS}", "experts")
    if experts.shape[0] != batch or experts.shape[2] != vocab:
        raise OptionError(
            f"experts has shape {list(experts.shape)} where large has {list(large.shape)}; "
            "rows and vocabulary must be the same, so cut padded logits to the common vocabulary",
            "experts",
        )
    if tuple(base.shape) not in {(batch, vocab), (batch, count, vocab)}:
        raise OptionError(
            f"base has shape {list(base.shape)}; with large {list(large.shape)} and {count} experts give "
            f"{[batch, vocab]}, or one for each expert {[batch, count, vocab]}",
            "base",
        )
