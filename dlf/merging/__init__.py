"""Merges fine-tuned models of one base into one; `Recipe` explains the mathematics."""

from dlf.merging.methods import METHODS, Method, Recipe, merge_tensor

__all__ = ["METHODS", "Method", "Recipe", "merge_tensor"]
