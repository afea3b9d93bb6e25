"""``ecgan recipes``: the recipes that come with the package."""

import json
from pathlib import Path

import click

from ecgan.recipe import Recipe, load_recipe, recipe_names, recipe_text
from ecgan_cli.command import Group
from ecgan_cli.options import write_new


@click.group(cls=Group)
def recipes() -> None:
    """List, show and copy recipes; print their schema."""


@recipes.command("list")
def list_() -> None:
    """Names of the recipes, with their first line."""
    width = max(map(len, recipe_names())) + 2
    for name in recipe_names():
        click.echo(f"{name:<{width}}{recipe_text(name).splitlines()[0].lstrip('# ')}")


@recipes.command()
@click.argument("name")
@click.option("--resolved", is_flag=True, help="Every key, with its default.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a key."
)
def show(name: str, overrides: tuple[str, ...], *, resolved: bool) -> None:
    """Print the recipe NAME."""
    if resolved or overrides:
        click.echo(load_recipe(name, overrides).to_yaml(), nl=False)
    else:
        click.echo(recipe_text(name), nl=False)


@recipes.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path), required=False)
def cp(name: str, file: Path | None) -> None:
    """Copy the recipe NAME to FILE (default: NAME.yaml here), to be changed."""
    target = file or Path(f"{name}.yaml")
    write_new(target, recipe_text(name))
    click.echo(f"Wrote {target}")


@recipes.command()
@click.option("--json", "as_json", is_flag=True, help="JSON Schema, for editors.")
def schema(*, as_json: bool) -> None:
    """Every key of a recipe: type, default, meaning."""
    if as_json:
        click.echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    for name, section in Recipe.model_fields.items():
        fields = getattr(section.annotation, "model_fields", None)
        if fields is None:
            continue
        click.echo(f"{name}:  {section.description}")
        for key, field in fields.items():
            text = " ".join((field.description or "").split())
            click.echo(f"  {key}: {json.dumps(field.default)}\n      {text}")
