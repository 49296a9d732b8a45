"""Recipes: models, experts, fusion and sampling defaults of an engine in one YAML file."""

from dlf.recipe.engine_recipe import EngineRecipe, RecipeError, load_recipe, recipe_schema

__all__ = ["EngineRecipe", "RecipeError", "load_recipe", "recipe_schema"]
