"""Makes the miniature family of models in ``dlf/zoo`` from nothing: ``python -m bench family``."""
