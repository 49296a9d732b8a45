"""An OpenAI-compatible server for fused models (extra ``serve``)."""

from typing import TYPE_CHECKING, Any

from dlf.server.service import Served, Service
from dlf.server.settings import ServerSettings

if TYPE_CHECKING:
    from dlf.server.app import make_app

__all__ = ["Served", "ServerSettings", "Service", "make_app"]


def __getattr__(name: str) -> Any:
    """Import the application when it is asked for: recipes know the settings without the packages of the extra."""
    if name == "make_app":
        from dlf.server.app import make_app

        return make_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
