"""Rules for the weight, tried on the miniature family: ``python -m bench weights``."""
