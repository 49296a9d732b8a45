"""``dlf serve``: an OpenAI-compatible server."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlf.cli.flags import given, takes
from dlf.cli.models import engine_arguments
from dlf.errors import OptionError
from dlf.options import EngineOptions
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from dlf.server import Served, ServerSettings

__all__ = ["serve"]

RECIPES = (".yaml", ".yml", ".json")
MAX_KEYS_BYTES = 1 << 20


@takes(EngineOptions)
def serve(
    recipes: Annotated[list[str], typer.Argument(help="Recipes; or folders and hub ids of models without experts.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with an API key on each line; or set DLF_API_KEY.")
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Sequences of a model that run or wait; more get 429.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which a request is ended.")] = 600.0,
    drain: Annotated[int, typer.Option(min=0, help="Seconds that running answers get after SIGTERM.")] = 60,
    **flags: Any,
) -> None:
    """Serve recipes to clients of the OpenAI interface.

    dlf serve recipe.yaml more.yaml: each file is a model, by its name; recipe/expert fuses one expert alone.
    """
    try:
        import fastapi  # noqa: F401 (the first of the extra's packages)
        import uvicorn
    except ImportError as error:
        raise ImportError(f"the server needs {error.name}: pip install 'dlf[serve]'") from error
    import anyio

    from dlf.server import ServerSettings

    named = names_of(recipes)
    settings = ServerSettings(_keys(api_key_file), max_queue=max_queue, timeout_s=timeout)
    options = given(EngineOptions, flags)
    arguments = {
        name: engine_arguments(None, source, None, None, options)
        if source.endswith(RECIPES)
        else engine_arguments(source, None, None, None, options)
        for name, source in named.items()
    }
    anyio.run(_serve, arguments, settings, uvicorn, {"host": host, "port": port, "timeout_graceful_shutdown": drain})


async def _serve(
    arguments: dict[str, dict[str, Any]], settings: ServerSettings, uvicorn: Any, options: dict[str, Any]
) -> None:
    import torch

    import dlf
    from dlf.server import Served, Service, make_app

    models = dlf.SharedModels()
    # Teams of threads that compete for cores wait for each other in every layer.
    threads = {"threads": max(1, torch.get_num_threads() // len(arguments))}
    async with AsyncExitStack() as stack:
        served: dict[str, Served] = {}
        for name, one in arguments.items():
            engine = await stack.enter_async_context(dlf.AsyncEngine(**threads | one, models=models))
            served[name] = Served(name, engine, one.get("defaults") or {})
        app = make_app(Service(served), settings)
        where = options["host"] if ":" not in options["host"] else f"[{options['host']}]"
        typer.echo(f"dlf: serving {', '.join(map(printable, served))} at http://{where}:{options['port']}/v1", err=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # uvicorn drains, then hands the signal on: the end was a clean one
        config = uvicorn.Config(app, log_level="warning", access_log=False, **options)
        await uvicorn.Server(config).serve()


def names_of(sources: Sequence[str]) -> dict[str, str]:
    """Sources by the name of each, which is the last part of its path, without the ending of a recipe.

    Raises
    ------
    OptionError
        If two have one name.
    """
    found: dict[str, str] = {}
    for source in sources:
        name = os.path.basename(os.path.normpath(source))
        name = os.path.splitext(name)[0] if name.endswith(RECIPES) else name
        if name in found:
            raise OptionError(f"{found[name]} and {source} are both called {name}; rename one file", "recipes")
        found[name] = source
    return found


def _keys(path: Path | None) -> tuple[str, ...]:
    """API keys of a file and of the environment."""
    found = [os.environ.get("DLF_API_KEY", "")]
    if path is not None:
        with open(path, encoding="utf-8") as file:
            found += file.read(MAX_KEYS_BYTES).splitlines()
    keys = tuple(key.strip() for key in found if key.strip())
    if path is not None and not keys:
        raise OptionError(f"{path} has no key; write one on each line", "api_key_file")
    return keys
