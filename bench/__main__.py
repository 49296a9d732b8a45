"""``python -m bench <name>``."""

from __future__ import annotations

import typer

from bench import batches, busy, experts, gguf, grammars, mixture, quantization, rules, scale, solver, speculate
from bench.context import run as context
from bench.family import build
from bench.latency import run
from bench.quality import run as quality
from bench.serving import run as serving
from bench.weights import run as weights

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
app.command("latency")(run.main)
app.command("busy")(busy.main)
app.command("experts")(experts.main)
app.command("mixture")(mixture.main)
app.command("grammars")(grammars.main)
app.command("gguf")(gguf.main)
app.command("batches")(batches.main)
app.command("rules")(rules.main)
app.command("scale")(scale.main)
app.command("solver")(solver.main)
app.command("speculate")(speculate.main)
app.command("quantization")(quantization.main)
app.command("family")(build.main)
app.command("quality")(quality.main)
app.command("weights")(weights.main)
app.command("context")(context.main)
app.command("serve")(serving.main)


@app.callback()
def _benchmarks() -> None:
    """Benchmarks of dlf; each measures its peers in the same run."""


if __name__ == "__main__":
    app()
