"""Recipes: models, experts, fusion and sampling defaults of an engine in one YAML file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from dlf.arguments import prefix_bytes
from dlf.checkpoints.precision import Precision
from dlf.checkpoints.remote import fetch_file, file_system, is_url
from dlf.errors import Error, ErrorKind, OptionError, field_of
from dlf.experts import Amateur, AnyExpert, Expert, Guidance, InContext, Lora, TaskArithmetic, with_weights
from dlf.options import EngineOptions
from dlf.recipe import document as written
from dlf.recipe.document import Adapter, Checkpoint, Document, Entry, Examples, Merge, explain, meant, schema
from dlf.recipe.examples_file import MAX_BYTES as MAX_EXAMPLES_BYTES
from dlf.recipe.examples_file import read_examples
from dlf.recipe.yaml_file import MAX_BYTES, Keys, read_yaml
from dlf.rule import UNSAID, native_rule
from dlf.sampling import SamplingOptions
from dlf.support.terminal import printable
from dlf.text.layout import Layout

__all__ = ["EngineRecipe", "RecipeError", "load_recipe", "recipe_schema"]

T = TypeVar("T")

SAME = {"name", "weights", "template", "alpha", "alpha_max", "mix"}  # the same in an entry and its expert
Plain: TypeAlias = Checkpoint | Examples | Adapter | Merge
MAX_PROBLEMS = 50
UNKNOWN = "?"  # stands in for a missing path while the rest of a recipe is checked


class RecipeError(Error, ValueError):
    """A recipe with mistakes: `problems` has a line for each."""

    kind = ErrorKind.OPTION

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class EngineRecipe:
    """A recipe that was read.

    Attributes
    ----------
    path
        The file.
    large, base, template
        As for `dlf.Engine`; names of folders beside the recipe have become paths.
    experts
        The experts; none of their files is read before an engine is made.
    options
        Further keyword arguments of the engine.
    sampling
        Its sampling defaults.
    serve
        Settings of a server.
    lines
        The line of each value in the file.
    """

    path: Path
    large: str
    base: str | None
    template: str | None
    experts: list[AnyExpert]
    options: dict[str, Any]
    sampling: dict[str, Any]
    serve: dict[str, Any]
    lines: dict[Keys, int] = field(repr=False)

    @classmethod
    def of_model(cls, name: str) -> EngineRecipe:
        """The recipe of a model without experts, which no file has."""
        return cls(Path(name), name, None, None, [], {}, {}, {}, {})

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments for `dlf.Engine`, by name."""
        own = {"large": self.large, "experts": self.experts, "base": self.base, "template": self.template}
        return own | self.options | {"defaults": self.sampling}

    def problem(self, keys: Keys, message: str) -> str:
        """Report of a mistake: file, line, field, what is wrong."""
        return _problem(self.path, self.lines, keys, message)[1]


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, with which editors complete and check one."""
    return schema()


def load_recipe(path: str | Path) -> EngineRecipe:
    """Read a recipe; its models are not checked.

    Parameters
    ----------
    path
        A YAML file. Paths in it are relative to its folder if they exist there; all others, hub ids among them, are
        taken as they are. Its address, such as ``"s3://bucket/recipe.yaml"``, will do too.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RecipeError
        With all mistakes, each with its file, line and field.
    ValueError
        If it is no YAML of plain values.
    """
    if is_url(path):
        return _Reader(fetch_file(str(path), MAX_BYTES), str(path).rpartition("/")[0]).read()
    return _Reader(Path(os.path.expanduser(path))).read()


class _Reader:
    """Collects the mistakes of one file."""

    def __init__(self, path: Path, address: str | None = None) -> None:
        self.path = path
        self.address = address  # of the folder that it was fetched from
        self.values, self.lines = read_yaml(path)
        self.problems: dict[str, int] = {}  # each with its line

    def read(self) -> EngineRecipe:
        if not isinstance(self.values, dict):
            raise RecipeError([f"{self.path}: a recipe is a mapping that begins with 'large: ...'"])
        document, numbers = self._document()
        self._check_sampling(document.sampling)
        self._try(("template",), Layout, document.template)
        self._check_engine(document)
        experts = [
            made
            for number, entry in zip(numbers, document.experts, strict=True)
            if (made := self._expert(("experts", number), entry, document))
        ]
        fusion, engine = (one.model_dump(exclude_none=True) for one in (document.fusion, document.engine))
        if "drafter" in engine:
            engine["drafter"] = self._place(engine["drafter"])
        serve = document.serve.model_dump(exclude_none=True)
        if "api_key_file" in serve:
            serve["api_key_file"] = self._place(serve["api_key_file"])
        entries = self.values.get("experts", [])
        if isinstance(entries, list) and len(experts) == len(entries):
            self._try(("fusion",), _check_fusion, fusion, experts)
        if self.problems:
            raise self._error()
        return EngineRecipe(
            self.path,
            self._place(document.large),
            None if document.base is None else self._place(document.base),
            document.template,
            experts,
            fusion | engine,
            document.sampling,
            serve,
            self.lines,
        )

    def _document(self) -> tuple[Document, list[int]]:
        """The recipe and the numbers of its experts, without faulty parts, so that the rest is checked too."""
        assert isinstance(self.values, dict)
        entries = self.values.get("experts")
        numbers = list(range(len(entries))) if isinstance(entries, list) else []
        try:
            return Document.model_validate(self.values), numbers
        except ValidationError as error:
            found = [explain(one) for one in error.errors(include_url=False)]
        for keys, message in found:
            self._add(keys, message)
        wrong = {keys[:2] if keys[0] == "experts" else keys[:1] for keys, _ in found}
        sound = {key: self.values[key] for key in Document.model_fields if key in self.values and (key,) not in wrong}
        if "experts" in sound:
            numbers = [number for number in numbers if ("experts", number) not in wrong]
            sound["experts"] = [self.values["experts"][number] for number in numbers]
        else:
            numbers = []
        unknown = {key: UNKNOWN for key in ("large", "base") if (key,) in wrong}
        return Document.model_validate(sound | unknown), numbers

    def _check_sampling(self, sampling: dict[str, Any]) -> None:
        names = SamplingOptions.__dataclass_fields__
        for name in sampling:
            if name in names:
                continue
            self._add(("sampling", name), f"no sampling option is called {name!r:.80}{meant(name, list(names))}")
        known = {name: value for name, value in sampling.items() if name in names}
        while known:
            try:
                SamplingOptions(**known)
                return
            except (ValueError, TypeError) as error:
                field = field_of(error)
                self._add(("sampling", field) if field else ("sampling",), str(error))
                if field not in known:  # no single option is at fault: none can be left out
                    return
                del known[field]

    def _check_engine(self, document: Document) -> None:
        engine = document.engine.model_dump(exclude_none=True)
        self._try(("engine",), Precision.of, engine.get("dtype", "auto"), engine.get("weights"))
        self._try(("engine",), prefix_bytes, engine.get("prefix_cache_bytes", 0))

    def _expert(self, keys: Keys, entry: Entry, document: Document) -> AnyExpert | None:
        before = len(self.problems)
        for name in ("template", "base_template"):
            if not self._try((*keys, name), Layout, getattr(entry, name, None)):
                entry = entry.model_copy(update={name: None})  # other mistakes should show too
        dtype = document.engine.model_dump()["dtype"] or "auto"
        self._try((*keys, "weights"), Precision.of, dtype, entry.weights)
        made: AnyExpert | None
        if isinstance(entry, (written.Guidance, written.Amateur)):
            made = self._try(keys, self._contrast, entry)
        else:
            if entry.base is None and document.base is None:
                self._add(
                    keys,
                    "it has no base: give the checkpoint that it was fine-tuned from, here or for all experts, or "
                    "'base: false' for an expert that is measured against none",
                )
            made = self._try(keys, self._make, keys, entry, document.base or UNKNOWN)
        return made if len(self.problems) == before else None

    def _contrast(self, entry: written.Guidance | written.Amateur) -> AnyExpert:
        same = entry.model_dump(include=SAME - {"mix"}, exclude_defaults=True)
        if isinstance(entry, written.Amateur):
            return Amateur(self._place(entry.amateur), **same)
        model = None if isinstance(entry.guidance, bool) else self._place(entry.guidance)
        own = entry.model_dump(include={"scale", "positive", "negative_prompt"})
        return Guidance(model, **own, **same)

    def _make(self, keys: Keys, entry: Plain, base: str) -> AnyExpert | None:
        same = entry.model_dump(include=SAME)
        if isinstance(entry, Checkpoint) and entry.base is False:
            return Expert(self._place(entry.model), False, **same)
        place = self._place(str(entry.base or base))
        if isinstance(entry, Checkpoint):
            return Expert(self._place(entry.model), place, base_template=entry.base_template, **same)
        if isinstance(entry, Adapter):
            return Lora(place, self._place(entry.adapter), merge=entry.merge, base_template=entry.base_template, **same)
        if isinstance(entry, Merge):
            how = entry.model_dump(include={"method", "normalize", "scale", "seed", "dtype", "base_template"})
            density = entry.density
            if isinstance(density, dict):
                density = {self._place(name): value for name, value in density.items()}
            weights = {self._place(name): weight for name, weight in entry.merge.items()}
            return TaskArithmetic(place, weights, density=density, **how, **same)
        if entry.examples is not None and entry.examples_file is not None:
            raise OptionError("examples and examples_file are both given; leave one out", "examples")
        examples = entry.examples
        if entry.examples_file is not None:
            examples = self._try((*keys, "examples_file"), self._examples, entry.examples_file)
        return InContext(place, examples, **same) if examples is not None else None

    def _examples(self, name: str) -> list[tuple[str, str]]:
        place = self._place(name)
        return read_examples(fetch_file(place, MAX_EXAMPLES_BYTES) if is_url(place) else Path(place))

    def _place(self, name: str) -> str:
        if is_url(name):
            return name
        if self.address is not None:
            beside = f"{self.address}/{name}"
            system, place = file_system(beside)
            return beside if system.exists(place) else os.path.expanduser(name)
        beside = os.path.join(self.path.parent, name)
        return beside if os.path.exists(beside) else os.path.expanduser(name)

    def _try(self, keys: Keys, function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except (ValueError, TypeError, OSError) as error:
            field = field_of(error)
            self._add((*keys, field) if field and (*keys, field) in self.lines else keys, str(error))
            return None

    def _add(self, keys: Keys, message: str) -> None:
        line, problem = _problem(self.path, self.lines, keys, message)
        self.problems.setdefault(problem, line)

    def _error(self) -> RecipeError:
        found = sorted(self.problems, key=lambda problem: self.problems[problem])
        more = len(found) - MAX_PROBLEMS
        return RecipeError(found[:MAX_PROBLEMS] + ([f"{self.path}: and {more} more"] if more > 0 else []))


def _check_fusion(fusion: dict[str, Any], experts: list[AnyExpert]) -> None:
    options = EngineOptions(UNKNOWN, **fusion)
    own = options.rule_of(with_weights(experts, options.alpha, options.mix))
    if experts:
        native_rule(UNSAID, own, [], range(len(experts)))  # raises


def _problem(path: Path, lines: dict[Keys, int], keys: Keys, message: str) -> tuple[int, str]:
    """Line of a mistake, and its report."""
    if not lines:  # of a model alone
        return 1, printable(f"{path}: {' '.join(message.split())}")
    known = keys
    while known not in lines and known:
        known = known[:-1]
    line = lines.get(known, 1)
    return line, printable(f"{path}:{line}: {_spell(keys)}: {' '.join(message.split())}")


def _spell(keys: Keys) -> str:
    """Write ("experts", 1, "alpha") as experts[1].alpha."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key:.80}" for key in keys)
    return text.removeprefix(".") or "the recipe"
