"""The paper's tables, on the miniature family or on models of a recipe: ``python -m bench quality``."""
