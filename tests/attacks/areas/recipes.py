"""Recipes and class lists of a stranger."""

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from ecgan.recipe import load_recipe
from tests.attacks import mutations
from tests.attacks.harness import Expect, Try, chosen
from tests.attacks.world import World

_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
_TEXTS = {
    "aliases": f"train:\n  images: *a\n{_BOMB}",
    "aliases first": f"{_BOMB}train: {{images: *a29}}",
    "an alias of itself": "&a [*a]",
    "a tag": "name: !!python/object/apply:os.system ['touch ../executed']",
    "a tag of another type": "name: !!bool x",
    "nested lists": "name: " + "[" * 100_000,
    "nested mappings": "{a: " * 100_000,
    "a date that is none": "name: 2020-99-99",
    "a number of base 60": "train: {images: 1" + ":1" * 5000 + "}",
    "a number of many digits": "train: {images: " + "9" * 10_000 + "}",
    "an unhashable key": "{[1]: 2}",
    "NUL": "name: a\0b",
    "no text": "\udcff",
    "a list": "[1, 2]",
    "a name": "../victim/victim.txt",
    "megabytes": "#" + "x" * (3 << 20),
    "keys that are numbers": "{1: {2: 3}}",
    "merged keys": "<<: [1, 2]",
}
_CLASSES = {
    "nested": mutations.nested(100_000),
    "NaN": '{"classes": [{"id": NaN, "name": "a"}]}',
    "numbers as names": '{"classes": [1, 2]}',
    "evaluation 5": '{"classes": ["road", "sky"], "evaluation": 5}',
    "a number twice": '{"classes": [{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]}',
    "many": json.dumps([f"c{i}" for i in range(100_000)]),
    "nothing": "",
    "colours of texts": '{"classes": [{"name": "a", "color": ["x", 1, 2]}]}',
}


def tries(rng: random.Random, world: World) -> Iterator[Try]:
    """Recipes in ``recipes validate`` and ``train --dry-run``, class lists in ``data inspect``."""
    data = world.data
    yield _recipe("whole", "", Expect.TAKEN)
    for name, text in _TEXTS.items():
        yield _recipe(name, text)
    document = yaml.safe_load(load_recipe("demo").to_yaml())
    places = [path for path in mutations.places(document) if path]
    values = [*mutations.TYPES, *mutations.NUMBERS, *mutations.TEXTS, *mutations.PATHS]
    for path in chosen(places, rng, 60):
        value = rng.choice(values)
        changed = mutations.replaced(document, path, value)
        yield _recipe(
            f"{'.'.join(map(str, path))} = {value!r:.40}", yaml.safe_dump(changed), Expect.EITHER
        )
    for value in mutations.PATHS:
        changed = yaml.safe_dump(mutations.replaced(document, ("name",), value))
        yield _trained(world, f"name = {value!r}", changed, data)
    for value in ("train.batch=1000000000000", "model.width=1000000000", "data.height=1073741824"):
        yield _trained(world, value, "", data, value)
    for special in ("/dev/zero", "pipe.yaml", "..", "/proc/self/mem"):
        yield Try("recipes", f"recipe {special}", lambda folder, s=special: _special(folder, s))
    for name, text in _CLASSES.items():
        yield _classes(world, name, text, data)


def _recipe(name: str, text: str, expect: Expect = Expect.REFUSED) -> Try:
    def prepare(folder: Path) -> Sequence[object]:
        content = text.encode("utf-8", "surrogateescape")
        (folder / "work/r.yaml").write_bytes(content)
        return ["recipes", "validate", "r.yaml"]

    return Try("recipes", f"recipe: {name}", prepare, expect)


def _trained(world: World, name: str, text: str, data: Path, setting: str = "") -> Try:
    def prepare(folder: Path) -> Sequence[object]:
        (folder / "work/r.yaml").write_text(text or "{}")
        options = ("--device", "cpu", "-q", *(("--set", setting) if setting else ()))
        return ["train", "--recipe", "r.yaml", "--data", world.copy(data, folder / "d"), *options]

    return Try("recipes", f"train: {name}", prepare, writes=("runs",))


def _special(folder: Path, name: str) -> Sequence[object]:
    os.mkfifo(folder / "work/pipe.yaml")
    return ["recipes", "validate", name if "/" in name else f"./{name}"]


def _classes(world: World, name: str, text: str, data: Path) -> Try:
    def prepare(folder: Path) -> Sequence[object]:
        copy = world.copy(data, folder / "work/data")
        (copy / "classes.json").write_text(text)
        return ["data", "inspect", "data"]

    return Try("recipes", f"class list: {name}", prepare)
