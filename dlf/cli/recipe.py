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
    from dlf.recipe import EngineRecipe
    from dlf.recipe.check import Checked

__all__ = ["app"]

app = typer.Typer(help="Check recipes: models, experts and options in one YAML file.", no_args_is_help=True)

KINDS = {"Expert": "checkpoint", "InContext": "examples", "Lora": "LoRA adapter", "TaskArithmetic": "merge"}


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="The YAML file.")],
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
        _show(described)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, with which editors complete it."""
    from dlf.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


def _describe(recipe: EngineRecipe, checked: Checked) -> dict[str, Any]:
    experts = [
        {
            "name": expert.label,
            "kind": KINDS[type(expert).__name__],
            "base": str(expert.base),
            "weight": _weight(expert, recipe),
            "template": expert.template,
        }
        for expert in recipe.experts
    ]
    return {
        "recipe": str(recipe.path),
        "large": recipe.large,
        "template": recipe.template,
        "experts": experts,
        "engine": recipe.options,
        "sampling": recipe.sampling,
        "max_context": checked.max_context,
        "weights_bytes": checked.weights_bytes,
        "kv_cache_bytes": checked.cache_bytes,
    }


def _weight(expert: Any, recipe: EngineRecipe) -> str:
    if expert.alpha is not None:
        return f"{expert.alpha:g}, given"
    if recipe.options.get("alpha") is not None:
        given = recipe.options["alpha"][recipe.experts.index(expert)]
        if given is not None:
            return f"{given:g}, given"
    bound = recipe.options.get("alpha_max", 2.0) if expert.alpha_max is None else expert.alpha_max
    return f"solved, up to {bound:g}"


def _show(found: dict[str, Any]) -> None:
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
    for section in ("engine", "sampling"):
        values = ", ".join(f"{name}={value!r}" for name, value in found[section].items())
        console.print(printable(f"{section}: {values or 'defaults'}"), soft_wrap=True, markup=False)
    console.print(
        f"memory: {binary(found['weights_bytes'])} of weights, up to {binary(found['kv_cache_bytes'])} of KV cache for "
        f"{found['max_context']} tokens per sequence",
        soft_wrap=True,
    )


def _quoted(template: str | None) -> str:
    return "" if template is None else json.dumps(template, ensure_ascii=False)
