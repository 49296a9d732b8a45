"""Makes the miniature family of models in ``dlf/zoo`` from scratch: ``python -m bench family``."""
