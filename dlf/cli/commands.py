"""The command line: one command of ``dlf`` after the other.

Modules that are slow to import are imported by the commands that need them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from dlf.cli.batch import batch
from dlf.cli.chat import chat
from dlf.cli.convert import convert
from dlf.cli.flags import given, takes
from dlf.cli.generate import generate
from dlf.cli.inspect import inspect
from dlf.cli.merge import merge
from dlf.cli.recipe import app as recipe_app
from dlf.cli.serve import serve
from dlf.cli.streams import abandon_output, open_streams, print_error, print_traceback, warning_line, write
from dlf.devices import DeviceError
from dlf.options import EngineOptions
from dlf.support.sizes import binary
from dlf.support.terminal import printable

__all__ = ["app", "main"]

USER_ERRORS = (ValueError, TypeError, NotImplementedError, OSError, ImportError, MemoryError, DeviceError)
INTERRUPTED = 130


class Commands(typer.core.TyperGroup):
    """Turns errors into one line and an exit code: 2 for a user's mistake, 130 for Ctrl-C."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit unless `standalone_mode` is off."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        open_streams()
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            write("")  # a closed pipe fails here, not while Python shuts down
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except BrokenPipeError:
            abandon_output()
            sys.exit(1)
        except Exception as error:
            code = _explain(error)
        if code == INTERRUPTED:
            typer.echo("\ndlf: interrupted", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print a line for an expected error and return the exit code; raise any other error."""
    if os.environ.get("DLF_TRACEBACK"):
        raise error
    usage = getattr(error, "format_message", None)  # typer's message about wrong options
    if usage is None and not isinstance(error, (*USER_ERRORS, FloatingPointError)):
        raise error
    if usage is not None and not usage():  # no command was given, and the help is printed already
        return 2
    # A recipe may have several mistakes.
    for text in getattr(error, "problems", [usage() if usage else str(error)]):
        print_error("error", (text or type(error).__name__) + _hint(error))
    # Logits that are not finite are the model's fault.
    return 1 if isinstance(error, FloatingPointError) else 2


def _hint(error: Exception) -> str:
    """Remedy for a prompt that was taken for an option."""
    context = getattr(error, "ctx", None)
    # The class is click's or, in newer versions, typer's own.
    if type(error).__name__ != "NoSuchOption" or context is None or context.info_name != "generate":
        return ""
    return '; write -- before a prompt that begins with -: dlf generate MODEL -- "- like this"'


app = typer.Typer(
    cls=Commands,
    name="dlf",
    help="Decode several language models together: a large one, specialised at every step by small experts.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import dlf

        typer.echo(f"dlf {dlf.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(batch)
app.command()(merge)
app.command()(convert)
app.command()(inspect)


@app.command()
@takes(EngineOptions, "weights", "device", "threads")
def demo(
    task: Annotated[str, typer.Option(help="Task of the held-out problems: math, or another bundled one.")] = "math",
    problems: Annotated[int, typer.Option(min=1, help="Number of problems to score.")] = 200,
    show: Annotated[int, typer.Option(min=0, help="Number of them to print side by side.")] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    plot: Annotated[Path | None, typer.Option(help="File for the alpha trace  [default: dlf-demo.png]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **flags: Any,
) -> None:
    """Compare the large model, the expert, alpha = 1 and dynamic fusion on held-out problems."""
    from dlf.cli.demo import run_demo

    options = given(EngineOptions, flags)
    run_demo(task, problems, show=show, max_new_tokens=max_new_tokens, options=options, plot=plot, as_json=as_json)


app.add_typer(recipe_app, name="recipe")


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove them; running models keep theirs.")] = False,
) -> None:
    """Show where quantized weights and merged models are kept, and their size."""
    from dlf.checkpoints.weight_cache import cache_bytes, cache_folder, clear_cache, merged_labels

    folder = cache_folder()
    if folder is None:
        typer.echo("quantized weights and merged models are not kept: DLF_CACHE is 'off'")
        return
    labels = {} if clear else merged_labels(folder)
    taken = clear_cache(folder) if clear else cache_bytes(folder)
    typer.echo(f"{printable(str(folder))}: {binary(taken)}{' removed' if clear else ''}")
    for path, label in labels.items():
        typer.echo(printable(f"  {path.name}: {label}"))


@app.command(
    "lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def lm_eval(context: typer.Context) -> None:
    """Evaluate with lm-evaluation-harness: takes the arguments of its command lm_eval, and --model dlf."""
    from dlf.lm_eval import main as evaluate

    sys.argv = ["lm_eval", *context.args]
    evaluate()


def main() -> None:
    """Entry point of the ``dlf`` command."""
    warnings.formatwarning = warning_line
    sys.excepthook = print_traceback
    app()
