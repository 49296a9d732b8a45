"""The keys of a recipe: its sections as pydantic models, and the messages about values that do not fit."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    create_model,
)
from pydantic_core import PydanticCustomError

from dlf.options import EngineOptions
from dlf.recipe.yaml_file import Keys
from dlf.sampling import SamplingOptions
from dlf.server.settings import ServerSettings
from dlf.support.option import options_of

__all__ = [
    "Adapter",
    "Amateur",
    "Checkpoint",
    "Document",
    "Entry",
    "Examples",
    "Guidance",
    "Merge",
    "explain",
    "meant",
    "schema",
]

KINDS = (
    "a checkpoint has 'model', examples have 'examples' or 'examples_file', an adapter has 'adapter', a merge 'merge', "
    "guidance 'guidance', an amateur 'amateur'"
)
KIND_KEYS = ["model", "examples", "examples_file", "adapter", "merge", "guidance", "amateur"]
DEVICES = r"^(cpu|cuda(:\d{1,3})?)$"

# The names of `checkpoints.precision` and `dlf.merging` again, for type checkers; a test compares them.
Weights: TypeAlias = Literal["fp32", "bf16", "fp16", "int8", "int4", "int4-g64"]
MergedDType: TypeAlias = Literal["float32", "bfloat16", "float16"]
Method: TypeAlias = Literal["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp"]

Place: TypeAlias = Annotated[str, Field(min_length=1)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Bound: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Device: TypeAlias = Annotated[str, Field(pattern=DEVICES)]
Pair: TypeAlias = Annotated[tuple[str, str], Field(strict=False)]  # YAML has lists only


def _place_or(flag: bool) -> Any:
    """Type of a path or hub id that may be `flag` instead; one type, so that a mistake has one message."""

    def check(value: Any) -> Any:
        if value is flag or (isinstance(value, str) and value):
            return value
        raise PydanticCustomError("place", "Input should be a path, a hub id or " + str(flag).lower())

    schema = {"anyOf": [{"type": "string", "minLength": 1}, {"const": flag}]}
    return Annotated[Any, AfterValidator(check), WithJsonSchema(schema)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class _Kind(_Section):
    name: str | None = None
    weights: Weights | None = None
    template: str | None = None
    alpha: Finite | None = None
    alpha_max: Bound | None = None


class _Expert(_Kind):
    base: Place | None = None
    mix: Share | None = None


class Checkpoint(_Expert):
    """A fine-tuned checkpoint: `dlf.Expert`; with ``base: false`` it has no base."""

    model: Place
    base: _place_or(False) | None = None  # type: ignore[valid-type]
    base_template: str | None = None


class Examples(_Expert):
    """Examples in the context: `dlf.InContext`; given here or in a file of JSON lines with question and answer."""

    examples: list[Pair] | None = None
    examples_file: Place | None = None


class Adapter(_Expert):
    """A LoRA adapter: `dlf.Lora`."""

    adapter: Place
    merge: bool = False
    base_template: str | None = None


class Merge(_Expert):
    """Checkpoints merged into one: `dlf.TaskArithmetic`."""

    merge: dict[Place, float]
    method: Method = "task_arithmetic"
    density: float | dict[str, float] | None = None
    normalize: bool | None = None
    scale: float | None = None
    seed: int | None = None
    dtype: MergedDType | None = None
    base_template: str | None = None


class Guidance(_Kind):
    """Classifier-free guidance: `dlf.Guidance`, on the large model for ``guidance: true``, or on a small model."""

    guidance: _place_or(True)  # type: ignore[valid-type]
    scale: Finite | None = None
    positive: bool = False
    negative_prompt: Place | None = None


class Amateur(_Kind):
    """Contrastive decoding: `dlf.Amateur`; ``alpha: null`` solves its weight."""

    amateur: Place
    alpha: Finite | None = 0.5


# Types of options in a recipe, if they differ from those of the argument.
WRITTEN: dict[str, Any] = {
    "alpha": list[Finite | None],
    "alpha_max": Bound,
    "mix": list[Share | None],
    "large_weight": Finite,
    "plausibility": Finite,
    "gate_threshold": Finite,
    "device": Device,
    "device_map": dict[Literal["large", "experts"], Device | list[Device]],
    "speculate": bool,
    "drafter": Place,
    "api_key_file": Place,
    "timeout": Bound,
    "patience": Bound,
}


def _section(name: str, description: str, owner: type = EngineOptions) -> type[_Section]:
    """Make a section of a recipe from the options of `owner` that belong to it; a value not given is None."""
    fields = {}
    for option in options_of(owner).values():
        if option.section == name:
            kind = Literal[option.choices] if option.choices else WRITTEN.get(option.name, option.type)
            about = Field(ge=option.least, le=option.most, description=option.help)
            fields[option.name] = (Annotated[kind | None, about], None)
    return create_model(name.capitalize(), __base__=_Section, __doc__=description, **fields)  # type: ignore[call-overload, no-any-return]


if TYPE_CHECKING:
    Fusion: TypeAlias = _Section
    Engine: TypeAlias = _Section
    Serve: TypeAlias = _Section
else:
    Fusion = _section("fusion", "How the experts are combined.")
    Engine = _section("engine", "Types, devices and sizes.")
    Serve = _section("serve", "Where `dlf serve` listens, and what it allows.", ServerSettings)


def _kind(entry: Any) -> str | None:
    """Kind of an expert, by its keys; None if they are of no clear kind."""
    keys = set(entry) & set(KIND_KEYS) if isinstance(entry, Mapping) else set()
    if keys & {"examples", "examples_file"}:
        return "examples" if keys <= {"examples", "examples_file"} else None
    if "adapter" in keys:
        keys.discard("merge")  # whether to fold the adapter in
    return str(keys.pop()) if len(keys) == 1 else None


Entry: TypeAlias = Checkpoint | Examples | Adapter | Merge | Guidance | Amateur


class Document(_Section):
    """A recipe as it is written."""

    large: Place
    base: Place | None = None
    template: str | None = None
    experts: list[
        Annotated[
            Annotated[Checkpoint, Tag("model")]
            | Annotated[Examples, Tag("examples")]
            | Annotated[Adapter, Tag("adapter")]
            | Annotated[Merge, Tag("merge")]
            | Annotated[Guidance, Tag("guidance")]
            | Annotated[Amateur, Tag("amateur")],
            Discriminator(_kind, custom_error_type="kind", custom_error_message=f"is of no clear kind: {KINDS}"),
        ]
    ] = Field(default_factory=list, max_length=16)
    fusion: Fusion = Field(default_factory=Fusion)
    engine: Engine = Field(default_factory=Engine)
    sampling: dict[str, Any] = Field(default_factory=dict)
    serve: Serve = Field(default_factory=Serve)


SECTIONS: dict[str, type[BaseModel]] = {
    "": Document,
    "fusion": Fusion,
    "engine": Engine,
    "serve": Serve,
    "model": Checkpoint,
    "examples": Examples,
    "adapter": Adapter,
    "merge": Merge,
    "guidance": Guidance,
    "amateur": Amateur,
}


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe."""
    found = Document.model_json_schema()
    sampling = TypeAdapter(SamplingOptions).json_schema()
    found["properties"]["sampling"] |= {"properties": sampling["properties"], "additionalProperties": False}
    return found


def explain(error: Any) -> tuple[Keys, str]:
    """Return the keys of a value that pydantic refuses, and what is wrong with it.

    Parameters
    ----------
    error
        One of ``ValidationError.errors()``. Its own keys name the kind of an expert too, unlike the file.
    """
    keys: list[Any] = [key for key in error["loc"] if key != "[key]"]
    section = str(keys[0]) if keys and keys[0] in ("fusion", "engine", "serve") else ""
    if len(keys) > 2 and keys[0] == "experts":
        section = str(keys.pop(2))
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        return tuple(keys), f"no such key here{meant(keys[-1], list(SECTIONS[section].model_fields))}"
    if kind == "missing":
        # The second text of a pair, or a key.
        return tuple(keys), "is missing"
    if kind == "kind":
        return tuple(keys), str(error["msg"]) + _meant_kind(value)
    if kind == "model_type":
        return tuple(keys), f"must be a mapping, 'name: value', not {_shown(value)}"
    if kind == "too_long":
        return tuple(keys), f"has {context['actual_length']} entries; give at most {context['max_length']}"
    if kind == "string_pattern_mismatch":
        return tuple(keys), f"takes cpu, cuda or cuda:0, cuda:1, ..., not {_shown(value)}"
    message = str(error["msg"])
    return tuple(keys), f"{message[0].lower()}{message[1:]}, not {_shown(value)}"


def meant(name: Any, names: Sequence[str]) -> str:
    """Suggest one of `names` for a name that is not among them."""
    close = difflib.get_close_matches(str(name)[:80], names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def _meant_kind(entry: Any) -> str:
    for key in entry if isinstance(entry, Mapping) else ():
        close = difflib.get_close_matches(str(key)[:80], KIND_KEYS, 1)
        if close and key not in KIND_KEYS:
            return f"; by {key!r:.80}, did you mean {close[0]!r}?"
    return ""


def _shown(value: Any) -> str:
    return f"{json.dumps(value, default=str, ensure_ascii=False):.60}"
