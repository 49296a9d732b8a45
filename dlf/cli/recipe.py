"""``dlf recipe``: checks and shows a recipe without loading a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlf.support.sizes import binary
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from dlf.experts import AnyExpert
    from dlf.options import EngineOptions
    from dlf.recipe import EngineRecipe
    from dlf.recipe.check import Checked

__all__ = ["app"]

app = typer.Typer(help="Check recipes: models, experts and options in one YAML file.", no_args_is_help=True)

KINDS = {
    "Expert": "checkpoint",
    "InContext": "examples",
    "Lora": "LoRA adapter",
    "TaskArithmetic": "merge",
    "Guidance": "guidance",
    "Amateur": "amateur",
}


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="The YAML file.")],
    card_gib: Annotated[
        float | None, typer.Option(help="Memory of a CUDA card in GiB: says whether each card's part fits.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a recipe, and check that its models exist and go together. No weights are loaded."""
    from dlf.recipe import RecipeError, load_recipe
    from dlf.recipe.check import check_recipe

    try:
        found = load_recipe(recipe)
        checked = check_recipe(found)
        if checked.problems:
            raise RecipeError(checked.problems)
    except (ValueError, OSError) as error:
        if not as_json:
            raise
        problems = error.problems if isinstance(error, RecipeError) else [str(error)]
        typer.echo(json.dumps({"recipe": str(recipe), "problems": problems}))
        raise typer.Exit(2) from None
    described = _describe(found, checked)
    if as_json:
        typer.echo(json.dumps(described))
    else:
        _show(described, card_gib)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, with which editors complete it."""
    from dlf.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


def _describe(recipe: EngineRecipe, checked: Checked) -> dict[str, Any]:
    from dlf.options import EngineOptions

    known = ("combine", "alpha", "alpha_max", "mix")  # the devices need not be this machine's
    options = EngineOptions(
        recipe.large, recipe.experts, **{name: recipe.options[name] for name in known if name in recipe.options}
    )
    experts = [
        {
            "name": expert.label,
            "kind": KINDS[type(expert).__name__],
            "base": _base(expert, recipe),
            "weight": _weight(expert, options),
            "template": expert.template,
        }
        for expert in options.whole_experts()
    ]
    return {
        "recipe": str(recipe.path),
        "large": recipe.large,
        "template": recipe.template,
        "experts": experts,
        "engine": recipe.options,
        "sampling": recipe.sampling,
        "serve": recipe.serve,
        "max_context": checked.max_context,
        "weights_bytes": checked.weights_bytes,
        "kv_cache_bytes": checked.cache_bytes,
        "devices": {
            name: {"weights_bytes": weights, "kv_cache_bytes": cache}
            for name, (weights, cache) in checked.devices.items()
        },
    }


def _base(expert: AnyExpert, recipe: EngineRecipe) -> str:
    """What the expert is measured against."""
    from dlf.experts import Amateur, Guidance

    if isinstance(expert, Guidance):
        return f"{recipe.large if expert.model is None else expert.model}, after the negative prompt"
    if isinstance(expert, Amateur):
        return str(expert.model)
    return "none" if expert.base is False else str(expert.base)


def _weight(expert: AnyExpert, options: EngineOptions) -> str:
    share = getattr(expert, "mix", None)
    if share is not None:
        return f"{share:g} of the probabilities"
    if expert.alpha is not None:
        return f"{expert.alpha:g}, given"
    bound = options.alpha_max if expert.alpha_max is None else expert.alpha_max
    return f"measured, up to {bound:g}" if options.combine == "jsd" else f"solved, up to {bound:g}"


def _show(found: dict[str, Any], card_gib: float | None = None) -> None:
    """Print a table; texts of the file go through `printable`, and are never read as markup."""
    console = Console(highlight=False)
    console.print(Text(f"{printable(found['recipe'])}: in order"), soft_wrap=True)
    table = Table()
    for column in ("", "kind", "base", "weight", "template"):
        table.add_column(column, overflow="fold")
    for cells in (
        (found["large"], "large model", "", "", _quoted(found["template"])),
        *((one["name"], one["kind"], one["base"], one["weight"], _quoted(one["template"])) for one in found["experts"]),
    ):
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    for section in ("engine", "sampling", *(["serve"] if found["serve"] else [])):
        values = ", ".join(f"{name}={value!r}" for name, value in found[section].items())
        console.print(printable(f"{section}: {values or 'defaults'}"), soft_wrap=True, markup=False)
    console.print(
        f"memory: {binary(found['weights_bytes'])} of weights, up to {binary(found['kv_cache_bytes'])} of KV cache for "
        f"{found['max_context']} tokens per sequence",
        soft_wrap=True,
    )
    for name, part in found["devices"].items():
        weights, cache = part["weights_bytes"], part["kv_cache_bytes"]
        console.print(
            f"  {name}: {binary(weights)} of weights, up to {binary(cache)} of KV cache"
            f"{'' if card_gib is None else _fits(weights + cache, card_gib)}",
            soft_wrap=True,
        )


def _fits(taken: int, card_gib: float) -> str:
    """Whether weights and KV cache fit a card, and what that leaves."""
    left = round(card_gib * 2**30) - taken
    if left < 0:
        return f"; does not fit {card_gib:g} GiB: {binary(-left)} too much"
    return f"; fits {card_gib:g} GiB, {binary(left)} left for activations, logits, workspaces and the prefix cache"


def _quoted(template: str | None) -> str:
    return "" if template is None else json.dumps(template, ensure_ascii=False)
