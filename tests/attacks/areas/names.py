"""Names in recipes that are paths."""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.attacks.harness import Expect, Try
from tests.attacks.mutations import PATHS
from tests.attacks.world import World


def tries(rng: random.Random, world: World) -> Iterator[Try]:
    """Runs that a recipe would put elsewhere."""
    data = world.data
    for name in ("plain", *PATHS):

        def prepare(folder: Path, name: str = name) -> list[object]:
            recipe = folder / "work/recipe.yaml"
            recipe.write_text(
                f"name: {name!r}\ndata: {{dataset: folder, root: {data}, height: 32, width: 64}}\n"
                "model: {width: 4, label_generator: 'off'}\nlosses: {perceptual_network: none}\n"
            )
            return ["train", "--dry-run", "--recipe", recipe, "--device", "cpu"]

        expect = Expect.TAKEN if name == "plain" else Expect.REFUSED
        yield Try("names", f"recipe's name {name!r}", prepare, expect, writes=("runs",))
