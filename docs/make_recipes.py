"""Write ``docs/recipes.md``, every key of a recipe, from the recipe's own schema.

    python docs/make_recipes.py

``tests/test_docs.py`` compares the file with the schema.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

from ecgan.recipe import Recipe
from ecgan_cli.recipes import sections, value_type

TARGET = Path(__file__).with_name("recipes.md")
WIDTH = 120
_INTRODUCTION = (
    "Written by `python docs/make_recipes.py` from the recipe's schema; do not edit. "
    "`ecgan recipes schema` prints the same list, `ecgan recipes schema --json` a JSON Schema for "
    "editors. How recipes are used is in [training.md](training.md)."
)


def render() -> str:
    """The whole page as Markdown."""
    name = Recipe.model_json_schema()["properties"]["name"]
    parts = ["# Recipe keys\n", _fill(_INTRODUCTION), "", _line("name", name), ""]
    for section, description, fields in sections():
        lines = [_line(f"{section}.{key}", field) for key, field in fields]
        parts += [f"## {section}\n\n{_fill(description)}\n", *lines, ""]
    return "\n".join(parts).rstrip() + "\n"


def _line(name: str, field: dict[str, Any]) -> str:
    default = json.dumps(field.get("default"), ensure_ascii=False)
    head = f"* **`{name}`**: `{value_type(field)}`, default `{default}`."
    return _fill(f"{head} {field.get('description', '')}", indent="  ")


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
