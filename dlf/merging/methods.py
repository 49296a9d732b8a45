"""Merges the weights of fine-tuned models: the mathematics, one tensor at a time.

Names, parameters and defaults are those of mergekit; `Recipe` says where dlf computes something else. Values are
computed in float32 and depend on the arguments alone: not on the number of threads, nor on the order in which tensors
come.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dlf.errors import OptionError, OptionTypeError

__all__ = ["METHODS", "Method", "Recipe", "merge_tensor"]

MAX_EXPERTS = 64
MAX_FACTOR = 100.0  # of a weight or a scale; larger ones are typing errors
LEAST_DENSITY = 1e-6  # what drop() divides by; any less is a typing error
LEAST_TOTAL = 1e-8  # least sum of weights to divide by, as in mergekit
# Two tensors with a larger |cosine| than the first are interpolated in a straight line; a norm below the second has no
# direction.
PARALLEL, LEAST_NORM = 0.9995, 1e-8


@dataclass(frozen=True)
class Method:
    """One way of merging.

    Parameters
    ----------
    title, arxiv
        Common name, and paper.
    task_vectors
        Whether it sums differences from the base, which `scale` then multiplies.
    sparsify
        How task vectors are cut to a part of their values, the `density`.
    elect
        Whether task vectors that disagree with the majority's sign are left out.
    normalize
        Whether to divide by the sum of the weights by default; None if there is no choice.
    """

    title: str
    arxiv: str | None
    task_vectors: bool = True
    sparsify: Literal["magnitude", "random"] | None = None
    elect: bool = False
    normalize: bool | None = False


METHODS = {
    "linear": Method("Model soup", "2203.05482", task_vectors=False, normalize=True),
    "task_arithmetic": Method("Task arithmetic", "2212.04089"),
    "ties": Method("TIES", "2306.01708", sparsify="magnitude", elect=True, normalize=True),
    "dare_linear": Method("DARE", "2311.03099", sparsify="random"),
    "dare_ties": Method("DARE with TIES' election of signs", "2311.03099", sparsify="random", elect=True),
    "slerp": Method("Spherical interpolation", None, task_vectors=False, normalize=None),
}


@dataclass(frozen=True)
class Recipe:
    r"""How experts and their base become one model.

    With :math:`\theta_0` the base, :math:`\theta_i` the experts, :math:`w_i` their weights, :math:`d_i` their
    densities, :math:`\lambda` the scale and :math:`\delta_i = \theta_i - \theta_0`, every tensor becomes

    ``linear``
        :math:`\sum_i w_i \theta_i`, divided by :math:`\sum_i w_i` if normalized; the base takes part only if it is
        among the experts [1]_.
    ``task_arithmetic``
        :math:`\theta_0 + \lambda \sum_i w_i \delta_i`, the sum divided by :math:`\sum_i |w_i|` if normalized [2]_.
    ``ties``
        Trim, elect, merge [3]_. Of the n values of :math:`\delta_i` the :math:`\max(1, \lfloor d_i n \rfloor)` largest
        in magnitude stay, of equal ones the first, and the others become 0. Each value's sign is that of
        :math:`\sum_i w_i \delta_i`, positive where that is 0; :math:`A` are the experts whose :math:`w_i \delta_i` has
        it. Then :math:`\theta_0 + \lambda \sum_{i \in A} w_i \delta_i`, the sum divided by
        :math:`\sum_{i \in A} |w_i|` if normalized.
    ``dare_linear``
        Task arithmetic with :math:`m_i \delta_i / d_i` in place of :math:`\delta_i`, where each :math:`m_i` is drawn to
        be 1 with probability :math:`d_i`, else 0 [4]_.
    ``dare_ties``
        As ``ties``, which here elects and merges the vectors that ``dare_linear`` adds up [4]_.
    ``slerp``
        :math:`(\sin((1 - t) \Omega)\, \theta_0 + \sin(t \Omega)\, \theta_1) / \sin \Omega`, with :math:`t = w_1` and
        :math:`\Omega` the angle between the two tensors, each taken as one vector [5]_; the straight line where
        :math:`|\cos \Omega| > 0.9995`, as for most fine-tuned models and their bases.

    A negative weight takes away what an expert has learned. This is why normalizing divides by magnitudes: divided by
    -0.2, as in mergekit, a task vector weighted -0.2 would be added instead. For DARE, mergekit (0.1.5) keeps the L1
    norm of each tensor; dlf divides by the paper's :math:`d_i`, which keeps the expectation of each value. The random
    numbers depend only on the seed, the tensor's name and the expert's place.

    Parameters
    ----------
    method
        One of `METHODS`.
    weights, densities
        One of each for every expert.
    normalize, scale, seed
        As above; the scale is mergekit's ``lambda``.

    References
    ----------
    .. [1] Wortsman et al., "Model soups", arXiv 2203.05482.
    .. [2] Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089, section 2.
    .. [3] Yadav et al., "TIES-merging", arXiv 2306.01708, algorithm 1; its mean of the values that agree is the case
       of equal weights.
    .. [4] Yu et al., "Language models are super Mario", arXiv 2311.03099, equations 2 to 4.
    .. [5] Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """

    method: str
    weights: tuple[float, ...]
    densities: tuple[float, ...]
    normalize: bool
    scale: float = 1.0
    seed: int = 0

    @classmethod
    def of(
        cls,
        method: str,
        weights: Mapping[str, float],
        density: float | Mapping[str, float] | None = None,
        normalize: bool | None = None,
        scale: float | None = None,
        seed: int | None = None,
    ) -> Recipe:
        """Check a user's parameters and fill in the method's defaults.

        Parameters
        ----------
        weights
            Weight of each expert, by name.
        density
            Density of all experts, or by name; 1 if not given.

        Raises
        ------
        OptionError, OptionTypeError
            If there is no such method, or a parameter is out of bounds, not a number or has no effect on the method.
        """
        if method not in METHODS:
            raise OptionError(f"method is {method!r}; it takes {', '.join(METHODS)}", "method")
        kind = METHODS[method]
        if not 1 <= len(weights) <= MAX_EXPERTS:
            raise OptionError(f"{len(weights)} experts; a merge takes 1 to {MAX_EXPERTS}", "weights")
        for name, given, takes in (
            ("density", density, kind.sparsify),
            ("normalize", normalize, kind.normalize is not None),
            ("scale", scale, kind.task_vectors),
            ("seed", seed, kind.sparsify == "random"),
        ):
            if given is not None and not takes:
                raise OptionError(f"{name} has no effect on the method {method!r}; leave it out", name)
        if normalize is not None and not isinstance(normalize, bool):
            raise OptionTypeError(f"normalize must be True or False, not {normalize!r}", "normalize")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise OptionTypeError(f"seed must be an integer, not {seed!r}", "seed")
        recipe = cls(
            method,
            tuple(
                _number(f"the weight of {name!r}", weight, -MAX_FACTOR, MAX_FACTOR, "weights")
                for name, weight in weights.items()
            ),
            _densities(list(weights), density),
            bool(kind.normalize if normalize is None else normalize),
            1.0 if scale is None else _number("scale", scale, -MAX_FACTOR, MAX_FACTOR),
            0 if seed is None else seed,
        )
        total = sum(recipe.weights)
        if method == "linear" and recipe.normalize and abs(total) < LEAST_TOTAL:
            raise OptionError(
                "the weights add up to 0, which the mean cannot be divided by; set normalize to False", "normalize"
            )
        if method == "slerp" and len(weights) != 1:
            raise OptionError(
                f"slerp goes from the base to one expert, not {len(weights)}; choose another method", "method"
            )
        if method == "slerp" and not 0 <= total <= 1:
            raise OptionError(
                f"the weight of slerp is {total:g}; give a number from 0 (the base) to 1 (the expert)", "weights"
            )
        return recipe


def _densities(names: list[str], density: float | Mapping[str, float] | None) -> tuple[float, ...]:
    if not isinstance(density, Mapping):
        density = dict.fromkeys(names, 1.0 if density is None else density)
    unknown = sorted(density.keys() - set(names))
    if unknown:
        raise OptionError(
            f"there is a density for {unknown[0]!r}, which is none of the experts {', '.join(names)}", "density"
        )
    found = tuple(_number("density", density.get(name, 1.0), 0.0, 1.0) for name in names)
    if min(found) < LEAST_DENSITY:
        raise OptionError(
            f"density is {min(found):g}, which keeps nothing of an expert; give at least {LEAST_DENSITY:g}, leave the "
            "expert out, or give a weight of 0",
            "density",
        )
    return found


def _number(what: str, value: object, low: float, high: float, field: str | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise OptionTypeError(f"{what} must be a number, not {value!r}", field or what)
    if not low <= value <= high:  # so a NaN fails
        raise OptionError(f"{what} is {value}; it must be from {low:g} to {high:g}", field or what)
    return float(value)


def merge_tensor(
    recipe: Recipe, name: str, base: torch.Tensor, experts: Iterable[torch.Tensor], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Merge one tensor of each model.

    Parameters
    ----------
    recipe
        Method and numbers of the merge.
    name
        The tensor's name, on which DARE's random numbers depend.
    base, experts
        Its values in each model, all of one shape; the experts' are taken one by one, in the order of the recipe's
        weights.
    dtype
        Type of the result; the base's if not given.
    """
    if recipe.method == "linear":
        merged = _linear(recipe, experts)
    elif recipe.method == "slerp":
        (expert,) = experts
        merged = _slerp(base.float(), expert.float(), recipe.weights[0])
    else:
        merged = _add_task_vectors(recipe, name, base.float(), experts)
    return merged.to(base.dtype if dtype is None else dtype)


def _linear(recipe: Recipe, experts: Iterable[torch.Tensor]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for expert, weight in zip(experts, recipe.weights, strict=True):
        total = expert.float() * weight if total is None else total.add_(expert.float(), alpha=weight)
    assert total is not None
    return total.div_(sum(recipe.weights)) if recipe.normalize else total


def _slerp(start: torch.Tensor, end: torch.Tensor, t: float) -> torch.Tensor:
    lengths = [torch.linalg.vector_norm(tensor).item() for tensor in (start, end)]
    lengths = [length if length > LEAST_NORM else 1.0 for length in lengths]
    # Divided first: the product of two large tensors might overflow.
    cosine = ((start / lengths[0]) * (end / lengths[1])).sum(dtype=torch.float64).item()
    if abs(cosine) > PARALLEL:
        return start * (1 - t) + end * t
    angle = math.acos(cosine)
    return (start * math.sin((1 - t) * angle) + end * math.sin(t * angle)) / math.sin(angle)


def _add_task_vectors(recipe: Recipe, name: str, base: torch.Tensor, experts: Iterable[torch.Tensor]) -> torch.Tensor:
    method = METHODS[recipe.method]
    vectors = (
        _sparsify(method, recipe, name, place, expert.float() - base).mul_(recipe.weights[place])
        for place, expert in enumerate(experts)
    )
    if method.elect:
        total = _sum_of_agreeing(recipe, list(vectors))
    else:
        total = torch.zeros_like(base)
        for vector in vectors:
            total += vector
        weight = sum(map(abs, recipe.weights))
        if recipe.normalize and weight >= LEAST_TOTAL:
            total /= weight
    return total.mul_(recipe.scale).add_(base)


def _sum_of_agreeing(recipe: Recipe, vectors: list[torch.Tensor]) -> torch.Tensor:
    """Sum the weighted task vectors where their sign is the majority's; the vectors are changed."""
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    majority = (total >= 0).float().mul_(2).sub_(1)
    total.zero_()
    divisor = torch.zeros_like(total) if recipe.normalize else None
    for vector, weight in zip(vectors, recipe.weights, strict=True):
        agrees = vector.sign() == majority
        total += vector.mul_(agrees)
        if divisor is not None:
            divisor.add_(agrees, alpha=abs(weight))
    if divisor is not None:
        divisor[divisor == 0] = 1
        total /= divisor
    return total


def _sparsify(method: Method, recipe: Recipe, name: str, place: int, vector: torch.Tensor) -> torch.Tensor:
    density = recipe.densities[place]
    if density == 1 or method.sparsify is None:
        return vector
    if method.sparsify == "magnitude":
        return trim(vector, density)
    return drop(vector, density, f"{recipe.seed} {place} {name}")


def trim(vector: torch.Tensor, density: float) -> torch.Tensor:
    """Set to 0 all but the largest values in magnitude; of equal ones the first stay. The vector is changed.

    ``max(1, floor(density * n))`` values stay, as in mergekit. With types of 16 bits many are equal.
    """
    sizes = vector.abs().view(-1)
    keep = max(1, int(density * sizes.numel()))
    # NumPy's selection is several times as fast as sorting, or as torch's.
    border = float(np.partition(sizes.numpy(), -keep)[-keep])
    stays = sizes > border
    missing = keep - int(stays.sum())
    stays[torch.nonzero(sizes == border).view(-1)[:missing]] = True
    return vector.mul_(stays.view_as(vector))


def drop(vector: torch.Tensor, density: float, key: str) -> torch.Tensor:
    """Keep each value with probability `density`, divided by it, and set it to 0 otherwise. The vector is changed.

    The random numbers are counter-based and begin at a hash of `key`.
    """
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])
    draws = np.random.Generator(np.random.Philox(key=start)).random(vector.numel(), dtype=np.float32)
    stays = torch.from_numpy(draws < np.float32(density)).view_as(vector)
    return vector.mul_(stays).div_(density)
