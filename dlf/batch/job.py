"""A batch that was checked before anything is loaded, and the manifest of its results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlf.batch.answers import Answerer
from dlf.batch.prompts import Prompts, look_through
from dlf.batch.requests import TOKENS, check_defaults
from dlf.checkpoints.remote import is_url
from dlf.errors import OptionError
from dlf.options import EngineOptions
from dlf.server.errors import ApiError
from dlf.server.service import Served, Service
from dlf.server.settings import ServerSettings
from dlf.support.option_values import MAX_INT, as_int

if TYPE_CHECKING:
    from dlf.recipe import EngineRecipe

__all__ = ["Job", "prepare"]

MAX_ROWS_PER_PART = 1 << 16
RECIPES = (".yaml", ".yml", ".json")
# Options that change no result.
SPEED = ("threads", "max_batch", "prompt_budget", "prefix_cache_bytes", "kv_cache_bytes", "cuda_graph", "speculate")


@dataclass(frozen=True)
class Job:
    """A batch that was checked: everything that a worker needs to answer its parts.

    Attributes
    ----------
    prompts : str
        The file.
    output : str
        The folder.
    columnar, openai : bool
        The form of the file.
    model : str
        Name of the recipe.
    arguments : dict
        Arguments of the engine.
    defaults : dict
        Fields of requests that rows do not have.
    seed : int
        Of the batch.
    settings : ServerSettings
        Limits of requests.
    """

    prompts: str
    output: str
    columnar: bool
    openai: bool
    model: str
    arguments: dict[str, Any]
    defaults: dict[str, Any]
    seed: int
    settings: ServerSettings = field(default_factory=ServerSettings)

    def answerer(self, engine: Any) -> Answerer:
        """Return what answers rows with an engine."""
        served = Served(self.model, engine, self.arguments.get("defaults") or {})
        return Answerer(Service({self.model: served}), self.model, self.settings, self.defaults, self.seed, self.openai)


def prepare(
    recipe: str | os.PathLike[str],
    prompts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    defaults: Mapping[str, Any],
    seed: int,
    rows_per_part: int,
    options: Mapping[str, Any],
) -> tuple[Job, Prompts, dict[str, Any]]:
    """Check everything that can be checked before models are loaded; returns the job, the file and the manifest."""
    from dlf.recipe import EngineRecipe, load_recipe

    as_int("seed", seed, 0, MAX_INT)
    as_int("rows_per_part", rows_per_part, 1, MAX_ROWS_PER_PART)
    try:
        check_defaults(defaults)
    except ApiError as error:
        raise OptionError(f"defaults: {error}", "defaults") from None
    name = _whole(recipe)
    read = load_recipe(name) if name.endswith(RECIPES) else EngineRecipe.of_model(name)
    arguments = read.engine_arguments()
    if "device" in options:  # the recipe's map is for other devices
        arguments.pop("device_map", None)
    arguments |= options
    EngineOptions(**arguments)  # raises
    found = look_through(_whole(prompts), rows_per_part)
    label = os.path.splitext(os.path.basename(os.path.normpath(name)))[0]
    if "max_new_tokens" in read.sampling and not TOKENS & defaults.keys():
        defaults = {"max_tokens": read.sampling["max_new_tokens"], **defaults}
    settings = ServerSettings(**{key: value for key, value in read.serve.items() if key != "api_key_file"})
    job = Job(
        found.path,
        _whole(output, there=False),
        found.columnar,
        found.openai,
        label,
        arguments,
        dict(defaults),
        seed,
        settings,
    )
    manifest = {
        "input": {"path": found.path, "sha256": found.digest},
        "recipe": {"path": name, "sha256": _digest(read, options)},
        "defaults": dict(defaults),
        "seed": seed,
        "rows_per_part": rows_per_part,
        "rows": found.rows,
        "parts": len(found.parts),
    }
    return job, found, manifest


def _whole(path: str | os.PathLike[str], there: bool = True) -> str:
    """A path that means the same in every process; what is none, such as a hub id, as it is."""
    if is_url(path):
        return str(path)
    name = os.path.expanduser(path)
    return os.path.abspath(name) if os.path.exists(name) or not there else name


def _digest(recipe: EngineRecipe, options: Mapping[str, Any]) -> str:
    """SHA-256 of what decides the results: the file, its examples, and options that are more than a matter of speed."""
    written = recipe.path.read_text("utf-8") if recipe.lines else str(recipe.path)
    examples = [getattr(expert, "examples", None) for expert in recipe.experts]
    decisive = {name: repr(options[name]) for name in sorted(options) if name not in SPEED}
    return hashlib.sha256(json.dumps([written, repr(examples), decisive]).encode()).hexdigest()
