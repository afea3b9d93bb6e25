"""Write ``docs/recipes.md``, every key of a recipe, from the recipe's own schema.

    python docs/make_recipes.py

``tests/test_docs.py`` compares the file with the schema.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

from ecgan.recipe import Recipe

TARGET = Path(__file__).with_name("recipes.md")
WIDTH = 120
_INTRODUCTION = (
    "Written by `python docs/make_recipes.py` from the recipe's schema; do not edit. "
    "`ecgan recipes schema` prints the same list, `ecgan recipes schema --json` a JSON Schema for "
    "editors. How recipes are used is in [training.md](training.md)."
)


def render() -> str:
    """The whole page as Markdown."""
    schema = Recipe.model_json_schema()
    parts = ["# Recipe keys\n", _fill(_INTRODUCTION), ""]
    for name, entry in schema["properties"].items():
        section = _resolve(entry, schema)
        if "properties" in section:
            parts += _render_section(name, section, schema)
        else:
            parts += [_render_key(name, entry, schema), ""]
    return "\n".join(parts).rstrip() + "\n"


def _render_section(name: str, section: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    keys = [_render_key(f"{name}.{key}", e, schema) for key, e in section["properties"].items()]
    return [f"## {name}\n\n{_fill(section['description'])}\n", *keys, ""]


def _render_key(name: str, entry: dict[str, Any], schema: dict[str, Any]) -> str:
    nested = _resolve(entry, schema)
    if "properties" in nested:
        inner = nested["properties"].items()
        return "\n".join(_render_key(f"{name}.{key}", e, schema) for key, e in inner)
    default = json.dumps(entry.get("default"), ensure_ascii=False)
    head = f"* **`{name}`**: {_type(entry, schema)}, default `{default}`."
    return _fill(f"{head} {entry.get('description', '')}", indent="  ")


def _resolve(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = entry.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else entry


def _type(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    entry = _resolve(entry, schema)
    if "anyOf" in entry:
        return " or ".join(_type(choice, schema) for choice in entry["anyOf"])
    if "enum" in entry:
        return " or ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    kind = entry.get("type", "any")
    if kind == "array":
        return f"list of ({_type(entry.get('items', {}), schema)})"
    return kind + _bounds(entry)


def _bounds(entry: dict[str, Any]) -> str:
    signs = {
        "exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<=",
        "multipleOf": "multiple of",
    }  # fmt: skip
    found = [f"{sign} {entry[key]}" for key, sign in signs.items() if key in entry]
    return f" ({', '.join(found)})" if found else ""


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
