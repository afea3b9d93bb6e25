"""``ecgan recipes``: the recipes that come with the package, and their keys."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ecgan.recipe import Recipe, load_recipe, recipe_names, recipe_text
from ecgan_cli.options import JSON, PATH, SET, Group, echo, option, recipe_argument, write_new


@click.group(cls=Group)
def recipes() -> None:
    """List, show, copy and check recipes."""


@recipes.command("list", short_help="List the recipes.")
def list_() -> None:
    """List the recipes, each with its first line."""
    width = max(map(len, recipe_names())) + 2
    for name in recipe_names():
        echo(f"{name:<{width}}{recipe_text(name).splitlines()[0].lstrip('# ')}")


@recipes.command(short_help="Print a recipe.")
@recipe_argument("name", metavar="NAME|FILE")
@option("--resolved", is_flag=True, help="Every key, defaults too.")
@SET
def show(name: str, overrides: tuple[str, ...], *, resolved: bool) -> None:
    """Print the recipe NAME as it is, or every key of it or of FILE."""
    if resolved or overrides or Path(name).is_file():
        echo(load_recipe(name, overrides).to_yaml(), nl=False)
    else:
        echo(recipe_text(name), nl=False)


@recipes.command(short_help="Copy a recipe to a file.")
@recipe_argument("name")
@click.argument("file", type=PATH, required=False)
def cp(name: str, file: Path | None) -> None:
    """Copy the recipe NAME to FILE, to edit it; by default to NAME.yaml in this folder."""
    target = file or Path(f"{name}.yaml")
    write_new(target, recipe_text(name))
    echo(f"Wrote {target}")


@recipes.command(short_help="Check a recipe file.")
@recipe_argument("file", metavar="FILE|NAME")
@SET
def validate(file: str, overrides: tuple[str, ...]) -> None:
    """Check the keys and values of the recipe FILE; list all faults at once."""
    load_recipe(file, overrides)
    echo(f"{file}: valid")


@recipes.command(short_help="Print all keys of a recipe.")
@JSON
def schema(*, as_json: bool) -> None:
    """Print every key of a recipe: type or choices, default and meaning.

    With --json, print a JSON Schema, which editors use to complete and check recipes.
    """
    if as_json:
        echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    for name, description, fields in sections():
        echo(f"{name}:  {description}")
        for key, field in fields:
            default = json.dumps(field.get("default"))
            echo(f"  {key}: {value_type(field)}  [default: {default}]")
            echo(f"      {' '.join(field.get('description', '').split())}")


def sections() -> Iterator[tuple[str, str, list[tuple[str, dict[str, Any]]]]]:
    """Name, description and keys of each section of a recipe, keys with their JSON Schema."""
    document = Recipe.model_json_schema()
    for name, section in Recipe.model_fields.items():
        if section.annotation is not str:
            yield (
                name,
                section.description or "",
                [*_fields(document, document["properties"][name])],
            )


def _fields(document: dict[str, Any], section: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys of a section in a JSON Schema, those of its inner sections too."""
    definition = document["$defs"][section["$ref"].rpartition("/")[2]]
    for key, field in definition["properties"].items():
        if "$ref" in field:
            yield from ((f"{key}.{name}", inner) for name, inner in _fields(document, field))
        else:
            yield key, field


def value_type(field: dict[str, Any]) -> str:
    """Type of a recipe's key in words, from its JSON Schema: choices, bounds, kinds of items."""
    if "anyOf" in field:
        return " or ".join(map(value_type, field["anyOf"]))
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {value_type(field['items'])}"
    signs = {
        "minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<",
        "multipleOf": "multiple of",
    }  # fmt: skip
    bounds = [f"{sign} {field[bound]:g}" for bound, sign in signs.items() if bound in field]
    return " ".join([kind, ", ".join(bounds)]).rstrip()
