"""Deploys recipes on a Ray cluster with Ray Serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlf.errors import OptionError
from dlf.options import EngineOptions
from dlf.server.settings import ServerSettings

__all__ = ["Replicas", "application", "deploy", "shut_down"]

NAME = "dlf"


@dataclass(frozen=True)
class Replicas:
    """How many replicas of the engines there are, and what each takes.

    Parameters
    ----------
    least, most : int
        Bounds of their number, between which the requests that run or wait decide.
    cpus, gpus : float
        CPUs and GPUs of each.

    Raises
    ------
    OptionError
        If a number is impossible.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise OptionError(
                f"{self.least} to {self.most} replicas: give 1 or more, the lower number first", "replicas"
            )


def application(arguments: Mapping[str, Mapping[str, Any]], settings: ServerSettings, replicas: Replicas) -> Any:
    """Return an application of Ray Serve, for `ray.serve.run`.

    Parameters
    ----------
    arguments
        Arguments of the engine of each recipe, by its name.
    settings
        Limits and keys.
    replicas
        Their number and resources.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from dlf.replicas.front import Front
    from dlf.replicas.replica import Replica
    from dlf.replicas.router import PrefixRouter

    threads = {"threads": max(1, int(replicas.cpus) // len(arguments))}
    given = {name: threads | dict(one) for name, one in arguments.items()}
    slots = sum(int(one.get("max_batch", EngineOptions.max_batch)) for one in given.values())
    engines = serve.deployment(Replica).options(
        name="engines",
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=settings.max_queue * len(given) + 8,  # beyond it, the application itself refuses with 429
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.least, max_replicas=replicas.most, target_ongoing_requests=slots
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"slack": slots}
        ),
        graceful_shutdown_timeout_s=settings.drain,
    )
    front = serve.deployment(serve.ingress()(Front)).options(
        name="front", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1 << 16
    )
    return front.bind(engines.bind(given, replace(settings, api_keys=())), settings)  # the front has checked the key


def deploy(
    arguments: Mapping[str, Mapping[str, Any]], settings: ServerSettings, replicas: Replicas, address: str | None
) -> bool:
    """Deploy recipes, in the place of those that are deployed; returns whether this process started the cluster.

    Replicas of before answer their requests to the end while those of the new recipes take over.

    Raises
    ------
    ConnectionError
        If there is no cluster at the address.
    ImportError
        If Ray is not installed.
    RuntimeError
        If the replicas could not start.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ImportError("a server on a cluster needs Ray: pip install 'dlf[ray]'") from error

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    mine = False
    if not ray.is_initialized():
        try:
            ray.init(address or "auto", log_to_driver=False, logging_level="error")
        except ConnectionError:
            if address is not None:
                raise
            ray.init(log_to_driver=False, logging_level="error")
            mine = True
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(application(arguments, settings, replicas), name=NAME, route_prefix="/")
    return mine


def shut_down() -> None:
    """End the server, after its answers, and the cluster that this process started."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
