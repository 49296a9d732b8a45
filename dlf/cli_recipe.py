"""``dlf recipe``: what a recipe says, checked without loading a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dlf.recipe import EngineRecipe

__all__ = ["app"]

app = typer.Typer(help="Check recipes: models, experts and options in one YAML file.", no_args_is_help=True)

KINDS = {"Expert": "checkpoint", "InContext": "examples", "Lora": "LoRA adapter", "TaskArithmetic": "merge"}


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="The YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a recipe, and look whether its models are there and go together. No weights are loaded."""
    from dlf.recipe import RecipeError, load_recipe

    try:
        found = load_recipe(recipe)
        problems = _missing(found)
    except RecipeError as error:
        problems = error.problems
    if problems:
        if as_json:
            typer.echo(json.dumps({"recipe": str(recipe), "problems": problems}))
        else:
            console = Console(stderr=True, highlight=False)
            for problem in problems:
                console.print(Text("error ", "bold red"), Text(problem), sep="", soft_wrap=True)
        raise typer.Exit(2)
    described = _describe(found)
    if as_json:
        typer.echo(json.dumps(described))
    else:
        _show(described)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, by which editors complete it."""
    from dlf.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


def _missing(recipe: EngineRecipe) -> list[str]:
    """What is not there, or does not go together."""
    from dlf.adapter import AdapterFile
    from dlf.checkpoint import expected_tensors, find_shards, resolve
    from dlf.config import read_config
    from dlf.lora import Lora
    from dlf.task_arithmetic import TaskArithmetic
    from dlf.tokenizer import Tokenizer, check_same_tokenizer

    problems: list[str] = []
    first: list[tuple[str, Tokenizer]] = []
    seen: set[str] = set()

    def look(what: str, name: Any) -> None:
        if str(name) in seen:
            return
        seen.add(str(name))
        try:
            folder = resolve(name)
            find_shards(folder, expected_tensors(read_config(folder)))
            tokenizer = Tokenizer(folder)
            first.append((str(name), tokenizer))
            check_same_tokenizer(first[0][1], tokenizer, first[0][0], str(name))
        except (ValueError, OSError, NotImplementedError) as error:
            problems.append(f"{recipe.path}: {what}: {' '.join(str(error).split())}")

    look("large", recipe.large)
    for expert in recipe.experts:
        what = f"expert '{expert.label}'"
        look(f"the base of {what}", expert.base)
        if hasattr(expert, "model"):
            look(what, expert.model)
        try:
            if isinstance(expert, TaskArithmetic):
                expert.open().check()
            elif isinstance(expert, Lora):
                assert expert.base is not None
                AdapterFile(expert.adapter).read(read_config(resolve(expert.base)))
        except (ValueError, OSError, NotImplementedError) as error:
            problems.append(f"{recipe.path}: {what}: {' '.join(str(error).split())}")
    return problems


def _describe(recipe: EngineRecipe) -> dict[str, Any]:
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
    console = Console(highlight=False)
    table = Table(title=f"{found['recipe']}: in order", title_justify="left")
    for column in ("", "kind", "base", "weight", "template"):
        table.add_column(column, overflow="fold")
    table.add_row(found["large"], "large model", "", "", found["template"] or "")
    for one in found["experts"]:
        table.add_row(Text(one["name"]), one["kind"], one["base"], one["weight"], Text(one["template"] or ""))
    console.print(table)
    for section in ("engine", "sampling"):
        values = ", ".join(f"{name}={value!r}" for name, value in found[section].items())
        console.print(f"{section}: {values or 'as by default'}", soft_wrap=True, markup=False)
