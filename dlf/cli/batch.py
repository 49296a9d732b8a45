"""``dlf batch``: answers a file of prompts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlf.cli.flags import given, takes
from dlf.cli.serve import ENGINE
from dlf.cli.signals import cleaning_up_when_terminated
from dlf.errors import OptionError
from dlf.options import EngineOptions
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from dlf.batch import BatchReport

__all__ = ["batch"]


@takes(EngineOptions, *ENGINE)
def batch(
    recipe: Annotated[str, typer.Argument(help="A recipe; or the folder or hub id of a model without experts.")],
    prompts: Annotated[str, typer.Argument(help="File of prompts: .jsonl or .parquet.")],
    output: Annotated[str, typer.Option(help="Folder for the results; that of a batch that goes on.")],
    defaults: Annotated[
        str | None, typer.Option(help='Fields of rows that lack them, as JSON: {"max_tokens": 64}.')
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed; each row's comes from it and the row's id.")] = 0,
    rows_per_part: Annotated[int, typer.Option(min=1, help="Rows that are written together.")] = 256,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on a Ray cluster, or on a new one here.", rich_help_panel="Cluster")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Address of the cluster; by default RAY_ADDRESS.", rich_help_panel="Cluster")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Engines; by default as many as fit.", rich_help_panel="Cluster")
    ] = None,
    worker_cpus: Annotated[float, typer.Option(help="CPUs of each engine.", rich_help_panel="Cluster")] = 1.0,
    worker_gpus: Annotated[
        float, typer.Option(help="GPUs of each engine; 0.5: two share one.", rich_help_panel="Cluster")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **flags: Any,
) -> None:
    """Answer every prompt of a file; run it again to go on after an interruption.

    dlf batch recipe.yaml prompts.jsonl --output results
    """
    from dlf.batch import Cluster, run

    options = given(EngineOptions, flags)
    if not ray and (address is not None or workers is not None or worker_gpus):
        raise OptionError("--address, --workers and --worker-gpus are for a cluster; give --ray", "ray")
    cluster = Cluster(address, workers, worker_cpus, worker_gpus) if ray else None
    with cleaning_up_when_terminated():
        report = run(
            recipe,
            prompts,
            output,
            defaults=_object(defaults),
            seed=seed,
            rows_per_part=rows_per_part,
            cluster=cluster,
            **options,
        )
    if as_json:
        typer.echo(json.dumps(vars(report) | {"tokens_per_second": report.tokens_per_second, "output": str(output)}))
    else:
        typer.echo(described(report, str(output)))


def _object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--defaults is no JSON: {error!s:.200}", "defaults") from None
    if not isinstance(found, dict):
        raise OptionError("--defaults must be a JSON object, for example '{\"max_tokens\": 64}'", "defaults")
    return found


def described(report: BatchReport, output: str) -> str:
    """A report in lines for people."""
    before = report.rows - report.answered
    lines = [
        f"{report.answered} rows answered, {report.failed} of them with an error"
        + (f"; {before} were there already" if before else ""),
        f"{report.prompt_tokens} prompt tokens and {report.completion_tokens} generated in {report.seconds:.1f} s: "
        f"{report.tokens_per_second:.1f} generated tokens/s",
        f"{report.processor_seconds:.1f} processor-seconds on {report.workers} worker"
        + ("" if report.workers == 1 else "s"),
        f"results: {printable(output)}",
    ]
    return "\n".join(lines if report.answered else [f"all {report.rows} rows were there already", lines[-1]])
