"""Recipes: everything that decides what a run does, read from YAML and checked. No torch here.

``load_recipe`` takes the name of a recipe that comes with the package, or a file, and overrides
``section.key=value``. ``ecgan recipes schema`` prints every key with its default and description.
"""

from ecgan.recipe.loading import (
    class_list_file,
    data_folder,
    generator_hash,
    label_space,
    load_recipe,
    parse_recipe,
    recipe_keys,
    recipe_names,
    recipe_text,
    subset,
)
from ecgan.recipe.schema import (
    Data,
    Parts,
    Recipe,
    SegmenterTraining,
    nearest_size,
    num_upsamplings,
)

__all__ = [
    "Data",
    "Parts",
    "Recipe",
    "SegmenterTraining",
    "class_list_file",
    "data_folder",
    "generator_hash",
    "label_space",
    "load_recipe",
    "nearest_size",
    "num_upsamplings",
    "parse_recipe",
    "recipe_keys",
    "recipe_names",
    "recipe_text",
    "subset",
]
