"""An OpenAI-compatible server for fused models (extra ``serve``)."""

from dlf.server.app import make_app
from dlf.server.service import Served, Service
from dlf.server.settings import ServerSettings

__all__ = ["Served", "ServerSettings", "Service", "make_app"]
