"""The models that a command runs: named one by one, or by a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlf.options import EngineOptions

if TYPE_CHECKING:
    from dlf import Expert

__all__ = ["engine_arguments", "instead"]


def engine_arguments(
    large: str | None,
    recipe: str | Path | None,
    experts: Sequence[str] | None,
    bases: Sequence[str] | None,
    flags: dict[str, Any],
    experts_device: str | None = None,
) -> dict[str, Any]:
    """Arguments of `dlf.Engine`, before anything heavy is imported or loaded.

    Parameters
    ----------
    large
        The large model, without a recipe.
    recipe
        File of the recipe.
    experts, bases
        Experts, and a base for all or for each.
    flags
        Options of the engine on the command line, which go before the recipe's.
    experts_device
        Device of experts and bases, if it differs.

    Raises
    ------
    ValueError
        If the bases do not go with the experts; or as `load_recipe`.
    """
    if recipe is not None:
        from dlf.recipe import load_recipe

        arguments = load_recipe(recipe).engine_arguments()
    else:
        arguments = {"large": large, "experts": _pairs(experts or [], bases or [])}
    if experts_device is not None:
        device = flags.get("device", arguments.get("device", EngineOptions.device))
        flags = flags | {"device_map": {"large": device, "experts": experts_device}}
    return instead(arguments, flags)


def instead(arguments: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an engine, with flags in the place of what a recipe says."""
    # The recipe's map is for other devices.
    return {name: value for name, value in arguments.items() if name != "device_map" or "device" not in flags} | dict(
        flags
    )


def _pairs(experts: Sequence[str], bases: Sequence[str]) -> list[Expert]:
    """Pair experts with bases."""
    if len(bases) not in (1, len(experts)) or (bases and not experts):
        raise ValueError(
            f"{len(experts)} --expert and {len(bases)} --base: give one --base for all experts or one for each"
        )
    if not experts:
        return []
    from dlf import Expert

    bases = list(bases) * len(experts) if len(bases) == 1 else bases
    return [Expert(model, base=base) for model, base in zip(experts, bases, strict=True)]
