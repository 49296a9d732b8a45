"""``dlf serve``: an OpenAI-compatible server."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlf.cli.flags import check_environment, given, takes
from dlf.cli.models import instead
from dlf.errors import OptionError
from dlf.options import EngineOptions
from dlf.server.settings import ServerSettings
from dlf.support.option import options_of
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from dlf.recipe import EngineRecipe
    from dlf.replicas.deploy import Replicas
    from dlf.server import Served

__all__ = ["serve"]

RECIPES = (".yaml", ".yml", ".json")
MAX_KEYS_BYTES = 1 << 20
ENVIRONMENT = "DLF_SERVE_"
# Those of other commands, and what matters to many requests at once.
ENGINE = (
    *(one.name for one in options_of(EngineOptions).values() if one.flag is not None),
    "max_batch",
    "prompt_budget",
    "prefix_cache_bytes",
    "kv_cache_bytes",
)


@takes(EngineOptions, *ENGINE, environment=ENVIRONMENT)
@takes(ServerSettings, environment=ENVIRONMENT)
def serve(
    recipes: Annotated[list[str], typer.Argument(help="Recipes; or folders and hub ids of models without experts.")],
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve from replicas on a Ray cluster.", rich_help_panel="Cluster")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Address of the cluster; by default RAY_ADDRESS.", rich_help_panel="Cluster")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Least number of replicas.", rich_help_panel="Cluster")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Most of them; by default the least.", rich_help_panel="Cluster")
    ] = None,
    replica_cpus: Annotated[float, typer.Option(help="CPUs of each replica.", rich_help_panel="Cluster")] = 1.0,
    replica_gpus: Annotated[float, typer.Option(help="GPUs of each replica.", rich_help_panel="Cluster")] = 0.0,
    **flags: Any,
) -> None:
    """Serve recipes to clients of the OpenAI interface.

    dlf serve recipe.yaml more.yaml: each file is a model, by its name; recipe/expert fuses one expert alone.

    An option may be given as a flag, else in the environment, else by a recipe.
    """
    try:
        import fastapi  # noqa: F401 (these are the extra's packages)
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        import uvloop  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the server needs {error.name}: pip install 'dlf[serve]'") from error
    import anyio

    check_environment(ENVIRONMENT, (*ENGINE, *options_of(ServerSettings)))
    options = given(EngineOptions, flags)
    named = _read(names_of(recipes))
    settings = ServerSettings(**settings_of(named.values(), given(ServerSettings, flags)))
    settings = replace(settings, api_keys=_keys(settings.api_key_file))
    arguments = {name: instead(one.engine_arguments(), options) for name, one in named.items()}
    for one in arguments.values():
        EngineOptions(**one)  # raises, before anything is loaded, as does the next line
    _check(named.values(), options)
    if ray:
        from dlf.replicas.deploy import Replicas

        place = Replicas(replicas, replicas if max_replicas is None else max_replicas, replica_cpus, replica_gpus)
        _deploy(arguments, settings, place, address)
        return
    with _bound(settings) as listener:
        anyio.run(_serve, arguments, settings, listener, backend_options={"use_uvloop": True})


def _deploy(
    arguments: Mapping[str, dict[str, Any]], settings: ServerSettings, replicas: Replicas, address: str | None
) -> None:
    """Serve from a Ray cluster: from one that exists until somebody changes it, from a new one until a signal comes."""
    from dlf.replicas.deploy import deploy, shut_down

    mine = deploy(arguments, settings, replicas, address)
    typer.echo(f"dlf: serving {', '.join(map(printable, arguments))} at {_url(settings, settings.port)}", err=True)
    if mine:
        told = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: told.set())
        told.wait()
        shut_down()


def _url(settings: ServerSettings, port: int) -> str:
    where = settings.host if ":" not in settings.host else f"[{settings.host}]"
    return f"http://{where}:{port}/v1"


async def _serve(arguments: Mapping[str, dict[str, Any]], settings: ServerSettings, listener: socket.socket) -> None:
    import torch

    import dlf
    from dlf.server import Served, Service, make_app
    from dlf.server.connection import make_server

    models = dlf.SharedModels()
    # Teams of threads that compete for cores wait for each other in every layer.
    threads = {"threads": max(1, torch.get_num_threads() // len(arguments))}
    async with AsyncExitStack() as stack:
        served: dict[str, Served] = {}
        for name, one in arguments.items():
            engine = await stack.enter_async_context(dlf.AsyncEngine(**threads | one, models=models))
            served[name] = Served(name, engine, one.get("defaults") or {})
        app = make_app(Service(served), settings)
        url = _url(settings, listener.getsockname()[1])
        typer.echo(f"dlf: serving {', '.join(map(printable, served))} at {url}", err=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # uvicorn drains, then hands the signal on: the end was a clean one
        await make_server(app, settings).serve([listener])


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


def settings_of(recipes: Iterable[EngineRecipe], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ServerSettings`: those of flags and environment, else those of the recipes.

    Raises
    ------
    OptionError
        If two recipes contradict each other.
    """
    found: dict[str, tuple[Any, str]] = {}
    for recipe in recipes:
        for name, value in recipe.serve.items():
            other, path = found.setdefault(name, (value, str(recipe.path)))
            if other != value and name not in flags:
                raise OptionError(
                    f"serve.{name} is {other} in {path} and {value} in {recipe.path}; leave it out of one, or give "
                    f"--{name.replace('_', '-')}",
                    name,
                )
    return {name: value for name, (value, _) in found.items()} | dict(flags)


def _read(sources: Mapping[str, str]) -> dict[str, EngineRecipe]:
    """Read the recipes, and make one for each model without experts.

    Raises
    ------
    RecipeError
        With the mistakes of all recipes.
    """
    from dlf.recipe import EngineRecipe, RecipeError, load_recipe

    found, problems = {}, []
    for name, source in sources.items():
        try:
            found[name] = load_recipe(source) if source.endswith(RECIPES) else EngineRecipe.of_model(source)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return found


def _check(recipes: Iterable[EngineRecipe], options: Mapping[str, Any]) -> None:
    """Check that the models exist and go together.

    Raises
    ------
    RecipeError
        With the mistakes of all recipes.
    """
    from dlf.recipe import RecipeError
    from dlf.recipe.check import check_recipe

    problems = []
    for recipe in recipes:
        problems += check_recipe(replace(recipe, options=instead(recipe.options, options))).problems
    if problems:
        raise RecipeError(problems)


def _bound(settings: ServerSettings) -> socket.socket:
    """A socket at the server's address, which does not listen before the models are loaded.

    Raises
    ------
    OptionError
        If the address is taken, or none of this machine.
    """
    found = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host, settings.port))
    except OSError as error:
        found.close()
        raise OptionError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror}; choose another host or port",
            "port",
        ) from error
    return found


def _keys(path: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """API keys of a file and of the environment."""
    found = [os.environ.get("DLF_API_KEY", "")]
    if path is not None:
        with open(path, encoding="utf-8") as file:
            found += file.read(MAX_KEYS_BYTES).splitlines()
    keys = tuple(key.strip() for key in found if key.strip())
    if path is not None and not keys:
        raise OptionError(f"{path} has no key; write one on each line", "api_key_file")
    return keys
