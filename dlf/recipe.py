"""Recipes: models, experts, fusion and sampling defaults of an engine in one YAML file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from dlf import _C
from dlf.arguments import AnyExpert
from dlf.experts import Expert, InContext
from dlf.layout import Layout
from dlf.lora import Lora
from dlf.sampling import SamplingOptions
from dlf.task_arithmetic import TaskArithmetic
from dlf.yaml_file import Keys, read_yaml

__all__ = ["EngineRecipe", "RecipeError", "load_recipe", "recipe_schema"]

T = TypeVar("T")

MAX_EXAMPLES_BYTES = 64 << 20
KINDS = (
    "a checkpoint has 'model', examples have 'examples' or 'examples_file', an adapter has 'adapter', a merge 'merge'"
)


class RecipeError(ValueError):
    """A recipe with mistakes: `problems` has a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Expert(_Entry):
    name: str | None = None
    base: str | None = None
    weights: str | None = None
    template: str | None = None
    alpha: float | None = None
    alpha_max: float | None = None


class Checkpoint(_Expert):
    """A fine-tuned checkpoint: `dlf.Expert`."""

    model: str
    base_template: str | None = None


class Examples(_Expert):
    """Examples in the context: `dlf.InContext`; given here or in a file of JSON lines with question and answer."""

    examples: list[tuple[str, str]] | None = None
    examples_file: str | None = None


class Adapter(_Expert):
    """A LoRA adapter: `dlf.Lora`."""

    adapter: str
    merge: bool = False
    base_template: str | None = None


class Merge(_Expert):
    """Checkpoints merged into one: `dlf.TaskArithmetic`."""

    merge: dict[str, float]
    method: str = "task_arithmetic"
    density: float | dict[str, float] | None = None
    normalize: bool | None = None
    scale: float | None = None
    seed: int | None = None
    dtype: str | None = None
    base_template: str | None = None


class Fusion(_Entry):
    """How the experts come together."""

    combine: str = "select"
    match: str = "symmetric"
    alpha: list[float | None] | None = None
    alpha_max: float = 2.0


class Machine(_Entry):
    """Types, devices and sizes."""

    dtype: str | None = None
    weights: str | None = None
    device: str | None = None
    device_map: dict[str, str] | None = None
    cuda_graph: bool | None = None
    threads: int | None = None
    max_batch: int | None = None
    max_context: int | None = None
    prefix_cache_bytes: int | None = None


def _kind(entry: Any) -> str | None:
    keys = set(entry) if isinstance(entry, Mapping) else set()
    kinds = ["model"] * ("model" in keys) + ["adapter"] * ("adapter" in keys)
    kinds += ["examples"] * bool(keys & {"examples", "examples_file"}) + ["merge"] * ("merge" in keys - {"adapter"})
    if "adapter" in keys and "merge" in keys:
        kinds.remove("merge")
    return kinds[0] if len(kinds) == 1 else None


class Document(_Entry):
    """A recipe as it is written."""

    large: str
    base: str | None = None
    template: str | None = None
    experts: list[
        Annotated[
            Annotated[Checkpoint, Tag("model")]
            | Annotated[Examples, Tag("examples")]
            | Annotated[Adapter, Tag("adapter")]
            | Annotated[Merge, Tag("merge")],
            Discriminator(_kind, custom_error_type="kind", custom_error_message=f"is of no clear kind: {KINDS}"),
        ]
    ] = Field(default_factory=list, max_length=16)
    fusion: Fusion = Field(default_factory=Fusion)
    engine: Machine = Field(default_factory=Machine)
    sampling: dict[str, Any] = Field(default_factory=dict)


FIELDS: dict[str, list[str]] = {
    "": list(Document.model_fields),
    "fusion": list(Fusion.model_fields),
    "engine": list(Machine.model_fields),
    "model": list(Checkpoint.model_fields),
    "examples": list(Examples.model_fields),
    "adapter": list(Adapter.model_fields),
    "merge": list(Merge.model_fields),
}


@dataclass(frozen=True)
class EngineRecipe:
    """What a recipe asks for.

    Attributes
    ----------
    path
        The file.
    large, base, template
        As for `dlf.Engine`; paths are those of folders where there are such beside the recipe.
    experts
        The experts, which look at no file before an engine is made.
    options
        Further keyword arguments of the engine.
    sampling
        Its sampling defaults.
    """

    path: Path
    large: str
    base: str | None
    template: str | None
    experts: list[AnyExpert]
    options: dict[str, Any]
    sampling: dict[str, Any]

    def engine_arguments(self) -> dict[str, Any]:
        """Everything that `dlf.Engine` takes, by name."""
        own = {"large": self.large, "experts": self.experts, "base": self.base, "template": self.template}
        return own | self.options | {"defaults": self.sampling}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, by which editors complete and check one."""
    schema = Document.model_json_schema()
    schema["properties"]["sampling"]["properties"] = {name: {} for name in SamplingOptions.__dataclass_fields__}
    schema["properties"]["sampling"]["additionalProperties"] = False
    return schema


def load_recipe(path: str | Path) -> EngineRecipe:
    """Read a recipe; no model is looked at.

    Parameters
    ----------
    path
        A YAML file. Paths in it are relative to its folder, where something of that name is there; else they are taken
        as they are, hub ids among them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RecipeError
        With all mistakes, each with its file, line and field.
    ValueError
        If it is no YAML of plain values.
    """
    return _Reader(Path(path).expanduser()).read()


class _Reader:
    """Collects the mistakes of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values, self.lines = read_yaml(path)
        self.problems: list[tuple[int, str]] = []

    def read(self) -> EngineRecipe:
        if not isinstance(self.values, dict):
            raise RecipeError([f"{self.path}: a recipe is a mapping that begins with 'large: ...'"])
        try:
            document = Document.model_validate(self.values)
        except ValidationError as error:
            for one in error.errors():
                self._add_invalid(one)
            self._check_sampling(self.values.get("sampling"))
            raise self._error() from None
        self._check_sampling(document.sampling)
        self._try(("template",), lambda: Layout(document.template))
        experts = [
            expert
            for i, entry in enumerate(document.experts)
            if (expert := self._try(("experts", i), lambda entry=entry: self._expert(entry, document)))  # type: ignore[misc]
        ]
        fusion = document.fusion.model_dump(exclude_unset=True)
        if len(experts) == len(document.experts) > 0:
            self._try(("fusion",), lambda: _check_fusion(document.fusion, experts))
        if self.problems:
            raise self._error()
        return EngineRecipe(
            self.path,
            self._place(document.large),
            None if document.base is None else self._place(document.base),
            document.template,
            experts,
            fusion | document.engine.model_dump(exclude_none=True),
            document.sampling,
        )

    def _expert(self, entry: Checkpoint | Examples | Adapter | Merge, document: Document) -> AnyExpert:
        same = entry.model_dump(include={"name", "weights", "template", "alpha", "alpha_max"})
        base = entry.base if entry.base is not None else document.base
        if base is None:
            raise ValueError("it has no base: give the checkpoint that it was fine-tuned from, here or for all experts")
        place = self._place(base)
        if isinstance(entry, Checkpoint):
            return Expert(self._place(entry.model), place, base_template=entry.base_template, **same)
        if isinstance(entry, Adapter):
            files = {"merge": entry.merge, "base_template": entry.base_template}
            return Lora(place, self._place(entry.adapter), **files, **same)  # type: ignore[arg-type]
        if isinstance(entry, Merge):
            how = entry.model_dump(include={"method", "normalize", "scale", "seed", "dtype", "base_template"})
            density = entry.density
            if isinstance(density, dict):
                density = {self._place(name): value for name, value in density.items()}
            weights = {self._place(name): weight for name, weight in entry.merge.items()}
            return TaskArithmetic(place, weights, density=density, **how, **same)
        if (entry.examples is None) == (entry.examples_file is None):
            raise ValueError("give examples or examples_file, one of the two")
        examples = entry.examples
        return InContext(place, self._examples(entry.examples_file) if examples is None else examples, **same)

    def _examples(self, name: str | None) -> list[tuple[str, str]]:
        path = Path(self._place(str(name)))
        if not path.is_file():
            raise ValueError(f"there is no file {str(path)!r}")
        if path.stat().st_size > MAX_EXAMPLES_BYTES:
            raise ValueError(f"{path} is larger than {MAX_EXAMPLES_BYTES >> 20} MiB, more than any context holds")
        found = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                example = json.loads(line)
                found.append((example["question"], example["answer"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(f'{path}:{number} is no {{"question": "...", "answer": "..."}}') from None
        return found

    def _place(self, name: str) -> str:
        beside = self.path.parent / name
        return str(beside) if beside.exists() else str(Path(name).expanduser()) if name.startswith("~") else name

    def _check_sampling(self, sampling: Any) -> None:
        if not isinstance(sampling, dict):
            return
        names = SamplingOptions.__dataclass_fields__
        for name, value in sampling.items():
            if name not in names:
                self._add(("sampling", name), f"no sampling option is called {name!r}{_meant(str(name), list(names))}")
            else:
                self._try(("sampling", name), lambda name=name, value=value: SamplingOptions(**{name: value}))  # type: ignore[misc]

    def _try(self, keys: Keys, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except (ValueError, TypeError, OSError) as error:
            self._add(keys, str(error))
            return None

    def _add_invalid(self, error: Any) -> None:
        """Say what pydantic says of a value; its way to it names the kind of an expert, which the file does not."""
        loc: list[Any] = list(error["loc"])
        section = str(loc[0]) if loc and loc[0] in ("fusion", "engine") else ""
        if len(loc) > 2 and loc[0] == "experts":
            section = str(loc.pop(2))
        message = str(error["msg"])
        if error["type"] == "extra_forbidden":
            message = f"no such key here{_meant(str(loc[-1]), FIELDS[section])}"
        elif error["type"] == "missing":
            message = "is missing"
        elif error["type"] != "kind":
            message = f"{message[0].lower()}{message[1:]}, not {json.dumps(error['input'], default=str):.60}"
        self._add(tuple(loc), message)

    def _add(self, keys: Keys, message: str) -> None:
        known = keys
        while known not in self.lines and known:
            known = known[:-1]
        line = self.lines.get(known, 1)
        problem = f"{self.path}:{line}: {_spell(keys)}: {' '.join(message.split())}"
        if (line, problem) not in self.problems:
            self.problems.append((line, problem))

    def _error(self) -> RecipeError:
        return RecipeError([problem for _, problem in sorted(self.problems)])


def _check_fusion(fusion: Fusion, experts: list[AnyExpert]) -> None:
    from dlf.arguments import with_alpha

    given = with_alpha(experts, fusion.alpha)
    bounds = [fusion.alpha_max if one.alpha_max is None else one.alpha_max for one in given]
    _C.check_fusion(len(given), fusion.combine, fusion.match, [one.alpha for one in given], bounds)


def _spell(keys: Keys) -> str:
    """("experts", 1, "alpha") as experts[1].alpha."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".") or "the recipe"


def _meant(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"
