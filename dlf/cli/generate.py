"""``dlf generate``: completes one prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dlf.cli.flags import given, takes
from dlf.cli.models import engine_arguments
from dlf.cli.streams import read_prompt, write
from dlf.options import EngineOptions
from dlf.sampling import SamplingOptions

if TYPE_CHECKING:
    from dlf import Completion, Piece

__all__ = ["generate"]


@takes(SamplingOptions)
@takes(EngineOptions)
def generate(
    large: Annotated[str | None, typer.Argument(help="Folder or hub id of the large model; not with --recipe.")] = None,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML file with models, experts and options.")] = None,
    expert: Annotated[list[str] | None, typer.Option(help="Fine-tuned small model; may be repeated.")] = None,
    base: Annotated[list[str] | None, typer.Option(help="Its base: one for all experts, or one for each.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="Prompt to move away from: classifier-free guidance.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How far: 1 is no guidance; else it is solved.")] = None,
    experts_device: Annotated[str | None, typer.Option(help="Device of experts and bases, if it differs.")] = None,
    no_speculate: Annotated[bool, typer.Option("--no-speculate", help="Do not draft: one token at a time.")] = False,
    stream: Annotated[bool, typer.Option(help="Print the text as it comes.")] = True,
    show_alpha: Annotated[bool, typer.Option("--show-alpha", help="Show alpha at each token.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Save the alpha trace as a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **flags: Any,
) -> None:
    """Complete one prompt.

    dlf generate LARGE PROMPT, or dlf generate --recipe FILE PROMPT.
    """
    if recipe is not None:
        if prompt is not None or expert or base:
            raise ValueError("--recipe names the models: give the prompt alone, and neither --expert nor --base")
        prompt, large = large, None
    if prompt is None:
        raise ValueError("there is no prompt: dlf generate LARGE PROMPT, or dlf generate --recipe FILE PROMPT")
    options, engine_options = given(SamplingOptions, flags), given(EngineOptions, flags)
    if no_speculate:
        engine_options["speculate"] = False
    engine_options = {"max_batch": 1} | engine_options
    arguments = engine_arguments(large, recipe, expert, base, engine_options, experts_device)
    guidance: dict[str, Any] = {"negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
    guidance = {name: value for name, value in guidance.items() if value is not None}
    if guidance:
        arguments["experts"] = _guided(arguments["experts"])
    experts = arguments["experts"]
    if (show_alpha or plot) and not experts:
        raise ValueError("--show-alpha and --plot need an --expert: without one there is no alpha")
    if plot is not None:
        from dlf.plot import check_place

        check_place(plot)
    if prompt == "-":
        prompt = read_prompt()

    import dlf

    pieces: list[Piece] = []
    if recipe is not None:
        options["num_return_sequences"] = 1  # one completion is printed, whatever the recipe says
    alpha_max = arguments.get("alpha_max", EngineOptions.alpha_max)
    with dlf.Engine(**arguments) as engine:
        echo = stream and not as_json
        try:
            completion = engine.generate(prompt, callback=_keep(pieces, echo), progress=False, **guidance, **options)
        except Exception:
            if echo and pieces:
                write("\n")  # the error gets a line of its own
            raise
    if not as_json:
        write("\n" if stream else f"{completion.text}\n")
    if plot is not None:
        from dlf.plot import plot_alpha

        texts = [piece.text for piece in pieces]
        plot_alpha(completion, plot, texts, experts=[one.label for one in experts], alpha_max=alpha_max)
    if as_json:
        write(json.dumps(completion_json(completion)) + "\n")
    elif show_alpha:
        from dlf.plot import alpha_legend, alpha_line

        console = Console(highlight=False)
        console.print()
        console.print(alpha_line(pieces, console.width, alpha_max), alpha_legend(alpha_max))


def _guided(experts: list[Any]) -> list[Any]:
    """The experts, with guidance on the large model if there is none yet."""
    from dlf import Guidance

    return experts if any(isinstance(one, Guidance) for one in experts) else [*experts, Guidance()]


def _keep(pieces: list[Piece], echo: bool) -> Callable[[Piece], None]:
    def take(piece: Piece) -> None:
        pieces.append(piece)
        if echo:
            write(piece.text)

    return take


def completion_json(completion: Completion) -> dict[str, Any]:
    """A completion as JSON values; numbers that are not finite become null."""

    def numbers(values: Any) -> Any:
        if hasattr(values, "tolist"):
            values = values.tolist()
        return [numbers(v) for v in values] if isinstance(values, list) else values if math.isfinite(values) else None

    timings = completion.timings
    found: dict[str, Any] = {
        "text": completion.text,
        "tokens": [int(token) for token in completion.tokens],
        "logprobs": numbers(completion.logprobs),
        "alpha": numbers(completion.alpha),
        "f": numbers(completion.f),
        "g": numbers(completion.g),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": int(completion.prompt_tokens),
        "passes": int(completion.passes),
        "drafted": int(completion.drafted),
        "timings": {
            "time_to_first_token": float(timings.time_to_first_token),
            "token_times": numbers(timings.token_times),
            "shares": {name: float(share) for name, share in timings.shares.items()},
        },
    }
    if completion.top_logprobs:
        found["top_logprobs"] = [
            {str(token): numbers(value) for token, value in step.items()} for step in completion.top_logprobs
        ]
    return found
